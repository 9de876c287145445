"""`python -m megafuser`."""

from megafuser.cli.main import console

# Tokenization spawns worker processes, and those import this module again.
if __name__ == "__main__":
    console()
