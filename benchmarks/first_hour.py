"""Run and time the first hour of four new users: `python benchmarks/first_hour.py`, minutes on two cores.

Each user has data of another kind: a CSV file for each site, one parquet file, images, and instructions. The texts are
docstrings of the standard library. Images and instructions need data and models that are not part of this project:
`--data ../shared/data --models ../shared/models`. The installed command trains an adapter on the data and uses it. Each
step is written, with its seconds and its output, into docs/first-hour.md. `--only images` runs the user whose title
begins so, and leaves the other parts of the page as they are.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from common import machine
from fftmoe.data.stdlib_docs import stdlib_docs

PAGE = Path(__file__).parents[1] / "docs" / "first-hour.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TEAMS = 6
IMAGES, PAIRS = 1200, 1200  # rows of the two sets that are not of this project
TEXT = "Open a file and return a file object."


@dataclass(frozen=True)
class User:
    """What one user has, and types.

    Attributes:
        title: of this part of the page.
        data: the name of the file or folder that the user has.
        make: writes it, given its path and the folders of data and models.
        steps: (title, arguments of the command).
    """

    title: str
    data: str
    make: Callable[[Path, argparse.Namespace], None]
    steps: Sequence[tuple[str, Sequence[str]]]


def notes() -> dict[str, list[tuple[str, str]]]:
    """Texts and their topics, by the team that holds them."""
    rows = [row for split in stdlib_docs().values() for row in split]
    modules = sorted({module for _, _, module in rows})
    team = {module: f"team-{place % TEAMS + 1}" for place, module in enumerate(modules)}
    held: dict[str, list[tuple[str, str]]] = {name: [] for name in sorted(set(team.values()))}
    for text, label, module in rows:
        held[team[module]].append((text, label))
    return held


def table_for_each_site(path: Path, _: argparse.Namespace) -> None:
    path.mkdir()
    for team, rows in notes().items():
        with (path / f"{team}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("note", "topic"), *rows])


def one_table(path: Path, _: argparse.Namespace) -> None:
    rows = [{"note": text, "topic": label, "team": team} for team, held in notes().items() for text, label in held]
    datasets.Dataset.from_list(rows).to_parquet(path)


def folders_of_images(path: Path, parsed: argparse.Namespace) -> None:
    rows = some_of(parsed.data / "pacs32", IMAGES)
    for number, row in enumerate(rows):
        folder = path / row["domain"] / rows.features["label"].int2str(row["label"])
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{number}.png")


def instructions(path: Path, parsed: argparse.Namespace) -> None:
    some_of(parsed.data / "flan8", PAIRS).select_columns(["prompt", "completion", "domain"]).to_json(path)


def some_of(folder: Path, wanted: int) -> Any:
    """About as many rows of a set, evenly over the whole."""
    rows = datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")
    return rows.select(range(0, len(rows), max(1, len(rows) // wanted)))


def steps(data: str, *init: str, asked: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """What all users type after they have looked around."""
    return [
        ("Write a recipe for the data", ["init", data, *init, "--output", "mine.yaml"]),
        ("Train", ["run", "mine.yaml", "--output", "runs/mine"]),
        ("Use it", ["predict", "runs/mine", *asked]),
        ("Hand it on", ["export", "runs/mine", "--to", "peft", "--output", "mine-adapter"]),
    ]


def users(parsed: argparse.Namespace) -> list[User]:
    """The users whose data is there."""
    found = [
        User(
            "A CSV file for each site",
            "notes",
            table_for_each_site,
            [("Look around", ["--help"]), *steps("notes", asked=[TEXT])],
        ),
        User("One parquet file", "notes.parquet", one_table, steps("notes.parquet", "--by", "team", asked=[TEXT])),
    ]
    if parsed.data and parsed.models:
        vit, llama = str(parsed.models / "vit-cifar10"), str(parsed.models / "stories260k")
        prompt, model = ["Is this sentence correct? The cat sat on mat."], ["--by", "domain", "--model", llama]
        found += [
            User(
                "Images by class",
                "photos",
                folders_of_images,
                steps("photos", "--model", vit, asked=["photos/art_painting"]),
            ),
            User("Instructions", "pairs.jsonl", instructions, steps("pairs.jsonl", *model, asked=prompt)),
        ]
    return found


def step(folder: Path, title: str, arguments: Sequence[str], parsed: argparse.Namespace) -> tuple[str, float]:
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
    shown = as_at_home(f"$ fftmoe {typed}\n{shortened(done.stdout.rstrip())}", folder, parsed)
    return f"#### {title}: {seconds:.1f} s\n\n```\n{shown}\n```\n", seconds


def as_at_home(text: str, folder: Path, parsed: argparse.Namespace) -> str:
    """The text without the places of this machine."""
    for place, name in ((folder, "/home/you"), (parsed.models, "models")):
        text = text.replace(str(place), name) if place else text
    return text


def shortened(text: str, most: int = 40) -> str:
    """Cut a long output down to its first and last lines."""
    lines = [line.rstrip() for line in text.splitlines()]
    if len(lines) > most:
        lines = [*lines[: most // 2], "…", *lines[-most // 2 :]]
    return "\n".join(lines)


def play(user: User, parsed: argparse.Namespace) -> str:
    """Run all steps of one user; return the part of the page."""
    parts, total = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        user.make(folder / user.data, parsed)
        for title, arguments in user.steps:
            part, seconds = step(folder, title, arguments, parsed)
            print(part, flush=True)
            parts.append(part)
            total += seconds
            if arguments[0] == "init":
                written = as_at_home((folder / "mine.yaml").read_text(), folder, parsed)
                parts.append(f"`mine.yaml`:\n\n```yaml\n{written}```\n")
    return f"### {user.title}: {total:.0f} s\n\n" + "\n".join(parts)


def part_of(page: str, heading: str) -> str:
    """Return the part of the page that begins with this heading, up to the next user or the end of what is measured."""
    begin = page.index(heading)
    ends = (page.find(end, begin + 1) for end in ("\n### ", END))
    return page[begin : min(end for end in ends if end > 0)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with pacs32 and flan8")
    parser.add_argument("--models", type=Path, help="folder with vit-cifar10 and stories260k")
    parser.add_argument("--only", metavar="TITLE", help="the beginning of the title of one user")
    parsed = parser.parse_args(arguments)
    for name in ("data", "models"):
        place = getattr(parsed, name)
        setattr(parsed, name, place and place.resolve())
    if parsed.only:
        [user] = [one for one in users(parsed) if one.title.lower().startswith(parsed.only.lower())]
        page, heading = PAGE.read_text(), f"### {user.title}: "
        PAGE.write_text(page.replace(part_of(page, heading), play(user, parsed)))
        return
    load = os.getloadavg()[0]
    parts = "\n".join(play(user, parsed) for user in users(parsed))
    where = machine()
    facts = f"{where['cores']} cores of {where['cpu']}, Python {where['python']}, torch {where['torch']}; "
    facts += f"load average {load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end"
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\nMeasured on {facts}.\n\n{parts}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
