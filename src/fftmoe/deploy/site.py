"""A site's part of a federation: its own data, its own budget, and the state that never leaves it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe import adapter
from fftmoe.backbones import fingerprint
from fftmoe.client.runtime import ClientRuntime
from fftmoe.client.screening import Agreement, screen_plan
from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import Examples, Wanted
from fftmoe.deploy.job import read_job
from fftmoe.errors import InputError
from fftmoe.setup.build import build_method, build_model, expert_shape, fit_budgets, make_loss, pool_size
from fftmoe.setup.compose import cached, tokens_per_example, training_of
from fftmoe.setup.forecast import site_tier
from fftmoe.setup.load import load_splits
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
    agreed: Agreement
    examples: Examples

    def __call__(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Serve messages to this site's own client.

        Raises:
            InputError: a message is for another client, or asks for what the site has not agreed to.
        """
        for message in messages:
            screen_plan(message, self.agreed)
        return self.runtime(messages)

    @property
    def profile(self) -> dict[str, Any]:
        """What it says of itself: no label and no text."""
        settings = self.settings
        return {
            "site": settings.name,
            "client_id": settings.client_id,
            "tier": self.agreed.tier,
            "num_examples": len(self.examples),
            "backbone": fingerprint(self.runtime.model),
        }


def open_site(settings: SiteSettings, job: Mapping[str, Any]) -> Site:
    """This site, ready for the job; made once in a process for as long as the job is the same.

    Raises:
        InputError: the site's data, budget or model does not fit the job.
    """
    return _open(settings, json.dumps(job, sort_keys=True))


@lru_cache(maxsize=1)
def _open(settings: SiteSettings, text: str) -> Site:
    job = read_job(json.loads(text))
    recipe, labels = parse_recipe(_own(job["recipe"], settings), "that the server sent"), tuple(job["labels"])
    folder = _state_folder(settings, job["run"])
    found = load_splits(recipe, str(settings.data), Wanted(("train",), labels or None))
    model = build_model(recipe, labels)
    shape = expert_shape(recipe, model.get_base_model(), shared=recipe.method != "flame")
    blocks = tuple(adapter.block_dims(model.get_base_model(), recipe.adapter.blocks))
    own = found.examples["train"]
    tier = site_tier(settings.budget, recipe, shape, blocks, len(own), tokens_per_example(own, model))
    agreed = agreement(recipe, model, settings.client_id, tier)
    examples = cached(recipe, model, found.examples["train"])
    runtime = ClientRuntime(
        model,
        build_method(recipe, model, shape, {}),
        make_loss(recipe),
        len(labels),
        examples,
        {settings.client_id: np.arange(len(examples))},
        ClientStateFiles(folder),
        lambda *_, **__: {},
    )
    return Site(settings, recipe, runtime, agreed, examples)


def agreement(recipe: Recipe, model: Any, client_id: int, tier: str) -> Agreement:
    """What a site agrees to by joining, with a model that has not been trained yet."""
    backbone = model.get_base_model()
    shape = expert_shape(recipe, backbone, shared=recipe.method != "flame")
    return Agreement(
        client_id=client_id,
        tier=tier,
        training=training_of(recipe),
        blocks=tuple(adapter.block_dims(backbone, recipe.adapter.blocks)),
        num_experts=pool_size(recipe, backbone),
        longest=max(size for p in model.parameters() if p.requires_grad for size in p.shape),
        fit=lambda budget: fit_budgets(recipe, model, [replace(budget, rank=0)], shape)[0],
    )


def _own(recipe: Mapping[str, Any], settings: SiteSettings) -> dict[str, Any]:
    """The recipe with this site's paths in the place of the server's."""
    for section in ("backbone", "data"):
        if not isinstance(recipe.get(section), dict):
            raise InputError(f"the recipe that the server sent has no section {section}")
    backbone = {**recipe["backbone"], **({"model": settings.model} if settings.model else {})}
    return {**recipe, "backbone": backbone, "data": {**recipe["data"], "source": str(settings.data)}}


def _state_folder(settings: SiteSettings, run: str) -> Path:
    folder = settings.folder / "state" / run
    folder.mkdir(parents=True, exist_ok=True)
    return folder
