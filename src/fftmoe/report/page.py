"""The shell of a page and its simple parts: one file, no script, nothing loaded; for a phone, a desk and paper.

Whatever is passed in as text is escaped here. Parts are returned as HTML and are put together as they are.
"""

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = 8  # --c0 … --c7 of the style sheet

_LIGHT = (
    "--ink:#1b2026;--quiet:#56616d;--line:#d5dbe1;--card:#f4f6f8;--page:#fff;--warn:#8f3a00;--warn-card:#fff1e5;"
    "--c0:#1f5fa8;--c1:#c2571a;--c2:#2e7d4f;--c3:#7b4aa8;--c4:#b3263c;--c5:#0b7a83;--c6:#8a6d1b;--c7:#56616d"
)
_DARK = (
    "--ink:#e4e8ec;--quiet:#a3aeb9;--line:#3a434d;--card:#1e242a;--page:#14181c;--warn:#ffb27a;--warn-card:#3a2513;"
    "--c0:#7db4f2;--c1:#f2a26b;--c2:#7fce9c;--c3:#c6a4ec;--c4:#f58b9b;--c5:#6fd0d6;--c6:#dcc06a;--c7:#a3aeb9"
)
STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);background:var(--page);
max-width:66rem;margin:0 auto;padding:1.5rem 1rem 3rem;overflow-wrap:anywhere}}
h1{{font-size:1.6rem;line-height:1.2;margin:0 0 .3rem}}
h2{{font-size:1.2rem;margin:2.2rem 0 .5rem;padding-top:.8rem;border-top:1px solid var(--line)}}
h3{{font-size:1rem;margin:1.4rem 0 .4rem}}
p{{margin:.4rem 0;max-width:46rem}}
.note,figcaption,.legend{{color:var(--quiet);font-size:.875rem}}
.alarm{{background:var(--warn-card);color:var(--warn);border-left:4px solid;padding:.5rem .8rem;margin:.8rem 0}}
.alarm p{{margin:.1rem 0}}
.cards{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,9.5rem),1fr));gap:.6rem;margin:1rem 0;
padding:0;list-style:none}}
.cards li{{background:var(--card);border-radius:.5rem;padding:.6rem .65rem}}
.cards b{{display:block;font-size:1.15rem;line-height:1.3;font-variant-numeric:tabular-nums}}
.cards li:first-child{{grid-column:span 2}}
.cards li:first-child b{{color:var(--c0);font-size:2rem;line-height:1.15}}
.cards span{{color:var(--quiet);font-size:.85rem;line-height:1.35;display:block}}
.figures{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.2rem 2rem;
align-items:start;margin:.8rem 0 1.2rem}}
figure{{margin:0;max-width:34rem;min-width:0}}
figcaption{{color:var(--ink);font-weight:600;margin-bottom:.2rem}}
svg{{display:block;width:100%;height:auto;font:11px system-ui,sans-serif;fill:currentColor;overflow:visible}}
.legend{{display:flex;flex-wrap:wrap;gap:.1rem .9rem;margin:.2rem 0 0;padding:0;list-style:none}}
.legend svg{{display:inline-block;width:1.6rem;height:.7rem;margin-right:.35rem;vertical-align:baseline}}
.legend .small{{width:.7rem}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.925rem}}
th,td{{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}}
thead th{{color:var(--quiet);font-weight:600;overflow-wrap:break-word}}
tbody th{{font-weight:600;min-width:6rem}}
dl{{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.2rem 1rem;margin:.6rem 0;font-size:.925rem}}
dt{{color:var(--quiet)}}
dd{{margin:0}}
pre{{background:var(--card);border-radius:.5rem;padding:.8rem;font:.8rem/1.45 ui-monospace,Menlo,Consolas,monospace;
white-space:pre-wrap}}
code{{font:.9em ui-monospace,Menlo,Consolas,monospace}}
@media (max-width:40rem){{
thead{{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}}
table,tbody{{display:block}}
tr{{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));padding:.5rem 0;
border-bottom:1px solid var(--line)}}
th,td{{display:block;border:0;padding:.1rem .6rem .1rem 0}}
tbody th{{grid-column:1/-1}}
td[data-of]::before{{content:attr(data-of);display:block;color:var(--quiet);font-size:.78rem;line-height:1.2}}
}}
@media print{{
body{{max-width:none;padding:0;font-size:10.5pt}}
h2,h3{{break-after:avoid}}
figure,tr,.cards,.alarm,dl{{break-inside:avoid}}
.cards li,.alarm,.legend svg,svg{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
.figures{{grid-template-columns:1fr 1fr}}
pre{{font-size:7.5pt;columns:2}}
}}
"""


def page(title: str, body: str) -> str:
    """A whole page around the parts of its body."""
    # An empty picture keeps browsers from asking for an icon.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def heading(title: str, sentence: str) -> str:
    """The page's title, and in one sentence what it is about."""
    return f"<header><h1>{escape(title)}</h1>{paragraph(sentence)}</header>"


def section(title: str, *parts: str) -> str:
    """Parts under a heading; nothing where every part is empty."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n" if body else ""


def subsection(title: str, *parts: str) -> str:
    """Parts under a lesser heading; nothing where every part is empty."""
    body = "".join(parts)
    return f"<h3>{escape(title)}</h3>{body}" if body else ""


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph, or a quiet one."""
    quiet = ' class="note"' if note else ""
    return f"<p{quiet}>{escape(text)}</p>" if text else ""


def alarm(lines: Sequence[str]) -> str:
    """What must not be overlooked; nothing where there are no lines."""
    inside = "".join(map(paragraph, lines))
    return f'<div class="alarm" role="note">{inside}</div>' if lines else ""


def cards(values: Sequence[tuple[str, str]]) -> str:
    """(value, what it is), the most important first."""
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(text)}</span></li>" for value, text in values)
    return f'<ul class="cards">{items}</ul>'


def facts(values: Mapping[str, object]) -> str:
    """Names with their values."""
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in values.items())
    return f"<dl>{pairs}</dl>" if pairs else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows; on a phone every row stands alone. Nothing without rows."""
    if not rows:
        return ""
    # With `display: block` browsers forget what a table is, so every part says it.
    head = "".join(f'<th role="columnheader" scope="col">{escape(text)}</th>' for text in header)
    body = "".join(f'<tr role="row">{_row(header, row)}</tr>' for row in rows)
    return (
        f'<table role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table>'
    )


def _row(header: Sequence[str], row: Sequence[str]) -> str:
    first, *others = row
    cells = zip(header[1:], others, strict=True)
    return f'<th role="rowheader" scope="row">{escape(first)}</th>' + "".join(
        f'<td role="cell" data-of="{escape(name)}">{escape(text)}</td>' for name, text in cells
    )


def figures(*drawn: str) -> str:
    """Figures side by side where there is room."""
    inside = "".join(drawn)
    return f'<div class="figures">{inside}</div>' if inside else ""


def preformatted(text: str) -> str:
    """Text as it is typed."""
    return f"<pre>{escape(text)}</pre>"
