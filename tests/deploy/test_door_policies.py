"""What a policy does not say is refused at the door, and a policy that cannot be read refuses everything."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fftmoe.deploy.door import Door
from fftmoe.errors import InputError
from fftmoe.setup.policy import parse_policy
from policies import allow, policy_of, write_policy
from site_recipes import job_of, recipe
from sites import fails_as

MISSING: dict[str, str] = {
    "recipes": "is not approved",
    "columns": "`columns.text` has nothing",
    "tasks": "`tasks` has nothing",
    "privacy": "`privacy.modes` has nothing",
    "backbones": "`backbones` has nothing",
    "fewest_rows": "`fewest_rows` is not stated",
    "most_rounds": "`most_rounds` is 0",
    "name_counts": "`name_counts` is false",
}


@pytest.mark.parametrize("key", MISSING)
def test_what_a_policy_does_not_say_is_refused(tmp_path: Path, key: str):
    policy = policy_of(recipe())
    write_policy(tmp_path, {name: value for name, value in policy.items() if name != key})
    with fails_as("policy", MISSING[key]):
        Door(tmp_path, own_model=False).admit(job_of(recipe()))
    write_policy(tmp_path, policy)  # the next request sees it
    Door(tmp_path, own_model=False).admit(job_of(recipe()))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "is missing": (Path.unlink, "has no policy.*fftmoe deploy site review RECIPE --site"),
    "is empty": (lambda path: path.write_text(""), "must be a mapping"),
    "is a list": (lambda path: path.write_text("[recipes]"), "must be a mapping"),
    "is not YAML": (lambda path: path.write_text("recipes: ["), "cannot be read"),
    "is no text": (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
    "is too long": (lambda path: path.write_text("# " + "x" * 2**21), "it has more bytes than the 1,048,576"),
    "is cut": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read"),
    "has an unknown key": (lambda path: path.write_text(path.read_text() + "epsilon: 8\n"), "unknown key 'epsilon'"),
    "has a wrong type": (lambda path: path.write_text("most_rounds: many\n"), "most_rounds"),
    "has yes in quotes": (lambda path: path.write_text('name_counts: "yes"\n'), "name_counts"),
    "has an alias": (lambda path: path.write_text("recipes: &a []\ntasks: *a\n"), "alias"),
    "says a thing twice": (lambda path: path.write_text("tasks: []\ntasks: [profile]\n"), "has the key 'tasks' twice"),
    "has an epsilon that nothing bounds": (
        lambda path: path.write_text("privacy: {modes: [none, examples], epsilon: 8, delta: 0.1}\n"),
        "no epsilon bounds",
    ),
    "has noise without an epsilon": (lambda path: path.write_text("privacy: {modes: [examples]}\n"), "add both"),
    "has a digest that is none": (lambda path: path.write_text("recipes: [sha256:12]\n"), "recipes.0"),
    "can be changed by others": (lambda path: path.chmod(0o666), "chmod go-w"),
    "can be changed by its group": (lambda path: path.chmod(0o620), "chmod go-w"),
    "is a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "is a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "not a file"),
}


@pytest.mark.parametrize("text", [b"[", b"\xff", b"a", b"most_rounds: -1"])
def test_what_is_no_policy_is_bad_input(text: bytes):
    with pytest.raises(InputError, match="the policy here"):
        parse_policy(text, "here")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_policy_refuses_everything(tmp_path: Path, kind: str):
    allow(tmp_path, recipe())
    door = Door(tmp_path, own_model=False)
    admitted = door.admit(job_of(recipe()))
    spoil, words = BROKEN[kind]
    spoil(door.folder / "policy.yaml")
    with fails_as("policy", words):
        door.admit(job_of(recipe()))
    assert admitted.request.name == "run"
