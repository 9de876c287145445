"""megafuser: fuses finished language models, all active on every token, by training a gate over them and then all.

Nothing but the version is here: the commands begin in `cli.main`.
"""

__version__ = "0.1.0"
