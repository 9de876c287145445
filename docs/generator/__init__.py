"""What mkdocs adds to the pages of docs/: the reference, made from the code at every build, and repository files.

Nothing that is generated is committed, so nothing of it can go stale: what the code no longer has breaks the build.
"""
