"""Finds the first cause of an error."""


def root_cause(error: BaseException) -> BaseException:
    """The error of the operating system or of OpenSSL below this one; httpcore keeps it as an argument of its own."""
    while inner := error.__cause__ or next((a for a in error.args if isinstance(a, BaseException)), None):
        error = inner
    return error
