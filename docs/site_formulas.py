"""Turn the formulas of a page into MathML when the site is built, so that a browser draws them without JavaScript.

Pages write formulas in LaTeX, `$…$` in a sentence and `$$…$$` as a block, which GitHub shows as well. The Markdown
extension arithmatex finds them (not in code), and latex2mathml converts them.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Convert the formulas of a page; mkdocs calls this function with the page in HTML.

    Raises:
        PluginError: a formula cannot be converted; the message names its file and its line.
    """

    def converted(found: re.Match[str], display: str) -> str:
        latex = html.unescape(found[1])
        try:
            formula = mathml(latex, display)
        except ValueError as error:
            place = f"docs/{page.file.src_uri}:{line_of(latex, Path(page.file.abs_src_path).read_text('utf-8'))}"
            raise PluginError(f"{place}: the formula {latex.strip()!r} cannot be converted: {error}") from error
        return formula if display == "inline" else f'<div class="arithmatex" style="margin: 1em 0">{formula}</div>'

    content = BLOCK.sub(lambda found: converted(found, "block"), content)
    return INLINE.sub(lambda found: converted(found, "inline"), content)


def mathml(latex: str, display: str) -> str:
    """Return a formula in LaTeX as MathML.

    Args:
        latex: without the dollar signs.
        display: "block" or "inline".

    Raises:
        ValueError: a command is not known, braces do not match, or a part of the formula is missing.
    """
    _check_braces(latex)
    try:
        found = convert(latex.strip(), display=display)
    except Exception as error:  # the library has an exception of its own for each mistake, and a base for none
        raise ValueError(f"{type(error).__name__} {error}".strip()) from error
    unknown = re.search(r"\\[a-zA-Z]*", html.unescape(found))  # the library shows what it does not know as it is
    if unknown:
        raise ValueError(f"{unknown[0]} is no command that latex2mathml knows")
    return found


def _check_braces(latex: str) -> None:
    """Refuse braces that do not match, which the library completes or shows."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", latex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            break
    if depth:
        raise ValueError("its braces do not match")


def line_of(latex: str, source: str) -> int:
    """The line of a page on which a formula begins, from 1."""
    return source[: max(0, source.find(latex.strip()))].count("\n") + 1
