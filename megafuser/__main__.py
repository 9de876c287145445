"""`python -m megafuser`."""

from megafuser.cli.main import console

# Saving a checkpoint spawns processes, and those import this module again.
if __name__ == "__main__":
    console()
