"""The command line: it parses, calls what does the work, and turns a user's mistake into one line and exit code 2.

Nothing here imports torch before a command has checked what it was given.
"""
