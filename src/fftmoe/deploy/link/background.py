"""Calls a server in threads of their own, so that no server can keep its caller: it may send a byte a minute."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Generic, TypeVar

CallResult = TypeVar("CallResult")


def in_background(call: Callable[[], CallResult]) -> Future[CallResult]:
    """Start a call that does not keep the process alive; its result or error is in the future."""
    found: Future[CallResult] = Future()

    def carry_out() -> None:
        try:
            found.set_result(call())
        except BaseException as error:  # whoever asks for the result gets it
            found.set_exception(error)

    Thread(target=carry_out, daemon=True).start()
    return found


def ended_within(call: Future[CallResult], seconds: float) -> bool:
    """Return whether a call ends within this time, with a result or an error."""
    return bool(wait([call], seconds).done)


class OneAtATime(Generic[CallResult]):
    """Makes a call that may be repeated, with a limit on its whole time; while one is under way, no other is made.

    Attributes:
        seconds: after which it is not awaited any more.
    """

    def __init__(self, call: Callable[[], CallResult], seconds: float) -> None:
        self._call, self.seconds = call, seconds
        self._under_way: Future[CallResult] | None = None

    def __call__(self) -> CallResult:
        """Return the result of the call.

        Raises:
            TimeoutError: it took too long, or an earlier one is not over. Otherwise what the call raises.
        """
        if self._under_way is None or self._under_way.done():
            self._under_way = in_background(self._call)
        if not ended_within(self._under_way, self.seconds):
            raise TimeoutError(f"no answer within {self.seconds:g} s")
        return self._under_way.result()
