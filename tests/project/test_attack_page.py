"""The table of attacks on the page is what the committed command measured."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_every_attack_as_it_was_measured():
    page = (ROOT / "docs" / "security.md").read_text()
    table = page[page.index("### Attacks that were tried") : page.index("## What is not promised")]
    shown = [line for line in table.splitlines() if line.startswith(("| server |", "| site |", "| stranger |"))]
    measured = json.loads((ROOT / "benchmarks" / "results" / "attack_table.json").read_text())["attacks"]
    assert shown == [
        f"| {row['attacker']} | {row['attack']} | {row['learns']} | {row['victim']} | "
        + " | ".join(str(max(0, row[key])) if key in row else "" for key in ("connections", "MiB"))
        + " |"
        for row in measured
    ]
    assert len(measured) > 35
