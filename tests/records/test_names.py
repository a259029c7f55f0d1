"""Tests that parsing inverts building of tensor names, and that no other module builds or parses one."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.records import names
from fftmoe.records.names import TensorName, parse

SOURCE = Path(__file__).parents[2] / "src" / "fftmoe"

blocks = st.integers(0, 99)
words = st.text("abcxyz_0123456789", min_size=1, max_size=5)
paths = st.lists(words, min_size=1, max_size=4).map(".".join)
tensor_names = st.one_of(
    st.builds(TensorName, st.just("blocks"), blocks, st.sampled_from(["router", "up", "down", "load", "affinity"])),
    st.builds(TensorName, st.just("shared"), blocks, paths),
    st.builds(TensorName, st.just("head"), st.just(""), paths),
    st.builds(TensorName, st.just("lora"), paths, st.sampled_from("AB")),
    st.builds(TensorName, st.just("merged"), paths, st.sampled_from(names.MERGED_PARTS)),
)


@given(tensor_names)
def test_parsing_inverts_building(name: TensorName):
    assert parse(str(name)) == name


@given(tensor_names)
def test_every_function_of_a_name_agrees_with_its_parts(name: TensorName):
    text = str(name)
    assert names.is_expert(text) is (name.family == "blocks")
    assert names.is_head(text) is (name.family == "head")
    assert names.block_of(text) == (name.owner if name.family == "blocks" else None)
    assert names.shared_block_of(text) == (name.owner if name.family == "shared" else None)
    assert names.merged_path(text) == (name.owner if name.family == "merged" else None)


@given(blocks, paths, st.sampled_from("AB"), st.sampled_from(names.MERGED_PARTS))
def test_builders_give_the_documented_parts(block: int, path: str, factor: str, part: str):
    for name, expected in zip(names.expert_tensors(block), ("router", "up", "down"), strict=True):
        assert parse(name) == TensorName("blocks", block, expected)
        assert names.module_of(name) == names.load_of_block(block)
    assert [parse(name).part for name in names.shared_tensors(block)] == ["up", "down"]
    update = names.shared_update(block, path)
    assert [parse(name) for name in names.shared_factors(update)] == [
        TensorName("shared", block, f"{path}.{side}") for side in "ab"
    ]
    assert parse(names.lora_tensor(path, factor)) == TensorName("lora", path, factor)
    assert parse(names.merged_tensor(path, part)) == TensorName("merged", path, part)
    assert parse(names.head_tensor(path)) == TensorName("head", "", path)
    assert names.block_of_load(names.load_of_block(block)) == block


@given(tensor_names)
def test_feedback_is_recognised_and_nothing_else_is(name: TensorName):
    text = str(name)
    assert names.is_feedback(names.feedback(text))
    assert names.is_feedback(names.feedback_experts(text))
    assert names.feedback(text) != names.feedback_experts(text)
    assert not names.is_feedback(text)


def test_an_unknown_name_is_an_error():
    for text in ("", "sums.gram", "feedback/head.weight"):
        with pytest.raises(ValueError, match="not the name of a tensor"):
            parse(text)


def test_names_on_the_wire_do_not_change():
    """Runs, checkpoints and sites store these names."""
    assert names.expert_tensors(1) == ("blocks.1.router", "blocks.1.up", "blocks.1.down")
    assert names.shared_tensors(2) == ("shared.2.up", "shared.2.down")
    assert names.shared_factors(names.shared_update(2, "query")) == ("shared.2.query.a", "shared.2.query.b")
    assert (names.HEAD_WEIGHT, names.HEAD_BIAS) == ("head.weight", "head.bias")
    assert names.lora_tensor("encoder.query", "A") == "lora.encoder.query.A"
    assert names.merged_tensor("encoder.query", "W") == "merged.encoder.query.W"
    assert names.feedback("head.bias") == "feedback/head.bias"
    assert names.feedback_experts("blocks.1.up") == "feedback/blocks.1.up:experts"
    assert names.moment("blocks.1.up", "v") == "blocks.1.up:v"
    assert names.scale_of("head.bias") == "head.bias:scale"
    statistics = (names.STATISTICS_GRAM, names.STATISTICS_MOMENT, names.STATISTICS_FACTOR)
    assert statistics == ("sums.gram", "sums.moment", "sums.factor")


PATTERN = re.compile(
    r"^(head|blocks|shared|sums|lora|merged)\.(?!\w+=)|^feedback/|:(scale|experts)$|^\.(up|down|router|load|affinity|scale)$"
)
SETTINGS = re.compile(
    r"^(head|lora)\.(kind|features|num_features|update|every|learning_rate|optimizer|match|targets|scale)\b"
)


def built_by_hand(source: str) -> list[str]:
    """Return the strings in a module that begin like the name of a tensor, without docstrings."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docstrings)
    texts = [n.value for n in constants if isinstance(n.value, str)]
    return [text for text in texts if PATTERN.match(text) and not SETTINGS.match(text)]


def test_no_other_module_builds_or_parses_a_name():
    others = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "records" / "names.py"]
    assert len(others) > 100
    found = {str(path.relative_to(SOURCE)): built_by_hand(path.read_text()) for path in others}
    assert {path: texts for path, texts in found.items() if texts} == {}


@pytest.mark.parametrize(
    "line",
    [
        'f"blocks.{i}.up"',
        'name.startswith("head.")',
        'x["head.weight"]',
        'f"lora.{p}.A"',
        'n.endswith(".router")',
        'x["sums.gram"]',
        'name + ":scale"',
    ],
)
def test_the_search_finds_names_that_are_built_or_parsed(line: str):
    assert built_by_hand(f"{line}\n")
    assert not built_by_hand('raise ValueError("head.kind=averaged")\n')
