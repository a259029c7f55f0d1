"""Lets worker processes import the script that started them only where they need something that it defines.

A fresh interpreter imports the script, by the rules of multiprocessing. A script that starts a run at its top level, as
the README's does, would start it again in every worker.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch


class _Finder(ForkingPickler):
    """Pickles into nothing, without numbers of arrays, and notes if a class or a function of the script is in it."""

    def __init__(self) -> None:
        super().__init__(_Nowhere())
        self.found = False

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler.reducer_override`."""
        self.found |= getattr(obj, "__module__", None) == "__main__"
        if isinstance(obj, torch.Tensor) or (isinstance(obj, np.ndarray) and not obj.dtype.hasobject):
            return str, ("",)
        return NotImplemented


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


def names_main(value: Any) -> bool:
    """Return whether a process that unpickles this value must have imported the script."""
    finder = _Finder()
    with suppress(Exception):  # starting the process raises the same error, and there it is explained
        finder.dump(value)
    return finder.found


@contextmanager
def unimported_main() -> Iterator[None]:
    """Keep processes that are started in the block from importing the script of this process."""
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in kept:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)
