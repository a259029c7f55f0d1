"""What was at the bottom of an error."""


def root_cause(error: BaseException) -> BaseException:
    """What the operating system or OpenSSL said; httpcore keeps that as an argument, not as a cause."""
    while inner := error.__cause__ or next((a for a in error.args if isinstance(a, BaseException)), None):
        error = inner
    return error
