"""`python -m megafuser`; all that it does is in `cli.main`."""

from megafuser.cli.main import console

# Tokenization spawns worker processes, and those import this module again.
if __name__ == "__main__":
    console()
