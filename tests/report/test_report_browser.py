"""The pages in a real browser: on a phone, on a desktop and on paper.

Chromium is asked for what it did with a page: what it logged, whether it looked anything up, how wide the page became.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fftmoe.comparison.statistics import CellResult, Comparison
from reports import comparison_page, config, report_page, rows, summary

CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium"),
]
WIDTHS = (320, 360, 390, 768, 1280)
LONG = "a-name-of-a-client-or-a-tier-that-somebody-made-very-long-and-that-nobody-broke-into-words"


def chromium(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run Chromium headless, without a network, with a new profile."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module", params=["run", "comparison"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything that it can have, and with long words."""
    recorded = rows()
    recorded[-1]["faults"] = [{"client_id": 6, "kind": "rejected", "reason": LONG}]
    recorded[-1]["fault_counts"] = {"rejected": 1}
    recorded = [{**row, "epsilon": 0.5 * row["round"]} for row in recorded]
    counts = {
        "name": [f"{LONG}-{n}" for n in range(12)],
        **{key: [143] * 12 for key in ("actual", "predicted")},
        "hits": [11] * 12,
        "confusion": [[11 + (row == column) for column in range(12)] for row in range(12)],
    }
    more: dict[str, Any] = {
        "labels": counts,
        "local_only_accuracy": {"mean": 0.5},
        "environment": {"platform": LONG},
        "rounds_void": 1,
    }
    recipe = config(name=LONG, robustness={"aggregator": "median"}, data={"source": f"/{LONG}/{LONG}"})
    seeds = [
        CellResult(
            f"{LONG}+{m}",
            m,
            "h",
            "iid",
            seed,
            "done",
            summary(accuracy=0.5 + seed / 9, client_seconds=1.0),
            recorded[2:],
        )
        for m in ("fft-moe", "fedit")
        for seed in range(2)
    ]
    pages = {
        "run": lambda: report_page(recipe, recorded, summary(**more)),
        "comparison": lambda: comparison_page(
            Comparison(LONG, (*seeds, CellResult("x", "x", "h", "iid", 2, "failed", reason=LONG)))
        ),
    }
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(pages[request.param]())
    return path


def test_a_page_logs_nothing_and_requests_nothing(page: Path, tmp_path: Path):
    ended, asked = opened(page, tmp_path)
    assert "CONSOLE" not in ended.stderr
    assert "</main>" in ended.stdout
    assert asked == set()


def opened(page: Path, tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """What Chromium logged about a page, and the addresses it requested, without those of its own services."""
    netlog = tmp_path / "net.json"
    ended = chromium(tmp_path, f"--log-net-log={netlog}", "--dump-dom", page.as_uri())
    urls = set(re.findall(r'"url":"(https?://[^"]+)"', netlog.read_text()))
    return ended, {url for url in urls if not re.match(r"https?://[^/]*(google|gstatic|gvt1|chrom)", url)}


def test_the_check_finds_an_error_and_a_request(tmp_path: Path):
    wrong = tmp_path / "wrong.html"
    wrong.write_text("<script>nothing()</script><img src='http://images.example/a.png'>")
    ended, asked = opened(wrong, tmp_path)
    assert "CONSOLE" in ended.stderr
    assert asked == {"http://images.example/a.png"}


def measured(page: Path, tmp_path: Path) -> dict[int, int]:
    """The page's width in a frame of each width; a window of Chromium has a minimum width, a frame has none."""
    frames = "".join(
        f'<iframe width="{w}" height="700" style="border:0" src="{page.as_uri()}"></iframe>' for w in WIDTHS
    )
    script = """onload = () => document.title = [...document.querySelectorAll('iframe')].map(
        f => f.clientWidth + ':' + f.contentDocument.documentElement.scrollWidth).join(' ')"""
    wrapper = tmp_path / "frames.html"
    wrapper.write_text(f"<!doctype html><title>none</title><script>{script}</script>{frames}")
    ended = chromium(tmp_path, "--allow-file-access-from-files", "--dump-dom", wrapper.as_uri())
    title = re.search("<title>(.*?)</title>", ended.stdout)
    assert title is not None
    return {int(width): int(became) for width, became in (pair.split(":") for pair in title[1].split())}


def test_nothing_is_wider_than_a_phone(page: Path, tmp_path: Path):
    assert measured(page, tmp_path) == {width: width for width in WIDTHS}


def test_the_check_finds_what_is_too_wide(tmp_path: Path):
    wide = tmp_path / "wide.html"
    wide.write_text('<!doctype html><body style="margin:0"><div style="width:500px">x</div>')
    assert measured(wide, tmp_path) == {320: 500, 360: 500, 390: 500, 768: 768, 1280: 1280}


def test_a_page_can_be_printed(page: Path, tmp_path: Path):
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer", page.as_uri())
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
