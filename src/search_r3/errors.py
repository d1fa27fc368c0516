"""Errors that are told to the user as they are, in one line."""


class UsageError(Exception):
    """The command cannot mean anything; the message says why and what would. Ends with exit code 2."""
