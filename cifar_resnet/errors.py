"""The exceptions that a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line: the key or file, what is wrong, what to do."""


class RunError(RuntimeError):
    """Something stopped a run that had begun, such as a full disk; the message is one line: what, and what to do."""


class Finished(Exception):  # noqa: N818  it is no error
    """What was asked for has been done already; the message is one line: what, and where."""


def one_line(error: BaseException) -> str:
    """Return what an exception says as one line."""
    return " ".join(str(error).split()) or type(error).__name__
