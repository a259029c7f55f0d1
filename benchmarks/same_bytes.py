"""Whether another checkout of the code gives the same results: `python benchmarks/same_bytes.py OTHER_CHECKOUT`.

The same recipes are run with the code of this checkout and with that of the other one, with the same interpreter and
on one thread. Of every pair of runs all of this is compared: the files of `adapter/`, the tensors of the newest
checkpoint, the tensors that clients keep, and the metrics in `summary.json` and `metrics.jsonl`, except for those of
time, memory and machine. A line for each run says `same`, or what differs. The exit status is 1 if anything does.

`--only NAME ...` runs a part. `--whole` runs the quickstart as it is shipped and not just two rounds of it. The models
and the data, but for those of the quickstart, are tiny and made here (tiny_inputs.py).
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import yaml

from checkouts import Checkout, RunFailed, run_deployed, run_interrupted, run_recipe
from tiny_inputs import make_inputs

THIS = Path(__file__).resolve().parents[1]
UNLIKE = ("seconds", "rss", "environment")  # parts of the names of metrics that differ from run to run
NAMED = 3  # differences on a line

# What all recipes but the quickstart have in common. This and RUNS are the only places with keys of recipes.
BASE: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "backbone": {"model": "./encoder"},
    "data": {"source": "./texts", "max_length": 13},
    "partition": {"kind": "dirichlet", "alpha": 1.0, "num_clients": 7},
    "adapter": {"num_experts": 5, "expert_dim": 4, "blocks": "last-2"},
    "head": {"kind": "one-vs-all", "learning_rate": 1.0},
    "budgets": [
        {"name": "small", "fraction": 0.6, "top_k": 1, "experts": 2},
        {"name": "large", "fraction": 0.4, "top_k": 2, "experts": 5},
    ],
    "federation": {"rounds": 3, "clients_per_round": 5, "local_steps": 3, "batch_size": 5, "learning_rate": 0.01},
    "engine": {"workers": 1, "clients_per_batch": 1},
    "evaluation": {},
    "trackers": [],
}
AVERAGED = {"head": {"kind": "averaged", "learning_rate": 0.1}, "partition": {"kind": "iid", "num_clients": 7}}
PERSONAL = {"adapter.router": "personal", "adapter.shared_rank": 2, "adapter.shared_dim": 3}
COMPRESSED = {
    "federation.ema_decay": 0.6,
    "federation.server_optimizer": "adam",
    "federation.server_learning_rate": 0.01,
    "federation.upload": "int8",
}

# Keys of recipes by their former names, which a checkout from before the renaming takes.
FORMER = {
    ("engine", "clients_per_batch"): "clients_at_once",
    ("federation", "ema_decay"): "average_decay",
    ("federation", "over_selection"): "spare_clients",
}

Changes = Mapping[str, Any]  # of the base recipe: a section, or a key of one with a dot between


@dataclass(frozen=True)
class Run:
    """How the base recipe is changed for a run, and what carries the run out."""

    changes: Changes
    carry_out: Callable[[Checkout, str, Path], Path] = run_recipe


# By task. A task is also what the run is called.
TASKS: dict[str, Run] = {
    "sequence-classification": Run(
        {
            "head": {"kind": "closed-form", "features": "fourier", "num_features": 37, "every": 2},
            "evaluation": {"personal": True, "local_only": True},
        }
    ),
    "multi-label-classification": Run({**AVERAGED, "data.label": "colours"}),
    "token-classification": Run(AVERAGED),
    "regression": Run({**AVERAGED, "data.targets": ["reds", "share"]}),
    "causal-lm": Run(
        {
            "head": None,
            "backbone.model": "./decoder",
            "data": {"source": "./prompts", "prompt": "prompt", "completion": "completion", "max_length": 19},
            "partition": {"kind": "iid", "num_clients": 7},
            "adapter.shared_rank": 2,
            "adapter.shared_targets": "all-linear",
            "evaluation": {"generate": {"examples": 5, "max_new_tokens": 3}},
        }
    ),
    "image-classification": Run({**AVERAGED, "backbone.model": "./vit", "data": {"source": "./images"}}),
}
METHODS = (
    *("fft-moe", "fedit", "ffa-lora", "fedsa-lora", "hetlora", "flora", "flexlora", "flame"),
    *("head-only", "local-only", "centralized"),
)
SITES = {
    "data.source": "./sites/server",
    "partition": {"kind": "natural", "by": "author"},
    "federation.clients_per_round": 2,
    "federation.quorum": 1.0,
}
RUNS: dict[str, Run] = {
    **{task: Run({"backbone.task": task, **run.changes}) for task, run in TASKS.items()},
    **{method: Run({"method": method}) for method in METHODS},
    "personal": Run({**PERSONAL, "evaluation": {"personal": True}}),
    "private": Run({"privacy": {"min_contributors": 2}, "adapter.residents": "balanced"}),
    "robust": Run({"robustness": {"aggregator": "trimmed-mean"}}),
    "compressed": Run(COMPRESSED),
    "over-selection": Run({"federation.over_selection": 2, "federation.quorum": 0.8}),
    "client-batches": Run({"engine.clients_per_batch": 3}),
    "workers": Run({"engine.workers": 2}),
    "interrupted": Run({**PERSONAL, **COMPRESSED, "federation.rounds": 60}, run_interrupted),
    "deployed": Run(SITES, run_deployed),
    "flower": Run({"engine.kind": "flower", "engine.workers": 2}),
}
QUICKSTART = "quickstart"


def recipe_of(run: Run) -> dict[str, Any]:
    """The base recipe with the changes of this run."""
    recipe: dict[str, Any] = json.loads(json.dumps(BASE))
    for key, value in run.changes.items():
        section, _, name = key.partition(".")
        if name:
            recipe[section][name] = value
        else:
            recipe[section] = value
    return recipe


def spelled_for(recipe: dict[str, Any], source: Path) -> dict[str, Any]:
    """The recipe with the keys that the checkout in this folder knows."""
    known = "".join(path.read_text() for path in sorted((source / "src" / "fftmoe" / "config").glob("*.py")))
    spelled = json.loads(json.dumps(recipe))
    for (section, name), former in FORMER.items():
        if f"{name}:" not in known and name in spelled[section]:
            spelled[section][former] = spelled[section].pop(name)
    return spelled


def fingerprints(folder: Path) -> dict[str, str]:
    """What a run ended with: a digest or a value for each file, tensor and metric.

    Raises:
        RunFailed: the folder lacks one of them.
    """
    files = sorted(path for path in (folder / "adapter").rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): _sha256(path.read_bytes()) for path in files}
    checkpoints = sorted((folder / "checkpoints").glob("*.safetensors"))
    summary, metrics = folder / "summary.json", folder / "metrics.jsonl"
    if not (found and checkpoints and summary.is_file() and metrics.is_file()):
        raise RunFailed(f"{folder} lacks an adapter, a checkpoint, {summary.name} or {metrics.name}")
    found |= _tensors("checkpoint", checkpoints[-1])
    for client in sorted((folder / "clients").glob("*/")):
        for path in sorted(client.glob("*.safetensors"))[-1:]:
            found |= _tensors(f"clients/{client.name}", path)
    found |= dict(_metrics("summary.json", json.loads(summary.read_text())))
    return found | dict(_metrics("metrics.jsonl", [json.loads(line) for line in metrics.read_text().splitlines()]))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tensors(where: str, path: Path) -> dict[str, str]:
    """A digest of each tensor in the file, whatever else the file holds."""
    tensors = safetensors.deserialize(path.read_bytes())
    return {f"{where} {name}": f"{t['dtype']} {t['shape']} {_sha256(bytes(t['data']))}" for name, t in tensors}


def _metrics(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every number and text within nested lists and dictionaries, by its path, but for what no two runs share."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, part in value.items():
            if not any(word in str(key) for word in UNLIKE):
                yield from _metrics(f"{where} {key}", part)
    else:
        yield where, json.dumps(value)


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The names of what differs, or is on one side alone."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def carry_out(name: str, checkout: Checkout, whole: bool) -> dict[str, str]:
    """Run this recipe with the code of that checkout, and say what came out."""
    if name == QUICKSTART:
        flags = [] if whole else ["--set", "federation.rounds=2"]
        return fingerprints(run_recipe(checkout, name, None, *flags))
    recipe = checkout.work / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(spelled_for(recipe_of(RUNS[name]), checkout.source), sort_keys=False))
    return fingerprints(RUNS[name].carry_out(checkout, name, recipe))


def compare(name: str, checkouts: Sequence[Checkout], whole: bool) -> bool:
    """Run this recipe with both checkouts and print a line; whether the results are the same."""
    started = time.monotonic()
    try:
        one, other = (carry_out(name, checkout, whole) for checkout in checkouts)
        found = differences(one, other)
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        verdict = f"DIFFERENT ({'; '.join(found[:NAMED])}{more})" if found else f"same ({len(one)} values)"
    except RunFailed as error:
        found, verdict = ["the run itself"], f"FAILED: {error}"
    print(f"{name:26}  {verdict}  {time.monotonic() - started:.0f} s", flush=True)
    return not found


def prepare(work: Path, other: Path) -> list[Checkout]:
    """Make the inputs, and a folder for each of the two checkouts, in the place of what a call before has left."""
    for name in ("inputs", "this", "other"):
        shutil.rmtree(work / name, ignore_errors=True)
    make_inputs(work / "inputs")
    sources = {"this": THIS, "other": other.resolve()}
    return [Checkout.prepare(source, work / "inputs", work / name) for name, source in sources.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="the top folder of the other checkout")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=(QUICKSTART, *RUNS), help="runs; default: all")
    parser.add_argument(
        "--work", type=Path, help="a folder whose folders inputs, this and other are made anew and kept"
    )
    parser.add_argument("--whole", action="store_true", help="run the quickstart as it is shipped")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = (parsed.work or Path(temporary)).resolve()
        checkouts = prepare(work, parsed.other)
        same = [compare(name, checkouts, parsed.whole) for name in parsed.only or (QUICKSTART, *RUNS)]
    print(f"{sum(same)} of {len(same)} runs are the same")
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
