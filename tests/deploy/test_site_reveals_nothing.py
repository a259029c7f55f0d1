"""Whatever goes wrong at a site, no cell of its data, no path and no word of an error leaves its process."""

import builtins
import csv
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

import fftmoe.errors
from fftmoe.config import parse_recipe
from fftmoe.deploy.job import make_job
from fftmoe.deploy.site import SiteSettings, open_site
from fftmoe.engines.failures import MEANINGS
from fftmoe.engines.flower_messages import failure_of, make_client_app, pack_query, pack_request
from fftmoe.records import Budget, ClientPlan, Training, pack_plan
from policies import allow_values
from sites import divide, natural, over_sites

MARK = "pain since monday"
CONTEXT = Context(run_id=1, node_id=3, node_config={}, state=RecordDict(), run_config={})
COLUMNS = ("text", "label", "number", "tokens", "author")

Answer = Callable[..., Message]


pytestmark = pytest.mark.usefixtures("in_a_flower_run")


def write_rows(folder: Path, header: tuple[str, ...] = COLUMNS) -> None:
    """Five rows with the mark in every cell."""
    folder.mkdir(parents=True)
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *([f"{MARK} {row} {name}" for name in header] for row in range(5))])


@pytest.fixture
def answer(recipe_values: dict[str, Any], data_folder: Path, tmp_path: Path) -> Answer:
    """A site's answer to a query, or to a plan if one is given, for a recipe with these changes."""
    divide(data_folder, tmp_path / "divided")
    write_rows(tmp_path / MARK / "data")

    def ask(
        job: dict[str, Any] | None = None,
        message: bytes | None = None,
        labels: Sequence[str] = ("blue", "green", "red"),
        **changes: Any,
    ) -> Message:
        values = over_sites(natural(recipe_values), tmp_path / "divided")
        recipe = parse_recipe(values, "test").model_dump(mode="json")
        for name, change in changes.items():
            own = change if name == "head" else {**recipe[name], **change}
            recipe[name] = own and {key: value for key, value in own.items() if value is not None}
        recipe = {name: section for name, section in recipe.items() if section is not None}
        job = make_job(recipe, labels, "abc1") if job is None else job
        folder = tmp_path / MARK
        allow_values(folder / "state", recipe, labels)
        settings = SiteSettings("a", 0, folder / "data", "small", folder / "state")
        app = make_client_app(
            lambda given, _: open_site(settings, given), lambda given, _: open_site(settings, given).describe()
        )
        content = pack_query(job) if message is None else pack_request(job, [(0, message)])
        kind = "query" if message is None else "train"
        return app(Message(content, dst_node_id=3, message_type=kind), CONTEXT)

    return ask


def check_only_a_code(answer: Message, *secrets: str) -> str:
    """Check all that leaves the process, and return the code."""
    sent = b"".join(part.deflate() for part in get_all_nested_objects(answer).values())
    for secret in (MARK, MARK.split()[0], "train.csv", "Error", "Traceback", *secrets):
        assert secret.encode() not in sent, f"{secret!r} left the site: {sent!r}"
    assert list(answer.content.config_records) == ["failure"]
    assert not answer.content.array_records
    (code,) = answer.content.config_records["failure"].values()
    assert code in MEANINGS
    assert failure_of(answer.content, own=False) is not None
    return str(code)


AVERAGED = {"kind": "averaged", "learning_rate": 0.1}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "labels that are not agreed": ({}, "data"),
    "labels in the place of texts, and texts in the place of labels": (
        {"data": {"text": "label", "label": "text"}},
        "data",
    ),
    "a column that is not there": ({"data": {"label": "missing"}}, "data"),
    "a text where a number is due": (
        {
            "backbone": {"task": "regression"},
            "data": {"label": None, "targets": ["number"]},
            "head": AVERAGED,
            "labels": ["number"],
        },
        "data",
    ),
    "a text where lists of tokens are due": (
        {"backbone": {"task": "token-classification"}, "data": {"text": None, "label": None}, "head": AVERAGED},
        "data",
    ),
    "labels of a multi-label task": (
        {"backbone": {"task": "multi-label-classification"}, "head": AVERAGED},
        "data",
    ),
    "no prompts and completions": (
        {"backbone": {"task": "causal-lm"}, "data": {"label": None}, "head": None, "labels": []},
        "data",
    ),
    "a recipe with an unknown key": ({"adapter": {"pain": 3}}, "recipe"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_in_the_data_and_the_recipe_leave_as_a_code(answer: Answer, name: str, caplog: pytest.LogCaptureFixture):
    changes, code = FAULTS[name]
    assert check_only_a_code(answer(**changes)) == code
    # The site's own log has the words.
    assert f"code {code}" in caplog.text


class Panic(BaseException):
    """How libraries in Rust, such as tokenizers and safetensors, report a fault of their own: as no `Exception`."""


def exceptions() -> Iterator[BaseException]:
    """Every error of Python and of this package, with the mark in its words, as libraries raise them."""
    for error in (*vars(builtins).values(), *vars(fftmoe.errors).values()):
        if isinstance(error, type) and issubclass(error, Exception) and error.__name__ not in SPECIAL:
            yield error(f"could not convert string to float: '{MARK}'")
    yield UnicodeDecodeError("utf-8", MARK.encode(), 0, 1, MARK)
    yield OSError(2, MARK, f"/home/{MARK}/train.csv")
    yield ExceptionGroup(MARK, [ValueError(MARK)])
    yield Panic(f"byte index 1 is not a char boundary; it is inside '{MARK}'")


# These take other arguments, or a group of errors; subclasses of UnicodeError are covered by the one above.
SPECIAL = {"UnicodeDecodeError", "UnicodeEncodeError", "UnicodeTranslateError", "ExceptionGroup"}
PLACES = (
    "site_recipe",
    "load_splits",
    "build_model",
    "check_max_length",
    "largest_token",
    "check_vocabulary",
    "counted_tokens",
    "site_tier",
    "build_method",
    "prepared",
    "ClientRuntime",
    "fingerprint",
    "rows_values",
    "make_agreement",
)
"""The parts of `make_site_client`, in the order in which it calls them."""


@pytest.mark.parametrize("place", PLACES)
def test_no_error_of_any_part_leaves_with_its_words(answer: Answer, place: str, monkeypatch: pytest.MonkeyPatch):
    logging.getLogger("fftmoe").setLevel(logging.CRITICAL)
    try:
        for before in ("adapted_blocks", "expert_shape", "make_loss", "marked", *PLACES[1 : PLACES.index(place)]):
            monkeypatch.setattr(f"fftmoe.setup.site.{before}", Anything())
        for error in exceptions():
            reached: list[str] = []
            monkeypatch.setattr(f"fftmoe.setup.site.{place}", raising(error, reached))
            check_only_a_code(answer(), type(error).__name__)
            assert reached == ["here"]
    finally:
        logging.getLogger("fftmoe").setLevel(logging.NOTSET)


class Anything:
    """In place of parts that are not under test."""

    def __call__(self, *_: Any, **__: Any) -> "Anything":
        return self

    def __getattr__(self, name: str) -> "Anything":
        return self

    def __getitem__(self, key: Any) -> "Anything":
        return self

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def raising(error: BaseException, reached: list[str]) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        reached.append("here")
        raise error

    return fail


def test_a_request_that_cannot_be_read_is_answered_with_a_code(answer: Answer):
    assert check_only_a_code(answer(job={"recipe": MARK})) == "recipe"


def test_a_backbone_without_the_tokens_of_its_tokenizer_is_answered_with_a_code(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = tmp_path / MARK / "data" / "train.csv"
    own.write_bytes((tmp_path / "divided" / "author-0" / "train.csv").read_bytes())
    monkeypatch.setattr("fftmoe.setup.site.largest_token", lambda _: 10**6)
    assert check_only_a_code(answer()) == "backbone"


def test_a_plan_that_the_site_refuses_is_answered_with_a_code(
    answer: Answer, tmp_path: Path, recipe_values: dict[str, Any]
):
    """With data that fits, so that the site opens; its answers then hold neither its process nor its memory."""
    own = tmp_path / MARK / "data" / "train.csv"
    own.write_bytes((tmp_path / "divided" / "author-0" / "train.csv").read_bytes())
    plan = ClientPlan(1, 1, 5, Budget("small", 1, 2, (1, 2)), {}, Training(7, 0.01, 0.5, local_steps=3), "train")
    assert check_only_a_code(answer(message=pack_plan(plan, {}))) == "refused"
    assert check_only_a_code(answer(message=MARK.encode())) == "refused"
    profile = answer()
    sent = b"".join(part.deflate() for part in get_all_nested_objects(profile).values())
    assert list(profile.content.config_records) == ["profile"]
    for secret in (str(os.getpid()), str(tmp_path), MARK):
        assert secret.encode() not in sent
