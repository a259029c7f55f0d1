"""The cells of a comparison: their recipes, their order, and the comparisons that are refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from comparisons import assert_refused, with_grid
from fftmoe.config import HeadSection, Recipe, apply_override
from fftmoe.config.partition import PartitionSection
from fftmoe.data.partition import KINDS
from fftmoe.errors import InputError
from fftmoe.methods.registry import METHODS
from fftmoe.setup.cells import Variant, make_grid
from fftmoe.setup.partition_text import partition_label, partition_section
from shared_fixtures import Cli


def head_of(recipe: Recipe) -> HeadSection:
    assert recipe.head is not None
    return recipe.head


@pytest.fixture(scope="module")
def grid_values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    return with_grid(recipe_values)


def test_all_cells_of_a_seed_come_before_the_next(grid_values: dict[str, Any]):
    grid = make_grid(grid_values, {})
    assert [cell.name for cell in grid.cells] == [
        f"fft-moe+{head}, {partition}, seed {seed}"
        for seed in (0, 1)
        for partition in ("iid", "shards:1")
        for head in ("averaged", "one-vs-all")
    ]
    first, last = grid.cells[0].recipe, grid.cells[-1].recipe
    assert (head_of(first).kind, first.seed, first.partition.kind, first.partition.num_clients) == (
        "averaged",
        0,
        "iid",
        7,
    )
    assert first.partition.alpha is None  # the recipe's own, of another kind, is gone
    assert (head_of(last).kind, last.seed, last.partition.shards_per_client) == ("one-vs-all", 1, 1)
    assert (first.trackers, first.evaluation.local_only, first.engine.workers) == ([], False, 1)
    assert grid.cells[-1].path == Path("shards-1/fft-moe+one-vs-all/seed-1")


def test_flags_win_over_the_section_and_overrides_apply_in_order(grid_values: dict[str, Any]):
    overrides = {
        "+averaged": {"federation.learning_rate": 0.1, "federation.batch_size": 2, "head.learning_rate": 0.3},
        "fft-moe": {"federation.learning_rate": 0.2, "federation.batch_size": 3},
        "fft-moe+averaged": {"federation.learning_rate": 0.3},
        "fft-moe+one-vs-all": {"budgets.small.top_k": 2},
    }
    values = {**grid_values, "compare": {**grid_values["compare"], "overrides": overrides}}
    flags = {"methods": ["fft-moe+averaged", "fft-moe+one-vs-all"], "partitions": ["dirichlet:2"], "seeds": [7]}
    averaged, one_vs_all = make_grid(values, flags, overrides={"federation.rounds": 1}).cells
    assert (averaged.seed, averaged.recipe.partition.alpha, averaged.recipe.federation.rounds) == (7, 2.0, 1)
    federation = averaged.recipe.federation
    assert (federation.learning_rate, federation.batch_size, head_of(averaged.recipe).learning_rate) == (0.3, 3, 0.3)
    assert one_vs_all.recipe.federation.learning_rate == 0.2
    assert [budget.top_k for budget in one_vs_all.recipe.budgets] == [2, 2]
    assert values["budgets"][0]["top_k"] == 1  # the caller's values are as they were
    won = make_grid(values, flags, overrides={"federation.learning_rate": 0.5, "head.kind": "one-vs-all"}).cells
    assert [cell.recipe.federation.learning_rate for cell in won] == [0.5, 0.5]
    assert [head_of(cell.recipe).kind for cell in won] == ["averaged", "one-vs-all"]  # a label says what was run


@pytest.mark.parametrize("name", ["quickstart", "banking77", "agnews"])
def test_a_shipped_recipe_can_be_compared_by_every_head_as_the_readme_says(name: str):
    flags = {
        "methods": ["fft-moe", "fedit", "hetlora"],
        "heads": ["averaged", "one-vs-all", "closed-form"],
        "partitions": ["iid", "dirichlet:0.1", "shards:1"],
    }
    assert len(make_grid(name, flags).cells) == 3 * 3 * 3 * 3


def test_a_closed_form_head_takes_its_features_from_the_section(grid_values: dict[str, Any]):
    overrides = {"+closed-form": {"head.features": "fourier"}, "fft-moe+closed-form": {"head.update": "frozen"}}
    values = {**grid_values, "compare": {"overrides": overrides}}
    flags = {"heads": ["closed-form", "averaged"], "partitions": ["iid"], "seeds": 1}
    own = {**flags, "methods": ["fft-moe", "fedit", "head-only+averaged"]}
    heads = {cell.variant: head_of(cell.recipe) for cell in make_grid(values, own).cells}
    assert {label: (head.features, head.update) for label, head in heads.items()} == {
        "fft-moe+closed-form": ("fourier", "frozen"),
        "fft-moe+averaged": ("linear", "recomputed"),
        "fedit+closed-form": ("fourier", "recomputed"),
        "fedit+averaged": ("linear", "recomputed"),
        "head-only+averaged": ("linear", "recomputed"),
    }


@pytest.mark.parametrize(
    ("partitions", "chosen"),
    [(["shards:1", "iid"], "iid"), (["shards:1", "dirichlet:1"], "shards:1"), (None, "dirichlet:1.0")],
)
def test_centralized_runs_once_per_seed(recipe_values: dict[str, Any], partitions: list[str] | None, chosen: str):
    flags = {"methods": ["fft-moe", "centralized"], "heads": ["averaged", "one-vs-all"], "partitions": partitions}
    cells = make_grid(recipe_values, {**flags, "seeds": 2}).cells
    assert [(c.variant, c.partition, c.seed) for c in cells if c.recipe.method == "centralized"] == [
        (f"centralized+{head}", chosen, seed) for seed in (0, 1) for head in ("averaged", "one-vs-all")
    ]
    others = [cell for cell in cells if cell.recipe.method == "fft-moe"]
    assert len(others) == 4 * len(partitions or [chosen])


@pytest.mark.parametrize("how", ["the recipe's", "overridden", "a variant's"])
def test_centralized_is_recognised_in_every_form(recipe_values: dict[str, Any], how: str):
    values = {**recipe_values, "method": "centralized"} if how == "the recipe's" else recipe_values
    overrides = {"method": "centralized"} if how == "overridden" else None
    variants = [Variant("all", {"method": "centralized"})] if how == "a variant's" else None
    flags = {"partitions": ["shards:1", "iid"], "seeds": 1}
    (only,) = make_grid(values, flags, variants, overrides).cells
    assert (only.partition, only.recipe.method) == ("iid", "centralized")


def test_missing_choices_come_from_the_recipe(recipe_values: dict[str, Any]):
    cells = make_grid(recipe_values, {}).cells
    assert [cell.name for cell in cells] == [f"fft-moe+one-vs-all, dirichlet:1.0, seed {seed}" for seed in (0, 1, 2)]
    asked = make_grid(recipe_values, {}, overrides={"evaluation.local_only": True, "trackers": ["tensorboard"]})
    assert asked.cells[0].recipe.evaluation.local_only
    assert asked.cells[0].recipe.trackers == ["tensorboard"]


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("iid", {"kind": "iid", "num_clients": 7, "min_examples": 3}),
        ("dirichlet:0.1", {"kind": "dirichlet", "alpha": 0.1, "num_clients": 7, "min_examples": 3}),
        ("shards:2", {"kind": "shards", "shards_per_client": 2, "num_clients": 7, "min_examples": 3}),
        ("natural:author", {"kind": "natural", "by": "author", "min_examples": 3}),
        ("plugin:by-rank", {"kind": "plugin:by-rank", "num_clients": 7, "min_examples": 3}),
        (
            "bernoulli-dirichlet:0.3:0.5",
            {
                "kind": "bernoulli-dirichlet",
                "alpha": 0.3,
                "holder_fraction": 0.5,
                "num_clients": 7,
                "min_examples": 3,
            },
        ),
    ],
)
def test_a_partition_can_be_written_as_text(text: str, section: dict[str, Any]):
    base = {"kind": "dirichlet", "alpha": 1.0, "by": "x", "num_clients": 7, "min_examples": 3}
    assert partition_section(text, base) == section
    assert partition_label(PartitionSection(**section)) == text


def test_natural_alone_stands_for_the_natural_clients_of_the_recipe():
    base = {"kind": "natural", "by": "ward", "num_clients": 7, "min_examples": 3}
    assert partition_section("natural", base) == {"kind": "natural", "by": "ward", "min_examples": 3}
    for other in ({**base, "kind": "iid"}, {**base, "by": None}, {"num_clients": 7}):
        with pytest.raises(InputError, match="write it like natural:"):
            partition_section("natural", other)


def test_a_comparison_may_keep_the_partition_of_a_plugin(recipe_values: dict[str, Any]):
    values = {**recipe_values, "partition": {"kind": "plugin:by-rank", "num_clients": 7}}
    [cell, *_] = make_grid(values, {}).cells
    assert (cell.partition, cell.recipe.partition.kind) == ("plugin:by-rank", "plugin:by-rank")


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_knows_every_kind_of_partition_and_a_message_shows_how_to_type_it(kind: str):
    assert PartitionSection(kind=kind).kind == kind
    example = KINDS[kind].example
    assert partition_section(example, {"num_clients": 7})["kind"] == kind
    with pytest.raises(InputError, match=re.escape(f"write it like {example}")):
        partition_section(f"{kind}:1:2:3", {"num_clients": 7})


def test_an_override_reaches_lists_and_makes_sections():
    values: dict[str, Any] = {"budgets": [{"name": "small", "top_k": 1}]}
    apply_override(values, "budgets.small.top_k", 2)
    apply_override(values, "budgets.0.experts", 3)
    apply_override(values, "engine.workers", 1)
    assert values == {"budgets": [{"name": "small", "top_k": 2, "experts": 3}], "engine": {"workers": 1}}
    for key in ("budgets.large.top_k", "engine.workers.x"):
        with pytest.raises(InputError, match="not a section"):
            apply_override(values, key, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "fft-mo"), ("for the cell fft-mo+one-vs-all", "method is 'fft-mo'")),
        (("--heads", "averagd"), ("head.kind is 'averagd'", "did you mean 'averaged'")),
        (("--methods", "fft-moe+best"), ("head.kind is 'best'",)),
        (("--partitions", "dirichlt:0.1"), ("'dirichlt' is not known", "did you mean 'dirichlet'")),
        (("--partitions", "dirichlet"), ("takes alpha", "write it like dirichlet:0.1")),
        (("--partitions", "shards:2:3"), ("takes shards_per_client", "shards:2")),
        (("--partitions", "iid:3"), ("takes no value",)),
        (("--partitions", "dirichlet:-1"), ("dirichlet:-1", "partition.alpha", "-1")),
        (("--partitions", "shards:few"), ("partition.shards_per_client", "'few'")),
        (("--partitions", "iid,iid"), ("iid, iid", "name each once")),
        (("--methods", "fft-moe,fft-moe"), ("are the same", "name each once")),
        (("--methods", ""), ("nothing to compare", "at least one")),
        (("--seeds", "0"), ("nothing to compare",)),
        (("--seeds", ""), ("nothing to compare",)),
        (("--seeds", "some"), ("--seeds some", "3 or 0,1,2")),
        (("--seeds", "1,1"), ("are the same",)),
        (("--workers", "many"), ("--workers many", "auto")),
        (("--workers", "0"), ("--workers 0",)),
        (("--target", "90"), ("target 90 is above the largest possible accuracy", "at most 1")),
        (("--target", "-1"), ("compare.target", "-1")),
        (("--set", "federation.roundz=3"), ("federation.roundz", "did you mean 'rounds'")),
        (("--set", "federation.rounds"), ("--set", "section.key=value")),
        (("--set", "seed.x=3"), ("seed.x=3", "not a section")),
        (("--set", "seed=3"), ("seed=3", "--seeds 0,1,2")),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    cli: Cli, recipe_file: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
):
    assert_refused(cli("compare", recipe_file, "--output", tmp_path / "out", *arguments), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"seed": 3}, ("'compare.seed'", "did you mean 'seeds'")),
        ({"seeds": "three"}, ("compare.seeds", "'three'")),
        ({"overrides": {"fft-mo": {}}}, ("method 'fft-mo'", "did you mean 'fft-moe'")),
        ({"overrides": {"+closed-from": {}}}, ("head 'closed-from'", "did you mean 'closed-form'")),
        ({"overrides": {"fft-moe+avergaed": {}}}, ("head 'avergaed'", "did you mean 'averaged'")),
        ({"overrides": {"fft-moe+": {}}}, ("'fft-moe+'", "head ''", "closed-form")),
        ({"overrides": {"fft-moe": {"federation.roundz": 3}}}, ("fft-moe+one-vs-all, ", "did you mean 'rounds'")),
        ({"overrides": {"fft-moe": {"partition.num_clients": 5}}}, ("partition.num_clients", "for all")),
        (3, ("compare is 3", "section")),
    ],
)
def test_a_wrong_compare_section_is_refused(
    cli: Cli, recipe_values: dict[str, Any], tmp_path: Path, section: Any, words: tuple[str, ...]
):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe_values, "compare": section}))
    assert_refused(cli("compare", tmp_path / "r.yaml", "--output", tmp_path / "out"), *words)


def test_a_partition_by_clients_needs_their_number(recipe_values: dict[str, Any]):
    natural = {**recipe_values, "partition": {"kind": "natural", "by": "author"}}
    assert [cell.partition for cell in make_grid(natural, {"seeds": 1}).cells] == ["natural:author"]
    with pytest.raises(InputError, match=r"add partition\.num_clients"):
        make_grid(natural, {"partitions": ["iid"]})


@pytest.fixture(scope="module")
def written_out(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """A recipe with every value, as a run folder has it: a solved head, server momentum, and the best round kept."""
    data = {**recipe_values["data"], "validation": 0.2}
    short = {"data": data, "backbone": recipe_values["backbone"], "name": "short"}
    return make_grid(short, {"seeds": 1}).cells[0].config


@pytest.mark.parametrize("method", [name for name in METHODS if name != "local-only"])
def test_every_method_stands_beside_another_in_a_recipe_with_all_values(method: str, written_out: dict[str, Any]):
    assert (written_out["federation"]["server_optimizer"], written_out["head"]["update"]) == ("momentum", "recomputed")
    methods = list(dict.fromkeys(("fft-moe", method)))
    cells = make_grid(written_out, {"methods": methods, "seeds": 1}).cells
    first, last = cells[0], cells[-1]
    assert first.config == written_out | {"trackers": [], "engine": first.config["engine"]}
    assert first.fitted == ()
    can = METHODS[method].capabilities
    assert last.recipe.federation.server_optimizer == ("momentum" if can.server_optimizer else "sgd")
    assert head_of(last.recipe).update == ("frozen" if method == "head-only" else "recomputed")
    assert last.recipe.evaluation.keep == ("last" if can.personal else "best")
    assert len(last.fitted) == (not can.server_optimizer) + (method == "head-only") + can.personal
    assert all(f"method {method} " in note for note in last.fitted)


def test_what_is_named_for_a_cell_itself_stays_and_is_refused(written_out: dict[str, Any]):
    flags = {"methods": ["head-only"], "seeds": 1}
    with pytest.raises(InputError, match=r"changes no features.*head.update=frozen"):
        make_grid(written_out, flags, overrides={"head.update": "recomputed"})
    values = {**written_out, "compare": {"overrides": {"hetlora": {"federation.server_optimizer": "adam"}}}}
    with pytest.raises(InputError, match="hetlora has no server optimizer"):
        make_grid(values, flags | {"methods": ["hetlora"]})


def test_a_solved_heads_recipe_can_be_compared_with_trained_heads(written_out: dict[str, Any]):
    assert written_out["head"]["learning_rate"] is None
    flags = {"methods": ["fft-moe", "local-only+averaged"], "heads": ["averaged", "closed-form"], "seeds": 1}
    assert [cell.variant for cell in make_grid(written_out, flags).cells] == [
        "fft-moe+averaged",
        "fft-moe+closed-form",
        "local-only+averaged",
    ]


def test_variants_stand_beside_every_method_and_head(written_out: dict[str, Any], cli: Cli, tmp_path: Path):
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(written_out))
    options = ("--variant", "wide: adapter.expert_dim=9 federation.rounds=1", "--variant", "'slow': name='a b'")
    told = cli("compare", tmp_path / "all.yaml", "--methods", "fft-moe,plugin:absent", *options)
    assert_refused(told, "plugin:absent")  # after the variants have been read
    changes = {"wide": {"adapter.expert_dim": 9, "federation.rounds": 1}, "slow": {"federation.learning_rate": 1e-4}}
    cells = make_grid(written_out, {"methods": ["fft-moe", "head-only"], "seeds": 1, "changes": changes}).cells
    assert [(cell.variant, cell.recipe.adapter.expert_dim, cell.recipe.federation.learning_rate) for cell in cells] == [
        (f"{method}+closed-form{name}", dim, rate)
        for method in ("fft-moe", "head-only")
        for name, dim, rate in (("", 4, 2e-3), (", wide", 9, 2e-3), (", slow", 4, 1e-4))
    ]
    same = make_grid({**written_out, "compare": {"variants": changes}}, {"seeds": 1}).cells
    assert [cell.variant for cell in same] == [f"fft-moe+closed-form{name}" for name in ("", ", wide", ", slow")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adapter.expert_dim=9", "write a label"),
        ("wide:", "write a label"),
        ("wide: 'adapter.expert_dim=9", "close every quotation mark"),
        ("wide: adapter.expert_dim", "adapter.expert_dim"),
        ("other: method=fedit", "name it with --methods"),
        ("other: head.kind=averaged", "name it with --heads"),
        ("other: partition.num_clients=3", "must be equal for all variants"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(text: str, words: str, cli: Cli, recipe_file: Path):
    assert_refused(cli("compare", recipe_file, "--variant", text), words)
