"""The site is built from the docs, with every link leading somewhere, and asks nothing of any other host."""

import html
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import markdown
import pytest
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
HOOK: Any = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "site_formulas.py")))


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


# Search

# What people type, from outside of this project's own vocabulary.
SEARCHED = """
accuracy; attack; backdoor; bfloat16; builtin; causal language model; chat template; checkpoint; citation;
class imbalance; client; closed-form head; compare; confidence interval; cpu; csv; cuda; data set; differential privacy;
dirichlet; docker; early stopping; encoding; epsilon; excel; expert; export; fedavg; fedprox; firewall; gdpr; gguf; gpu;
hospital; hugging face hub; hyperparameters; image classification; image folder; install; instruction tuning; jupyter;
label skew; language model; learning rate; license; linux; llama; lora; lora rank; macos; memory; mixed precision;
mlflow; multi-gpu; named entity recognition; natural client; non-iid; notebook; offline; onnx; out of memory; parquet;
perplexity; personal adapters; pip install; pipeline; plug-in; poisoning; proxy; push a result to the hub; python 3.11;
qlora; quantization; rare classes; regression; resume; router; secure aggregation; seed; sentiment; speed; tensorboard;
text classification; token classification; trainer; vit; vllm; wandb; warm start; warm-up; weights & biases; windows;
workers; wsl
"""


def test_the_search_finds_what_people_type(site: Path):
    """In the text that the search looks through; the log of decisions is history and answers no question."""
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    texts = [
        " ".join(html.unescape(re.sub(r"<[^>]+>", " ", f"{entry['title']} {entry['text']}")).lower().split())
        for entry in entries
        if not entry["location"].startswith("LOG/")
    ]
    words = [word.strip() for word in SEARCHED.replace("\n", " ").split(";")]
    assert len(words) > 80
    assert [word for word in words if not any(re.search(rf"\b{re.escape(word)}s?\b", text) for text in texts)] == []


# Formulas


FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", flags=re.DOTALL)


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def without_formulas(page: Path) -> str:
    return FORMULA.sub("", without_code(page))


def formulas(page: Path) -> list[tuple[str, str]]:
    """(kind, LaTeX) of a page's formulas outside of code."""
    found = FORMULA.findall(without_code(page))
    return [("block", block) if block else ("inline", inline) for block, inline in found]


def as_html(text: str, file: Path) -> str:
    """A page in HTML as the site has it, with its formulas converted."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    extensions = [name for name in config.markdown_extensions if name != "toc"]
    content = markdown.markdown(text, extensions=extensions, extension_configs=config.mdx_configs or {})
    file.write_text(text)
    page = SimpleNamespace(file=SimpleNamespace(src_uri=file.name, abs_src_path=str(file)))
    return HOOK.on_page_content(content, page, config, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_formula_of_a_page_is_drawn_by_the_browser_alone(site: Path, page: Path):
    name = page.relative_to(ROOT / "docs").with_suffix("")
    built = (site / ("index.html" if name == Path("index") else f"{name}/index.html")).read_text()
    drawn = re.findall(r"<math .*?</math>", built, flags=re.DOTALL)
    assert len(drawn) == len(formulas(page))
    assert sum('display="block"' in one for one in drawn) == sum(kind == "block" for kind, _ in formulas(page))
    for one in drawn:
        ElementTree.fromstring(one)
        assert "\\" not in one
    assert not re.search(r'class="arithmatex"[^>]*>\s*\\', built)


def test_no_page_has_a_formula_in_plain_characters():
    """Formulas that a terminal would show: sums, roots and norms in characters, and on one page indented lines."""
    blocks = [kind for kind, _ in formulas(ROOT / "docs" / "math.md") if kind == "block"]
    assert len(blocks) > 20
    assert not re.findall(r"^    .*", (ROOT / "docs" / "math.md").read_text(), flags=re.MULTILINE)
    for page in PAGES:
        if page.name != "LOG.md":  # which is history
            assert not re.findall(r".*[Σ√‖ᵀ⌊⌈∈]|\w[\^_]\{.*", without_formulas(page)), page


def test_formulas_have_no_escape_that_github_would_resolve_before_it_reads_them():
    """A backslash before punctuation is Markdown's own escape."""
    for page in PAGES:
        assert [latex for _, latex in formulas(page) if re.search(r"\\[^a-zA-Z\s]", latex)] == [], page


def test_signs_of_markdown_and_html_survive_in_formulas_and_code(tmp_path: Path):
    text = (
        "With $a_i * b_j < c | d$ and `$HOME` for \\$5.\n\n$$\nx_1 * y_2 > z_3\n$$\n\n```sh\necho $$ $HOME $x$\n```\n\n"
        "| a | b |\n|---|---|\n| $p_m$ | `$p_m$` |\n"
    )
    found = as_html(text, tmp_path / "page.md")
    drawn = re.findall(r"<math .*?</math>", found, flags=re.DOTALL)
    shown = [re.sub(r"\s", "", "".join(ElementTree.fromstring(one).itertext())) for one in drawn]
    assert shown == ["ai*bj<c|d", "x1*y2>z3", "pm"]
    plain = html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<math .*?</math>", "", found, flags=re.DOTALL)))
    for kept in ("$HOME for $5", "echo $$ $HOME $x$", "$p_m$"):
        assert kept in plain
    assert "<em>" not in found


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (r"\nosuch{x}", r"\nosuch is no command"),
        (r"\frac{a", "braces"),
        (r"a}{", "braces"),
        (r"a_", "MissingSuperScriptOrSubscript"),
        (r"\left( a", "ExtraLeftOrMissingRight"),
    ],
)
@pytest.mark.parametrize("display", ["$", "$$"])
def test_a_formula_that_cannot_be_converted_ends_the_build_with_its_line(
    tmp_path: Path, wrong: str, why: str, display: str
):
    text = f"# A page\n\nA sentence with $x$.\n\n{display}{wrong}{display}\n"
    with pytest.raises(PluginError, match=r"^docs/page.md:5: the formula ") as error:
        as_html(text, tmp_path / "page.md")
    assert why in str(error.value)
