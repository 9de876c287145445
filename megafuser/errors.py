"""The one exception that is a user's mistake and no bug."""


class UserError(Exception):
    """A mistake in what the user gave: one line that says what, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
