"""A file for each command: its arguments, its help, and what it calls.

Heavy modules are imported in the functions, after the cheap checks.
"""
