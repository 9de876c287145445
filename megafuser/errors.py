"""The exceptions that are no bugs: a user's mistake, and a run that could not save."""


class UserError(Exception):
    """A mistake in what the user gave: one line that says what, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class NotSavedError(Exception):
    """A stage's last state could not be saved: one line that says why, and what to do.

    The command line prints it without a traceback and exits with code 75.
    """
