"""Measure answers where the mix of inputs changes: `python benchmarks/mixed_stream.py RUN [RUN …]`, some minutes.

RUN is the folder of a finished run with one label for each input, such as `runs/quickstart`. Streams of test rows are
drawn: by the label shares of one client, of two clients in equal parts, and with all labels equally often. Each stream
is answered by the common model as it is, with the client's personal answers, and with the label shares that
`--prior estimate` finds in the stream. Results are in `results/mixed_stream.json`.
"""

import argparse
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import RESULTS, machine, markdown, write_result
from fftmoe.backbones import add_to_head
from fftmoe.evaluate import predict_logits
from fftmoe.head import prior_shift
from fftmoe.rng import numpy_generator
from fftmoe.setup.compose import compose
from fftmoe.setup.finished import load_federation, recipe_of
from fftmoe.trained.personal import common_model, own_answer_of
from fftmoe.trained.prior import Prior, make_prior

ROWS = 200  # of a stream
OWN, MIXED, EVEN = "its own rows", "half from another client", "all labels equally often"
COMMON, PERSONAL, ESTIMATED = "the common model", "personal answers", "shares estimated from the stream"
WAYS = (COMMON, PERSONAL, ESTIMATED)


@dataclass(frozen=True)
class Client:
    """Holds the logits of a client's personal answers to all test rows [N, C], and its label shares [C]."""

    logits: Tensor
    shares: np.ndarray


@dataclass(frozen=True)
class Run:
    """Holds the test rows of a run: their labels [N], the common model's logits [N, C], and what estimates shares."""

    labels: Tensor
    logits: Tensor
    estimate: Prior
    clients: Sequence[Client]


def opened(folder: Path) -> Run:
    """What the run's models say of its test rows."""
    recipe = recipe_of(folder)
    uncached = recipe.engine.model_copy(update={"prefix_cache": "off"})
    federation, experiment = load_federation(folder), compose(recipe.model_copy(update={"engine": uncached}))
    test, number = experiment.test, len(experiment.label_names)
    clients, run = [], federation.trained.run
    for client in range(experiment.num_clients):
        model = common_model(federation).model
        prior, part = own_answer_of(federation, client)
        if prior is None or prior.shares is None:
            raise SystemExit(f"the run in {folder} has no personal answers")
        if part is not None:
            add_to_head(model, part)
        own = experiment.train.labels[torch.from_numpy(experiment.partition.indices[client])]
        shares = np.bincount(own.numpy(), minlength=number) / len(own)
        clients.append(
            Client(predict_logits(model, test) + prior_shift(prior.shares, prior.whole, prior.answers), shares)
        )
    logits = predict_logits(common_model(federation).model, test)
    return Run(test.labels, logits, make_prior(run, ESTIMATED, None), clients)


def stream(run: Run, shares: np.ndarray, *key: int | str) -> Tensor:
    """Test rows with labels as often as these shares say; labels without test rows are left out."""
    labels = run.labels.numpy()
    weights = (shares / np.bincount(labels, minlength=len(shares)).clip(1))[labels]
    draws = numpy_generator(0, "stream", *key)
    return torch.from_numpy(draws.choice(len(labels), ROWS, p=weights / weights.sum()))


def answered(run: Run, client: Client, rows: Tensor) -> dict[str, float]:
    """The accuracy of each way to answer these rows."""
    common = run.logits[rows]
    ways = {COMMON: common, PERSONAL: client.logits[rows], ESTIMATED: run.estimate.corrected(common)}
    return {way: float((logits.argmax(1) == run.labels[rows]).double().mean()) for way, logits in ways.items()}


def measured(run: Run) -> dict[str, dict[str, float]]:
    """The mean accuracy of each way by stream, over clients or over pairs of them."""
    everyone, even = list(enumerate(run.clients)), np.full(run.logits.shape[1], 1 / run.logits.shape[1])
    streams = {
        OWN: [answered(run, own, stream(run, own.shares, OWN, place)) for place, own in everyone],
        MIXED: [
            answered(run, own, stream(run, (own.shares + other.shares) / 2, MIXED, place, at))
            for (place, own), (at, other) in itertools.permutations(everyone, 2)
        ],
        EVEN: [answered(run, own, stream(run, even, EVEN, place)) for place, own in everyone],
    }
    return {
        name: {way: statistics.fmean(each[way] for each in found) for way in WAYS} for name, found in streams.items()
    }


def table(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """The mean over the runs, and of the worst run how many points the estimate gains over the common model."""
    rows = []
    for name in (OWN, MIXED, EVEN):
        gain = min(100 * (run[name][ESTIMATED] - run[name][COMMON]) for run in runs)
        rows.append(
            [name, *(f"{statistics.fmean(run[name][way] for run in runs):.3f}" for way in WAYS), f"{gain:+.1f}"]
        )
    return markdown(("stream", *WAYS, "estimated less common, points, worst run"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parsed = parser.parse_args(arguments)
    runs = {folder.name: measured(opened(folder)) for folder in parsed.runs}
    write_result(parsed.results / "mixed_stream.json", {"machine": machine(), "runs": runs}, "runs")
    print(table([*runs.values()]))


if __name__ == "__main__":
    main()
