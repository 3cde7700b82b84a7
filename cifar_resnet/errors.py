"""The one exception that a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line: the key or file, what is wrong, what to do."""


def one_line(error: BaseException) -> str:
    """Return what an exception says as one line."""
    return " ".join(str(error).split()) or type(error).__name__
