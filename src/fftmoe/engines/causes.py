"""Finds the first cause of an error."""


def root_cause(error: BaseException) -> BaseException:
    """Find the error of the operating system or of OpenSSL that caused this one.

    httpcore does not set `__cause__`; it keeps the inner error among the arguments of the outer one.
    """
    while inner := error.__cause__ or next((a for a in error.args if isinstance(a, BaseException)), None):
        error = inner
    return error
