"""Data from which little or nothing can be learned, for every task: tables, and the recipes that train on them."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image

from fftmoe.data.roles import LANGUAGE_TASKS
from fftmoe.methods.registry import METHODS
from five_clients import AVERAGED, CLOSED, FOURIER, FROZEN

Row = dict[str, Any]
Rows = list[Row]
WORDS = ("ash", "bay", "cod", "dew", "elm")
COLOURS = ("blue", "green", "red")
BLANK = "\u3000"  # a space, of which tokenizers leave nothing

TASKS: dict[str, dict[str, Any]] = {
    "sequence-classification": {},
    "image-classification": {"image": "picture"},
    "token-classification": {"label": "kind"},
    "multi-label-classification": {"label": "colours"},
    "regression": {"targets": ["size", "other"]},
    "causal-lm": {"prompt": "prompt", "completion": "completion", "label": "kind"},
    "preference": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "label": "kind"},
}
ONE_VS_ALL = {"kind": "one-vs-all", "learning_rate": 0.5}
ADAMW = {**AVERAGED, "optimizer": "adamw", "learning_rate": 0.01}
TRAINED = {**CLOSED, "update": "trained", "learning_rate": 0.005}
HEADS = {
    "averaged": AVERAGED,
    "adamw": ADAMW,
    "one-vs-all": ONE_VS_ALL,
    "closed-form": CLOSED,
    "frozen": FROZEN,
    "trained": TRAINED,
    "fourier": FOURIER,
}


def rows_of(size: int, seed: int) -> Rows:
    """Ordinary rows for every task: each row names a colour, and belongs to one of four authors."""
    source = random.Random(seed)
    rows: Rows = []
    for place in range(size):
        words = [source.choice(WORDS) for _ in range(source.randint(1, 5))]
        row: Row = {"author": f"author-{place % 4}", "prompt": f"say {words[0]}", "completion": words[0]}
        row |= {"chosen": words[0], "rejected": f"{words[0]} ash"}
        row |= {"picture": place * 37 % 251, "size": float(len(words)), "other": float(place % 3), "kind": "one"}
        rows.append(row)
        give_colour(row, COLOURS[place % 3], words)
    return rows


def give_colour(row: Row, colour: str, words: Sequence[str] | None = None) -> None:
    """Let the row be of this colour, in its words and in every kind of label."""
    kept = [word for word in (row["tokens"] if words is None else words) if word not in COLOURS] or ["ash"]
    row |= {"tokens": [*kept, colour], "text": " ".join([*kept, colour]), "label": colour, "colours": [colour]}
    row["tags"] = [word if word in COLOURS else "O" for word in row["tokens"]]


def _colour_of(row: Row) -> str:
    return COLOURS[int(row["author"][-1]) % 3]


def _each_client_one_class(train: Rows, test: Rows) -> None:
    for row in train:
        give_colour(row, _colour_of(row))
        row |= {"size": float(row["author"][-1]), "tags": [row["label"]] * len(row["tokens"])}
    train[-1]["tags"] = ["O", *train[-1]["tags"][1:]]


def _equal_inputs(train: Rows, test: Rows) -> None:
    same = {"text": "ash bay", "tokens": ["ash", "bay"], "prompt": "say ash", "completion": "ash", "picture": 7}
    for row in (*train, *test):
        row |= {**same, "tags": [row["label"], "O"]}


def _equal_rows(train: Rows, test: Rows) -> None:
    for row in (*train, *test):
        row |= {**rows_of(1, 1)[0], "author": row["author"]}
    give_colour(train[0], "red")


def _equal_client(train: Rows, test: Rows) -> None:
    for row in train:
        if row["author"] == "author-0":
            row |= {**train[0], "author": "author-0"}


def _constant_targets(train: Rows, test: Rows) -> None:
    for row in (*train, *test):
        row |= {"size": 0.0, "other": 7e5, "completion": "ash", "colours": ["blue", "red"], "kind": "one"}


def _class_of_one_row(train: Rows, test: Rows) -> None:
    for row in (*train, *test):
        give_colour(row, COLOURS[row["label"] == "green"])
    give_colour(train[3], "red")


def _client_with_a_class_of_one_row(train: Rows, test: Rows) -> None:
    for row in train:
        give_colour(row, "blue" if row["author"] == "author-1" else row["label"])
    give_colour(next(row for row in train if row["author"] == "author-1"), "red")


def _test_of_one_class(train: Rows, test: Rows) -> None:
    for row in test:
        give_colour(row, "green")


def _test_of_a_rare_class(train: Rows, test: Rows) -> None:
    _class_of_one_row(train, test)
    for row in test:
        give_colour(row, "red")


def _one_test_row(train: Rows, test: Rows) -> None:
    del test[1:]


def _client_of_one_row(train: Rows, test: Rows) -> None:
    train[0]["author"] = "author-9"


def _clients_of_one_row(train: Rows, test: Rows) -> None:
    del train[5:]
    for place, row in enumerate(train):
        row["author"] = f"author-{place}"


def _two_rows(train: Rows, test: Rows) -> None:
    del train[2:]
    for row in test:
        give_colour(row, COLOURS[0])


def _empty_texts(train: Rows, test: Rows) -> None:
    for row in train[:2]:
        row |= {"text": "", "tokens": [], "tags": [], "prompt": "", "completion": "", "picture": None}


def _blank_texts(train: Rows, test: Rows) -> None:
    for row in test[:2]:
        row |= {"text": BLANK, "tokens": [BLANK], "tags": ["O"], "picture": 0}
        row |= dict.fromkeys(("prompt", "completion", "chosen", "rejected"), "#")


def _missing_texts(train: Rows, test: Rows) -> None:
    for row in train[:2]:
        row |= dict.fromkeys(("text", "tokens", "prompt", "completion", "chosen", "rejected", "picture"))


def _unknown_words(train: Rows, test: Rows) -> None:
    for row in (*train, *test):
        row |= {"text": "zzz zzz", "tokens": ["zzz", "zzz"], "tags": [row["label"], "O"], "picture": 0}
        row |= {"prompt": "zzz", "completion": "zzz", "chosen": "zzz zzz", "rejected": "zzz"}


def _client_without_labels(train: Rows, test: Rows) -> None:
    for row in train:
        if row["author"] == "author-1":
            row |= {"colours": [], "tags": ["O"] * len(row["tokens"])}


def _test_without_labels(train: Rows, test: Rows) -> None:
    for row in test:
        row |= {"colours": [], "tags": ["O"] * len(row["tokens"])}


def _huge_targets(train: Rows, test: Rows) -> None:
    for place, row in enumerate((*train, *test)):
        row |= {"size": (-1) ** place * 9e29, "other": 1e28 * place}


def _targets_out_of_range(train: Rows, test: Rows) -> None:
    train[4]["other"] = -1.1e30


def _tiny_targets(train: Rows, test: Rows) -> None:
    for place, row in enumerate((*train, *test)):
        row |= {"size": 1e-300 * place, "other": 1e-42 * place}


def _outlier(train: Rows, test: Rows) -> None:
    train[0]["size"] = 1e29


def _far_test(train: Rows, test: Rows) -> None:
    for row in train:
        row["size"] *= 1e-20
    for row in test:
        row["size"] = 1e30


class Kind(NamedTuple):
    """A kind of degenerate data.

    Attributes:
        spoil: changes ordinary rows for training and testing in place.
        tasks: of which it is a kind; all if there are none.
    """

    spoil: Callable[[Rows, Rows], None]
    tasks: tuple[str, ...] = ()


KINDS = {
    "each client has one class": Kind(_each_client_one_class),
    "all inputs are equal": Kind(_equal_inputs),
    "all rows but one are equal": Kind(_equal_rows),
    "a client's rows are equal": Kind(_equal_client),
    "targets are constant": Kind(_constant_targets),
    "a class has one row": Kind(_class_of_one_row),
    "a class has one row at a client": Kind(_client_with_a_class_of_one_row),
    "the test has one class": Kind(_test_of_one_class),
    "the test has a class of one training row": Kind(_test_of_a_rare_class),
    "the test has one row": Kind(_one_test_row),
    "a client has one row": Kind(_client_of_one_row),
    "every client has one row": Kind(_clients_of_one_row),
    "there are two rows": Kind(_two_rows),
    "texts are empty": Kind(_empty_texts),
    "test texts are blank": Kind(_blank_texts),
    "texts are missing": Kind(_missing_texts),
    "no word is known": Kind(_unknown_words),
    "a client has no label": Kind(_client_without_labels),
    "the test has no label": Kind(_test_without_labels),
    "targets are huge": Kind(_huge_targets, ("regression",)),
    "a target is out of range": Kind(_targets_out_of_range, ("regression",)),
    "targets are tiny": Kind(_tiny_targets, ("regression",)),
    "a target is an outlier": Kind(_outlier, ("regression",)),
    "test targets are far away": Kind(_far_test, ("regression",)),
}


def write_degenerate(folder: Path, task: str, kind: str) -> Path:
    """Training and test rows of this kind, as the task reads them."""
    train, test = rows_of(31, 1), rows_of(13, 2)
    KINDS[kind].spoil(train, test)
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("test", test)):
        if task == "image-classification":
            _write_pictures(folder / f"{split}.parquet", rows)
        else:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _write_pictures(path: Path, rows: Rows) -> None:
    names = ("label", "author")
    features = datasets.Features({"picture": datasets.Image(), **{name: datasets.Value("string") for name in names}})
    pixels = [None if row["picture"] is None else np.full((5, 7, 3), row["picture"], np.uint8) for row in rows]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in names}
    columns["picture"] = [None if own is None else Image.fromarray(own) for own in pixels]
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def degenerate_recipe(model: Path, data: Path, task: str, method: str, head: str, clients: int) -> dict[str, Any]:
    """A recipe of two short rounds over these rows, whose authors are the clients, with every measurement."""
    does = METHODS[method].capabilities
    measured = not does.pools_data
    recipe = {
        "name": "degenerate",
        "seed": 3,
        "method": method,
        "backbone": {"model": str(model), "task": task},
        "data": {"source": str(data), "max_length": 13, "validation": "off", **TASKS[task]},
        "partition": {"kind": "natural", "by": "author"},
        "adapter": {"num_experts": 5, "expert_dim": 4, "shared_dim": 2, "blocks": "last-2"},
        "head": HEADS[head],
        "budgets": [
            {"name": "small", "fraction": 0.5, "top_k": 1, "experts": 2},
            {"name": "large", "fraction": 0.5, "top_k": 2, "experts": 5},
        ],
        "federation": {"rounds": 2, "clients_per_round": clients, "local_steps": 2, "batch_size": 5},
        "evaluation": {"baselines": "off", "personal": measured and not does.personal, "local_only": measured},
    }
    recipe["federation"]["learning_rate"] = 0.01
    if task in LANGUAGE_TASKS:
        del recipe["head"]
    if task == "causal-lm":
        recipe["evaluation"]["generate"] = {"examples": 3, "max_new_tokens": 2}
    return recipe
