"""`comparison.html`: the tables and curves of a comparison in one file that needs no network."""

import html
import io
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fftmoe.report.comparison import CellResult, Comparison, curve, distinct, head_of
from fftmoe.report.comparison_tables import Table, failures, tables

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
td,th{{padding:.2rem 1rem .2rem 0;text-align:left;white-space:nowrap}}
p.note{{color:#555;margin:.2rem 0;font-size:.9rem}}div{{overflow-x:auto}}svg{{max-width:100%;height:auto}}</style>
<h1>{title}</h1>
{tables}
<h2>Accuracy against rounds and bytes</h2><p class="note">Mean over seeds; the band is lowest to highest.</p>
{curves}
{failures}
</html>
"""


def comparison_page(comparison: Comparison) -> str:
    """The text of the page."""
    cells = comparison.cells
    curves = "".join(
        f"<h3>{html.escape(partition)}</h3>{_svg(_curves(cells, partition))}"
        for partition in distinct(cell.partition for cell in cells if cell.rows)
    )
    reasons = "".join(f"<li>{html.escape(line)}</li>" for line in failures(comparison))
    return _PAGE.format(
        title=html.escape(f"{comparison.name}, compared"),
        tables="".join(map(_table, tables(comparison))),
        curves=curves or "<p>No cell has finished yet.</p>",
        failures=f"<h2>Failed</h2><ul>{reasons}</ul>" if reasons else "",
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table.header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in table.rows)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    return f"<h2>{html.escape(table.title)}</h2><div><table><tr>{head}</tr>{body}</table></div>{notes}"


def _curves(cells: Sequence[CellResult], partition: str) -> Figure:
    """A colour for every method, a line style for every head."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    variants = distinct(cell.variant for cell in cells)
    heads = distinct(cell.head for cell in cells)
    looks = _looks(cells, variants)
    for variant in variants:
        points = curve(cells, variant, partition)
        if not points:
            continue
        style = ("-", "--", ":", "-.")[heads.index(head_of(cells, variant)) % 4]
        accuracies = [p.accuracy for p in points]
        for axes, across in ((left, [p.round for p in points]), (right, [p.bytes / 2**20 for p in points])):
            axes.plot(across, accuracies, style, marker=".", color=looks[variant], label=variant, linewidth=1.3)
            axes.fill_between(
                across, [p.low for p in points], [p.high for p in points], color=looks[variant], alpha=0.12, linewidth=0
            )
    _label(left, right)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _looks(cells: Sequence[CellResult], variants: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The methods' colours; variants of one method and head each get their own."""
    method_of = {cell.variant: (cell.method, cell.head) for cell in cells}
    plain = len(set(method_of.values())) == len(variants)
    keys = {variant: method_of[variant][0] if plain else variant for variant in variants}
    order = distinct(keys.values())
    colours = colormaps["tab10" if len(order) <= 10 else "tab20"]
    return {variant: colours(order.index(key) % colours.N) for variant, key in keys.items()}


def _label(left: Axes, right: Axes) -> None:
    left.set(xlabel="round", ylabel="accuracy")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="MiB up and down")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
