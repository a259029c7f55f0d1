"""The templates: every text is escaped wherever it comes from, and a value that is missing is an error."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest

import fftmoe.report
from fftmoe.comparison.statistics import CellResult, Comparison
from fftmoe.config import parse_recipe
from fftmoe.report.draw import Column, Level, Line, bar_figure, column_figure, line_figure
from fftmoe.report.heat_map import HeatMap
from fftmoe.report.render import render
from reports import HOSTILE, comparison_page, config, report_page, rows, structure_of, summary

TEMPLATES = Path(fftmoe.report.__file__).parent / "templates"


def assert_escaped(page: str, least: int) -> None:
    """The hostile text is on the page at least `least` times, and only as text: it opens no element."""
    found = structure_of(page)
    in_attributes = sum(HOSTILE in (value or "") for _, attributes in found.elements for value in attributes.values())
    assert found.text.count(HOSTILE) + in_attributes >= least
    assert "<script" not in page


def hostile(value: Any) -> Any:
    """The same values with every string replaced."""
    if isinstance(value, Mapping):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_every_text_field_of_a_recipe_is_escaped(recipe_values: dict[str, Any]):
    recipe = hostile(parse_recipe(recipe_values, "tiny.yaml").model_dump(mode="json"))
    assert_escaped(report_page(recipe, rows(), summary()), least=8)


def test_every_text_of_a_runs_rows_and_summary_is_escaped():
    recorded = rows(HOSTILE)
    recorded[-1]["fault_counts"] = {HOSTILE: 1}
    recorded[-1]["faults"] = [{"client_id": HOSTILE, "kind": HOSTILE, "reason": HOSTILE}]
    recorded[-1]["phase_seconds"] = {HOSTILE: 2.0}
    facts = summary(HOSTILE, environment={HOSTILE: HOSTILE}, per_client_round_by_tier={HOSTILE: {"bytes_up": 1.0}})
    facts |= {f"{HOSTILE}_by_tier": {HOSTILE: 0.5}, "clients": {"tier": [HOSTILE], HOSTILE: [0.5]}}
    recipe = config(name=HOSTILE, method=HOSTILE, robustness={HOSTILE: HOSTILE}, partition={"kind": HOSTILE})
    recipe |= {"data": {"source": HOSTILE}, "evaluation": {"baselines": "off", "max_examples": HOSTILE}}
    assert_escaped(report_page(recipe, recorded, facts), least=25)


def test_every_text_of_a_private_run_is_escaped():
    recipe = config(privacy={"min_contributors": HOSTILE, "epsilon": 2.0})
    assert_escaped(report_page(recipe, rows(), summary(privacy={})), least=1)


def test_every_text_of_a_comparison_is_escaped():
    cells = (
        CellResult(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0, "failed", reason=HOSTILE, metric=HOSTILE),
        CellResult("a", "fft-moe", HOSTILE, HOSTILE, 1, "done", summary(HOSTILE), rows(HOSTILE)[2:], metric=HOSTILE),
    )
    assert_escaped(comparison_page(Comparison(HOSTILE, cells)), least=15)


def parts_of_a_page() -> dict[str, str]:
    """The output of each macro, with the hostile text in every place that takes text."""
    imports = """{% from "parts.html.j2" import alarm, cards, facts, heading, note, table %}
        {% from "figures.html.j2" import figure %}"""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    environment.filters["short"] = "{:.4g}".format
    line, level = Line(HOSTILE, [(0, 0.5), (1, 0.75)], band=[(0, 0.4, 0.6)]), Level(HOSTILE, 0.5)
    place = {"across": HOSTILE, "levels": [level]}
    drawn = {
        "lines": line_figure(HOSTILE, [line], **place, show=lambda _: HOSTILE, note=HOSTILE),
        "bars": bar_figure(HOSTILE, [(HOSTILE, 1.0, HOSTILE)]),
        "columns": column_figure(HOSTILE, [Column(0.5, 0, HOSTILE)], kinds=[HOSTILE], whose=HOSTILE, **place),
        "map": HeatMap(
            HOSTILE, HOSTILE, {(0, 0): 1.0}, [HOSTILE], [HOSTILE], HOSTILE, HOSTILE, legend=[(HOSTILE, 1.0)]
        ).figure(),
    }
    calls = {
        "alarm": "alarm([x])",
        "cards": "cards([(x, x)])",
        "facts": "facts([(x, x)])",
        "heading": "heading(x, x)",
        "note": "note(x)",
        "table": "table([x, x], [(x, x)])",
        **{name: f"figure(drawn['{name}'])" for name in drawn},
    }
    texts = {name: f"{imports}{{{{ {call} }}}}" for name, call in calls.items()}
    return {name: environment.from_string(text).render(x=HOSTILE, drawn=drawn) for name, text in texts.items()}


@pytest.mark.parametrize("name", list(parts_of_a_page()))
def test_every_part_of_a_page_escapes_what_it_shows(name: str):
    assert_escaped(parts_of_a_page()[name], least=1)


def test_no_template_turns_escaping_off():
    templates = [*TEMPLATES.glob("*.j2"), *TEMPLATES.glob("*.css")]
    assert len(templates) >= 3
    for path in templates:
        assert not re.search(r"\|\s*safe|autoescape|Markup", path.read_text()), path.name


def test_a_missing_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'sentence' is undefined"):
        render("comparison.html.j2", title="two")
