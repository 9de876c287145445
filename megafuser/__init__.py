"""megafuser: fuses finished language models, all active on every token, by training a gate over them and then all."""

__version__ = "0.1.0"
