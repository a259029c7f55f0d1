"""Run and time the first hour of a new user: `python benchmarks/first_hour.py`, a few minutes on two cores.

The script makes a CSV file: docstrings of the standard library, held by six teams. With the installed command it trains
an adapter on that file and uses it. It writes each step, with its seconds and its output, into docs/first-hour.md.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine
from fftmoe.data.stdlib_docs import stdlib_docs

PAGE = Path(__file__).parents[1] / "docs" / "first-hour.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TEAMS = 6
STEPS = (
    ("Look around", ["--help"]),
    ("Write a recipe for the data", ["init", "notes.csv", "--by", "team", "--output", "mine.yaml"]),
    ("What will it cost?", ["plan", "mine.yaml"]),
    ("Train", ["run", "mine.yaml", "--output", "runs/mine"]),
    ("How good is it?", ["evaluate", "runs/mine"]),
    ("Use it", ["predict", "runs/mine", "Open a file and return a file object."]),
    ("Hand it on", ["export", "runs/mine", "--to", "peft", "--output", "mine-adapter"]),
)


def write_notes(path: Path) -> None:
    """Write a few thousand rows: a text, its topic, and the team that holds it."""
    rows = [row for split in stdlib_docs().values() for row in split]
    modules = sorted({module for _, _, module in rows})
    team = {module: f"team-{place % TEAMS + 1}" for place, module in enumerate(modules)}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("note", "topic", "team"))
        writer.writerows((text, label, team[module]) for text, label, module in rows)


def step(folder: Path, title: str, arguments: list[str]) -> tuple[str, float]:
    """Run one command as a user would type it; return its part of the page and its seconds.

    Raises:
        SystemExit: the command failed; the message includes its error output.
    """
    command = Path(sys.executable).parent / "fftmoe"
    started = time.perf_counter()
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run([command, *arguments], cwd=folder, env=plain, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"fftmoe {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    typed = " ".join(f"'{part}'" if " " in part else part for part in arguments)
    shown = shortened(done.stdout.replace(str(folder), "/home/you").rstrip())
    return f"### {title}: {seconds:.1f} s\n\n```\n$ fftmoe {typed}\n{shown}\n```\n", seconds


def shortened(text: str, most: int = 40) -> str:
    """Cut a long output down to its first and last lines."""
    lines = [line.rstrip() for line in text.splitlines()]
    if len(lines) > most:
        lines = [*lines[: most // 2], "…", *lines[-most // 2 :]]
    return "\n".join(lines)


def play(folder: Path) -> str:
    """Run all steps; return the measured part of the page."""
    write_notes(folder / "notes.csv")
    parts, total, load = [], 0.0, os.getloadavg()[0]
    for title, arguments in STEPS:
        part, seconds = step(folder, title, arguments)
        print(part, flush=True)
        parts.append(part)
        total += seconds
        if arguments[0] == "init":
            written = (folder / "mine.yaml").read_text().replace(str(folder), "/home/you")
            parts.append(f"`mine.yaml`:\n\n```yaml\n{written}```\n")
    where = machine()
    facts = f"{where['cores']} cores of {where['cpu']}, Python {where['python']}, torch {where['torch']}; "
    facts += f"load average {load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end"
    return f"{BEGIN}\nAll steps together: {total:.0f} s ({facts}).\n\n" + "\n".join(parts) + END


def main() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(before + play(Path(name).resolve()) + after)


if __name__ == "__main__":
    main()
