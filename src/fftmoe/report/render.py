"""Makes pages from templates: Python passes plain values, and `templates/` holds all markup.

Everything that is passed in is escaped (`autoescape`, and `shown` for characters that could act on a page), and a value
that a template names but nobody passed is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fftmoe.report.numbers import csv_of, numbers_in
from fftmoe.report.record import with_noun
from fftmoe.shown import shown


def render(template: str, **values: Any) -> str:
    """Return the text of a page from one of the templates; the page loads nothing from any other file or host."""
    return page_templates().get_template(template).render(values)


@dataclass(frozen=True)
class Page:
    """Holds a page, and the CSV file beside it that has the numbers of its figures and tables."""

    html: str
    csv: str


def render_page(template: str, values: Mapping[str, Any]) -> Page:
    """Return a page and its numbers from the same values, so that no figure is without its numbers."""
    return Page(render(template, **values), csv_of(numbers_in(values)))


def csv_beside(page: Path) -> Path:
    """Return where the numbers of a page are: `report.html` has `report-figures.csv` beside it."""
    return page.with_name(f"{page.stem}-figures.csv")


def _finalized(value: Any) -> Any:
    """Return a text from data, a recipe or a site in a form that cannot reorder the page;
    markup is from the templates.
    """
    return shown(value) if type(value) is str else value


@cache
def page_templates() -> Environment:
    """Return the templates of all pages, which escape every value."""
    loaded = Environment(
        loader=PackageLoader("fftmoe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    loaded.filters["short"] = "{:.4g}".format
    loaded.filters["with_noun"] = with_noun
    return loaded
