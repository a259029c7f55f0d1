"""A site's part of a federation: its own data, its own budget, and the state that never leaves it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe import adapter
from fftmoe.client.runtime import ClientRuntime
from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import Examples, Wanted
from fftmoe.engines.base import Handler
from fftmoe.errors import InputError
from fftmoe.experiment.build import build_method, build_model, expert_shape
from fftmoe.experiment.capacity import fitting_tier
from fftmoe.experiment.compose import cached
from fftmoe.experiment.load import load_splits
from fftmoe.head import make_head
from fftmoe.records import unpack_plan
from fftmoe.store import ClientStateFiles


@dataclass(frozen=True)
class SiteSettings:
    """What a site's operator decides.

    Attributes:
        name, client_id: as the deployment calls it.
        data: the folder with its `train.*`; nothing else of the machine is read for the data.
        budget: a tier of the recipe, `auto` for the largest that this machine can hold, or limits,
            `memory_mib=300,gflops=5`.
        folder: where it keeps its state.
        model: a folder with the backbone, where it is not where the recipe says.
    """

    name: str
    client_id: int
    data: Path
    budget: str
    folder: Path
    model: str | None = None


@dataclass(frozen=True)
class Site:
    """A site that is ready for a job."""

    settings: SiteSettings
    recipe: Recipe
    runtime: ClientRuntime
    tier: str
    examples: Examples

    def __call__(self, messages: list[bytes]) -> list[bytes]:
        """Serve messages to this site's own client.

        Raises:
            InputError: a message is for another client, or asks for what a site does not do.
        """
        for message in messages:
            plan, _ = unpack_plan(message)
            if plan.client_id != self.settings.client_id or plan.task not in ("train", "sums"):
                raise InputError(
                    f"site {self.settings.name} is client {self.settings.client_id} and trains for the federation; "
                    f"it was asked to {plan.task} as client {plan.client_id}"
                )
        return self.runtime(messages)

    @property
    def profile(self) -> dict[str, Any]:
        """What it says of itself: no label and no text."""
        settings = self.settings
        return {
            "site": settings.name,
            "client_id": settings.client_id,
            "tier": self.tier,
            "num_examples": len(self.examples),
        }


def open_site(settings: SiteSettings, job: Mapping[str, Any]) -> Site:
    """This site, ready for the job; made once in a process for as long as the job is the same.

    Raises:
        InputError: the site's data, budget or model does not fit the job.
    """
    return _open(settings, json.dumps(job, sort_keys=True))


def serve(settings: SiteSettings, job: Mapping[str, Any]) -> Handler:
    """The handler of this site's client."""
    return open_site(settings, job)  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _open(settings: SiteSettings, text: str) -> Site:
    job = json.loads(text)
    recipe, labels = parse_recipe(_own(job["recipe"], settings), "that the server sent"), tuple(job["labels"])
    found = load_splits(recipe, str(settings.data), Wanted(("train",), labels))
    model = build_model(recipe, labels)
    shape = expert_shape(recipe, model.get_base_model(), shared=recipe.method != "flame")
    blocks = tuple(adapter.block_dims(model.get_base_model(), recipe.adapter.blocks))
    tier = fitting_tier(settings.budget, recipe, shape, blocks, found.examples["train"])
    examples = cached(recipe, model, found.examples["train"])
    head = recipe.head
    runtime = ClientRuntime(
        model,
        build_method(recipe, model, shape, {}),
        make_head(head.kind),
        make_head(head.kind if head.trained else "averaged"),
        len(labels),
        examples,
        {settings.client_id: np.arange(len(examples))},
        ClientStateFiles(_state_folder(settings, job["run"])),
        lambda *_, **__: {},
    )
    return Site(settings, recipe, runtime, tier, examples)


def _own(recipe: Mapping[str, Any], settings: SiteSettings) -> dict[str, Any]:
    """The recipe with this site's paths in the place of the server's."""
    backbone = {**recipe["backbone"], **({"model": settings.model} if settings.model else {})}
    return {**recipe, "backbone": backbone, "data": {**recipe["data"], "source": str(settings.data)}}


def _state_folder(settings: SiteSettings, run: str) -> Path:
    if not run.isalnum():  # it comes from the server and becomes a folder's name here
        raise InputError(f"the server calls its run {run!r}; a name has letters and digits alone")
    folder = settings.folder / "state" / run
    folder.mkdir(parents=True, exist_ok=True)
    return folder
