"""The site is built from the docs, with every link leading somewhere, and asks nothing of any other host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path):
    pages = [path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")]
    generated = [Path("reference/commands"), Path("reference/recipe")]
    for page in [*pages, *generated]:
        place = site / ("index.html" if page == Path("index") else f"{page}/index.html")
        assert place.is_file(), page


def test_the_reference_is_that_of_the_program(site: Path):
    commands, recipe, python = (
        (site / "reference" / name / "index.html").read_text() for name in ("commands", "recipe", "python")
    )
    for verb in ("run", "resume", "compare", "export", "deploy server"):
        assert f">fftmoe {verb}<" in commands
    for key in ("adapter.num_experts", "privacy.examples.clip_norm", "budgets[].top_k"):
        assert f"<code>{key}</code>" in recipe
    for name in ("MoeAdapterConfig", "InputError", "load_backbone"):
        assert name in python


def test_nothing_is_fetched_from_elsewhere(site: Path):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 9
    for page in pages:
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"',
            page.read_text(),
        )
        assert [url for pair in loaded for url in pair if url.startswith(("http", "//"))] == [], page
