"""docs/integration.md does what it says when its Python is run unchanged."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integration.md").read_text()


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_python_of_the_page_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "the_page"}
    for text in blocks_of("python"):
        exec(compile(text, "docs/integration.md", "exec"), namespace)
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
    longer, texts = namespace["longer"], namespace["texts"]
    assert longer.shape[0] == 2  # type: ignore[attr-defined]
    assert longer[:, :4].equal(texts[:2, :4])  # type: ignore[attr-defined,index]


def test_the_entry_points_of_the_page_are_those_that_are_looked_for():
    (text,) = blocks_of("toml")
    (group,) = tomllib.loads(text)["project"]["entry-points"]
    assert group == "fftmoe.methods"
    source = (ROOT / "src" / "fftmoe" / "setup" / "plugins.py").read_text()
    for kind in ("methods", "aggregators", "partitioners"):
        assert f"fftmoe.{kind}" in source
        assert f"fftmoe.{kind}" in PAGE


def test_files_that_the_page_names_exist():
    paths, tests = (re.findall(p, PAGE) for p in (r"`((?:docs|examples|tests|methods)/[\w./-]+)`", r"`(test_\w+\.py)"))
    assert len(paths) > 4
    for path in paths:
        found = ROOT / "src" / "fftmoe" / path if path.startswith("methods") else ROOT / path
        assert found.exists(), path
    for name in tests:
        assert list((ROOT / "tests").rglob(name)), name
