"""Describes a recipe's run as the code that uses runs sees it, and as its model card describes it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fftmoe.config import Recipe
from fftmoe.exports.card import CardFacts, CardPrivacy, CardTier, figures_of_run, model_card
from fftmoe.setup.judged import pair_loss
from fftmoe.store import KEPT_ROUND, RunFolder
from fftmoe.trained.run import BackboneOptions, FinishedRun, GenerationSample, InputFormat


def described_run(recipe: Recipe, folder: Path, adapter: Path, label_names: Sequence[str]) -> FinishedRun:
    """Return the run of a recipe, without what it is bound to.

    Args:
        folder: of the run. adapter: the folder in it with the model.
    """
    backbone, data, head = recipe.backbone, recipe.data, recipe.head
    return FinishedRun(
        folder=folder,
        adapter=adapter,
        name=recipe.name,
        method=recipe.method,
        task=backbone.task,
        label_names=tuple(label_names),
        backbone=BackboneOptions(
            model=backbone.model,
            pooling=backbone.pooling,
            quantization=backbone.quantization,
            fourier_features=recipe.fourier_features,
        ),
        inputs=InputFormat(
            max_length=data.max_length,
            text_column=data.text,
            image_column=data.image,
            prompt_column=data.prompt,
            chat_template=data.chat_template,
            words_column=data.tokens if backbone.task == "token-classification" else None,
        ),
        head=None if head is None else head.kind,
        precision=recipe.engine.precision,
        generation=generation_sample(recipe),
        pair_loss=pair_loss(recipe),
    )


def generation_sample(recipe: Recipe) -> GenerationSample | None:
    """Return how the recipe measures generated text; None if it does not."""
    wanted = recipe.evaluation.generate
    if wanted is None:
        return None
    return GenerationSample(
        wanted.examples, wanted.max_new_tokens, recipe.seed, recipe.data.chat_template, wanted.samples
    )


def described_facts(recipe: Recipe, summary: Mapping[str, Any], folder: Path, round: str = KEPT_ROUND) -> CardFacts:
    """Return what the model card of a run says about its training.

    Args:
        folder: of the run, which shows whether it was one over sites. round: see `finished_run`.
    """
    metric = summary.get("metric", "accuracy")
    if round != KEPT_ROUND and "last" in summary:
        summary = {**summary, **summary["last"], f"{metric}_by_tier": {}}
    return CardFacts(
        data_source=recipe.data.source,
        test_examples=recipe.data.test_examples,
        partition=recipe.partition.kind,
        num_clients=summary.get("num_clients"),
        clients_per_round=recipe.federation.clients_per_round,
        rounds=summary.get("rounds_completed"),
        tiers=[CardTier(tier.name, tier.fraction, tier.top_k, tier.experts) for tier in recipe.budgets],
        metric=metric,
        value=summary.get(metric),
        interval=summary.get(f"{metric}_interval"),
        by_tier=summary.get(f"{metric}_by_tier", {}),
        privacy=_card_privacy(summary.get("privacy")),
        over_sites=RunFolder(folder).over_sites,
    )


def run_card(
    recipe: Recipe, summary: Mapping[str, Any], adapter: Path, label_names: Sequence[str], round: str = KEPT_ROUND
) -> str:
    """Return the model card of a run's own adapter, which is about to be written."""
    run = described_run(recipe, adapter.parent, adapter, label_names)
    facts = described_facts(recipe, summary, adapter.parent, round)
    return model_card(run, facts, facts.how_trained(recipe.method), figures_of_run(facts, own=True))


def _card_privacy(spent: Mapping[str, Any] | None) -> CardPrivacy | None:
    """Return the promise of a run whose summary has this section `privacy`; None for a run that is not private."""
    if spent is None:
        return None
    protects, account = ("single examples", spent["examples"]) if "examples" in spent else ("clients", spent)
    if "epsilon" not in account:
        return CardPrivacy()
    return CardPrivacy(protects, account["epsilon"], account["delta"], account["adjacency"])
