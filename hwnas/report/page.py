"""One HTML file that needs nothing else: text, tables, plots as JSON, and the library that draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from hwnas.core.files import write_text
from hwnas.report.figures import Figure

_STYLE = """
:root { --ink: #1d2733; --soft: #5b6b7c; --line: #e4e9ef; --page: #f6f8fa; --accent: #2463eb; }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 28px; margin: 0 0 4px } h2 { font-size: 18px; margin: 0 0 6px }
p { margin: 0 0 10px; color: var(--soft); max-width: 75ch }
section { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin: 18px 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line) }
th, td { padding: 6px 14px 6px 0 }
td { border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere }
.scroll { overflow-x: auto } .passed { color: #12805c; font-weight: 600 } .failed { color: #c2410c; font-weight: 600 }
code { font-size: 13px; overflow-wrap: anywhere }
"""

_DRAW = """
for (const source of document.querySelectorAll('script[type="application/json"]')) {
  const figure = JSON.parse(source.textContent);
  const place = document.getElementById(source.id + '-plot');
  Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displaylogo: false});
}
"""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, then a plot, a table, or both.

    Attributes:
        name: the plot's identifier in the page.
        rows: table cells, the first row its head.
    """

    name: str
    title: str
    text: str
    plot: Figure | None = None
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)


def write_page(path: str | Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page; raises `InputError` where it cannot be written."""
    from plotly.offline import get_plotlyjs

    body = "".join(_section(section) for section in sections)
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body><main><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{body}</main>"
        f"<script>{_DRAW}</script></body></html>\n",
    )


def read_figures(path: str | Path) -> Mapping[str, Figure]:
    """The plots of a page by name, as they were written."""
    figures = {}
    for part in Path(path).read_text(encoding="utf-8").split('<script type="application/json" id="')[1:]:
        name, rest = part.split('">', 1)
        figures[name] = json.loads(rest.split("</script>", 1)[0])
    return figures


def _section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.plot is not None:
        data = json.dumps(section.plot, allow_nan=False).replace("</", "<\\/")
        parts.append(
            f'<div id="{section.name}-plot"></div><script type="application/json" id="{section.name}">{data}</script>'
        )
    if section.rows:
        head, *rows = section.rows
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
        parts.append(f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>')
    return "".join([*parts, "</section>"])


def _cell(text: str) -> str:
    return f'<td class="{text}">{text}</td>' if text in ("passed", "failed") else f"<td>{escape(text)}</td>"
