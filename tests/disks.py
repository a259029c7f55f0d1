"""Simulated disks that refuse a call, or that lose everything that was not synced."""

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest


class Disk:
    """Replaces the calls that change a disk. Each call is a `step`, which may raise an exception instead.

    Nothing is really forced to the disk, but what would be is noted: `names` in folders, `data` of files by inode.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: dict[Path, dict[str, int]] = {}
        self.data: dict[int, bytes] = {}
        self.fail(0, BaseException())
        self._held: dict[int, int] = {}  # open files, so that no inode is used again
        replace, opened, unlink, mkdir = os.replace, Path.open, Path.unlink, Path.mkdir
        patch.setattr(os, "fsync", self._sync)
        patch.setattr(os, "replace", lambda old, new: (self.step(), replace(old, new)))
        patch.setattr(Path, "mkdir", lambda path, *a, **named: (self.step(), mkdir(path, *a, **named)))
        patch.setattr(Path, "unlink", lambda path, **named: (path.exists() and self.step(), unlink(path, **named)))
        patch.setattr(Path, "open", lambda path, *a, **named: Opened(opened(path, *a, **named), self))

    def fail(self, step: int, error: BaseException) -> None:
        """Fail once, at this step counted from now."""
        self._steps, self._failing, self._error = itertools.count(1), step, error

    def step(self) -> None:
        if next(self._steps) == self._failing:  # in one of several threads
            raise self._error

    def _sync(self, handle: int) -> None:
        self.step()
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            self.names[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
            for entry in path.iterdir():
                self._hold(entry)
        else:
            self.data[path.stat().st_ino] = path.read_bytes()
            self._hold(path)

    def _hold(self, path: Path) -> None:
        inode = path.stat().st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)

    def forget(self) -> None:
        """Forget what was synced, and what is still to fail."""
        self.fail(0, BaseException())
        for handle in self._held.values():
            os.close(handle)
        for noted in (self.names, self.data, self._held):
            noted.clear()

    def survive(self, folder: Path, target: Path, chance: random.Random | None) -> None:
        """Copy to `target` what a loss of power leaves of the folder: everything synced, and by chance some more."""
        target.mkdir()
        forced, now = self.names.get(folder, {}), {path.name: path.stat().st_ino for path in folder.iterdir()}
        for name in forced.keys() | now.keys():
            inode = forced.get(name) if chance is None else chance.choice((forced.get(name), now.get(name)))
            if inode is None:
                continue
            if (folder / name).is_dir():
                self.survive(folder / name, target / name, chance)
            else:
                (target / name).write_bytes(self._bytes(inode, folder / name, chance))

    def _bytes(self, inode: int, path: Path, chance: random.Random | None) -> bytes:
        forced = self.data.get(inode, b"")
        if chance is None or not path.exists() or path.stat().st_ino != inode:
            return forced
        now = path.read_bytes()
        return chance.choice((forced, now, now[: (len(forced) + len(now)) // 2]))  # files only grow


class Opened:
    """A file for which the disk accepts half of the written bytes and refuses the rest."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> None:
        try:
            self._disk.step()
        except BaseException:
            self._file.write(data[: len(data) // 2])
            raise
        self._file.write(data)


class PowerCut(BaseException):
    """Ends the process; no code runs after it."""
