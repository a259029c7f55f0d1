"""A run that is killed at any place and any time resumes to the same bytes as an uninterrupted run.

The runs are children of one process that has imported and composed everything (this file as a script), so that two
hundred of them are minutes and not hours. `test_resume.py` kills a run that was started as a person starts it.
"""

import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMED, AT_RANDOM = 10, 80  # kills at each point; kills at any time
ALL, FEW = 200, 2
AGAIN = 4  # of so many kills one is followed by another, of the run that goes on
SETTING = "state on clients"  # personal routers, rounded uploads with feedback, and a server optimiser


class Point(NamedTuple):
    """A place where a process is killed: before or after a call of a function with given arguments."""

    function: str
    when: Callable[..., bool] = lambda *_: True
    after: bool = False


def renamed(folder: str, suffix: str) -> Point:
    return Point("os:replace", lambda _, new: folder in Path(new).parts[-3:-1] and Path(new).suffix == suffix)


POINTS = {
    "a client is about to train": Point("fftmoe.client.runtime:ClientRuntime.__call__"),
    "a client's state is written and not in place": renamed("clients", ".safetensors"),
    "a client's state is in place": Point("fftmoe.store:ClientStateFiles.save", after=True),
    "the updates are merged": Point("fftmoe.rounds.policy:apply_round", after=True),
    "half a row is written": Point("fftmoe.store:RunFolder.append_metrics"),
    "the row is written": Point("fftmoe.store:RunFolder.append_metrics", after=True),
    "rows and clients' states are on the disk": Point("fftmoe.store.run_folder:sync", after=True),
    "the server's state is written and not in place": renamed("checkpoints", ".safetensors"),
    "it is in place without its manifest": renamed("checkpoints", ".json"),
    "the fourth checkpoint is not removed": Point("fftmoe.store.checkpoints:Checkpoints._keep"),
    "the adapter is written and not in place": Point("os:replace", lambda _, new: Path(new).name == "adapter"),
    "all is there but the summary": Point("fftmoe.store:RunFolder.write_summary"),
}
GOING_BACK = Point("fftmoe.store:ClientStateFiles.forget_after")


# In the process of the runs


def hook(point: Point, end: Callable[..., None]) -> None:
    """Call `end` with the arguments at this point, every time."""
    module, _, path = point.function.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    def called(*arguments: Any, **named: Any) -> Any:
        if point.when(*arguments) and not point.after:
            end(*arguments)
        result = original(*arguments, **named)
        if point.when(*arguments) and point.after:
            end(*arguments)
        return result

    setattr(owner, name, called)


def kill_at(name: str, count: int) -> None:
    """End this process at that point, the `count`-th time that it is reached."""
    left = iter(range(count - 1, -1, -1))

    def end(*arguments: Any) -> None:
        if next(left):
            return
        if name == "half a row is written":
            folder, row = arguments
            with (folder.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row)[:30])
        os.kill(os.getpid(), signal.SIGKILL)

    hook(GOING_BACK if name == "going back" else POINTS[name], end)


def child(work: Callable[[], object], seconds: float | None = None) -> int:
    """Work in a child, killed after so many seconds; return its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as stop:
            status = int(str(stop.code))
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digest(folder: Path) -> str:
    """Digest all files of a run that are equal for equal runs."""
    from interrupting import results, without_clocks

    found = {name: hashlib.sha256(data).hexdigest() for name, data in results(folder).items()}
    return hashlib.sha256(json.dumps([found, without_clocks(folder)], sort_keys=True).encode()).hexdigest()


def rounds_lost(folder: Path) -> int:
    """The number of rounds whose row was written, and that are played again."""
    from fftmoe.store import RunFolder

    saved = RunFolder(folder).load_newest().state
    lines = (folder / "metrics.jsonl").read_bytes().count(b"\n") if (folder / "metrics.jsonl").exists() else 0
    return max(0, lines - 1) - (saved.round if saved else 0)


class Nursery:
    """Runs of one recipe, each a child of this process.

    Attributes:
        seconds: that an uninterrupted run takes, and `counts`: how often it reaches each point.
    """

    def __init__(self, recipe_file: Path, folder: Path) -> None:
        from fftmoe.config import load_recipe
        from fftmoe.setup.compose import compose
        from interrupting import settings

        self.folder, self.recipe_file, self.flags = folder, recipe_file, settings(SETTING)
        self.recipe = load_recipe(recipe_file, self.flags)
        self.experiment = compose(self.recipe)
        counts = {name: 0 for name in POINTS}

        def rehearse() -> None:
            for name, point in POINTS.items():
                hook(point, lambda *_, name=name: counts.update({name: counts[name] + 1}))
            self.begin(folder / "whole")
            (folder / "counts.json").write_text(json.dumps(counts))

        start = time.monotonic()
        assert child(rehearse) == 0
        self.seconds = time.monotonic() - start
        self.counts = json.loads((folder / "counts.json").read_text())
        self.expected = digest(folder / "whole")

    def begin(self, folder: Path) -> None:
        from fftmoe.report.progress import Progress
        from fftmoe.setup.engine import open_engine
        from fftmoe.setup.run import begin

        begin(self.experiment, self.recipe, folder, Progress.silent(), open_engine)

    def go_on(self, folder: Path) -> None:
        from fftmoe.report.progress import Progress
        from fftmoe.setup.engine import open_engine
        from fftmoe.setup.run import go_on

        go_on(self.experiment, self.recipe, folder, Progress.silent(), open_engine)

    def killed(self, folder: Path, point: str | float, count: int, again: bool) -> dict[str, Any]:
        """A run that is killed once or twice, and then goes on to its end."""
        if isinstance(point, str):
            ends = [child(lambda: (kill_at(point, count), self.begin(folder)))]
        else:
            while not (status := child(lambda: self.begin(folder), seconds=point)):
                point /= 2  # it had ended before
                shutil.rmtree(folder)
            ends = [status]
        if not (folder / "config.yaml").exists():  # it had not begun
            assert child(lambda: self.begin(folder)) == 0
            return {"point": point, "ends": ends, "lost": 0, "equal": digest(folder) == self.expected}
        lost = rounds_lost(folder)
        if again and not (folder / "summary.json").exists():
            ends.append(child(lambda: (kill_at("going back", 1), self.go_on(folder))))
        if not (folder / "summary.json").exists():
            assert child(lambda: self.go_on(folder)) == 0
        return {"point": point, "ends": ends, "lost": lost, "equal": digest(folder) == self.expected}

    def all_killed(self, number: int) -> Iterator[dict[str, Any]]:
        """Kill `number` runs: at each point, early and late in a run, and at random times."""
        source = random.Random(3)
        kills: list[tuple[str | float, int]] = [
            (name, 1 + time * count // NAMED) for name, count in self.counts.items() for time in range(NAMED)
        ]
        kills += [(source.uniform(0, self.seconds), 0) for _ in range(AT_RANDOM)]
        for place, (point, count) in enumerate(kills[:: ALL // number]):
            yield self.killed(self.folder / f"{place:03d}", point, count, again=place % AGAIN == 0)

    def interrupted(self) -> dict[str, Any]:
        """A run that Ctrl-C ends in the middle of a round, and that the command line resumes."""
        from fftmoe.cli.app import main

        folder, output = self.folder / "interrupted", self.folder / "output.txt"
        flags = [part for setting in self.flags for part in ("--set", setting)]

        left = iter(range(5, -1, -1))  # to the third round

        def interrupt(*_: object) -> None:
            if not next(left):
                os.kill(os.getpid(), signal.SIGINT)

        def run() -> None:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            hook(POINTS["a client is about to train"], interrupt)
            main(["run", str(self.recipe_file), "--output", str(folder), *flags])

        status, lost = child(run), rounds_lost(folder)
        went_on = child(lambda: main(["resume", str(folder)]))
        equal = went_on == 0 and digest(folder) == self.expected
        return {"ends": [status], "output": output.read_text(), "lost": lost, "equal": equal}


def main(recipe_file: str, folder: str, number: str) -> None:
    import torch

    torch.set_num_threads(1)  # a child has none of its parent's other threads
    nursery, results = Nursery(Path(recipe_file), Path(folder)), sys.stdout
    sys.stdout = sys.stderr
    for result in (nursery.interrupted(), *nursery.all_killed(int(number))):
        results.write(json.dumps(result) + "\n")


# In pytest


@pytest.mark.parametrize("number", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_bytes(recipe_file: Path, tmp_path: Path, number: int):
    """Wherever it was killed at most one round is played again; and Ctrl-C ends it with the way to go on."""
    assert len(POINTS) * NAMED + AT_RANDOM == ALL
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    script = [sys.executable, __file__, str(recipe_file), str(tmp_path), str(number)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=7200, env=environment)
    assert done.returncode == 0, done.stderr
    interrupted, *killed = map(json.loads, done.stdout.splitlines())
    folder = tmp_path / "interrupted"
    assert interrupted["ends"] == [130]
    assert (
        f"fftmoe: interrupted; to continue after its last whole round: fftmoe resume {folder}\n"
        in interrupted["output"]
    )
    assert len(killed) == number
    assert [result for result in (interrupted, *killed) if not result["equal"] or result["lost"] > 1] == []
    assert all(set(result["ends"]) == {-signal.SIGKILL} for result in killed)
    print(
        f"{number} runs killed, {sum(len(result['ends']) - 1 for result in killed)} of them twice; "
        f"{sum(result['lost'] for result in killed)} lost a round"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
