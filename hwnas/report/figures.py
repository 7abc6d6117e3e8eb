"""The plots of a report, each a plotly figure as plain JSON: what is drawn is what a test can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hwnas.core.table import CostTable
from hwnas.core.units import quantity_of
from hwnas.spaces import Primitive

Figure = dict[str, Any]
"""`{"data": [...], "layout": {...}}` as plotly.js takes it."""

INK, GRID, ACCENT, GOOD, BAD, FAINT = "#1d2733", "#e4e9ef", "#2463eb", "#12805c", "#c2410c", "#9aa7b5"
PALETTE = ("#2463eb", "#12805c", "#c2410c", "#7c3aed", "#b45309", "#0e7490", "#be185d", "#4d7c0f")


def figure(data: Sequence[Mapping[str, Any]], x: str, y: str, **layout: Any) -> Figure:
    """A figure in the house style with titled axes."""
    base = {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 64, "r": 24, "t": 24, "b": 56},
        "height": 420,
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.08, "x": 0},
        "xaxis": {"title": {"text": x}, "gridcolor": GRID, "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y}, "gridcolor": GRID, "zeroline": False, "automargin": True},
    }
    return {"data": [dict(trace) for trace in data], "layout": base | layout}


def numbers(values: ArrayLike) -> list[float | None]:
    """Plain floats for JSON; what is not finite becomes null."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values, dtype=np.float64).ravel()]


def predicted_against_measured(evaluations: Mapping[str, Mapping[str, ArrayLike]], column: str) -> Figure:
    """One series a model, of `measured` and `predicted` held-out networks; on the diagonal a prediction is perfect."""
    unit = quantity_of(column).unit
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": numbers(values["measured"]),
            "y": numbers(values["predicted"]),
            "marker": {"size": 7, "opacity": 0.75, "color": PALETTE[index % len(PALETTE)]},
        }
        for index, (name, values) in enumerate(evaluations.items())
    ]
    truth = [x for trace in traces for x in trace["x"] if x is not None]
    ends = [min(truth), max(truth)] if truth else []
    diagonal = {"type": "scatter", "mode": "lines", "name": "equal", "x": ends, "y": ends, "hoverinfo": "skip"}
    return figure(
        [*traces, diagonal | {"line": {"color": FAINT, "dash": "dot"}}], f"measured ({unit})", f"predicted ({unit})"
    )


def front(points: Sequence[Mapping[str, Any]], winners: Sequence[Mapping[str, Any]], cost: str) -> Figure:
    """Accuracy against cost: networks that a search looked at, and the winner of each budget.

    Each point is `{"arch", "accuracy", "cost"}`; a winner has `budget` too.
    """
    unit = quantity_of(cost).unit
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "best found at its cost",
            "x": numbers([p["cost"] for p in points]),
            "y": numbers([p["accuracy"] for p in points]),
            "text": [p["arch"] for p in points],
            "marker": {"size": 6, "color": FAINT},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "winner of a budget",
            "x": numbers([w["cost"] for w in winners]),
            "y": numbers([w["accuracy"] for w in winners]),
            "text": [w["arch"] for w in winners],
            "marker": {"size": 12, "color": ACCENT, "symbol": "diamond"},
        },
    ]
    lines = [
        {
            "type": "line",
            "x0": w["budget"],
            "x1": w["budget"],
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": ACCENT, "width": 1, "dash": "dot"},
        }
        for w in winners
    ]
    return figure(traces, f"{cost.rsplit('_', 1)[0].replace('_', ' ')} ({unit})", "accuracy", shapes=lines)


def certificates(rows: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    """Budget, prediction and measurement with its interval, side by side for each certificate."""
    names = [row["name"] for row in rows]
    measured = [row for row in rows if row["measured"] is not None]
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": "budget",
            "x": names,
            "y": numbers([r["budget"] for r in rows]),
            "marker": {"color": GRID, "line": {"color": FAINT, "width": 1}},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "predicted",
            "x": names,
            "y": numbers([r["predicted"] for r in rows]),
            "marker": {"size": 11, "symbol": "x-thin", "line": {"width": 2, "color": INK}, "color": INK},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "measured",
            "x": [r["name"] for r in measured],
            "y": numbers([r["measured"] for r in measured]),
            "marker": {"size": 11, "color": [GOOD if r["status"] == "passed" else BAD for r in measured]},
            "error_y": {
                "type": "data",
                "symmetric": False,
                "color": INK,
                "array": numbers([r["high"] - r["measured"] for r in measured]),
                "arrayminus": numbers([r["measured"] - r["low"] for r in measured]),
            },
        },
    ]
    return figure(traces, "", f"({unit})", height=360)


def table_heatmap(table: CostTable, metric: str) -> Figure:
    """The table as a heat map: a row an input and output shape, a column a configuration; missing cells stay empty.

    A primitive that differs in nothing else than its activation has a star.
    """
    cells: dict[tuple[str, str], float] = {}
    order: dict[str, int] = {}
    for key, row in table.rows.items():
        if metric in row:
            y, x, size = _place(Primitive.from_key(key))
            while (y, x) in cells:
                x += "*"
            cells[y, x] = row[metric].value
            order[y] = size
    ys = sorted(order, key=lambda y: (order[y], y))
    xs = sorted({x for _, x in cells}, key=lambda x: (not x.startswith("k"), x))
    z = [numbers([cells.get((y, x), np.nan) for x in xs]) for y in ys]
    unit = quantity_of(metric).unit
    trace = {
        "type": "heatmap",
        "x": xs,
        "y": ys,
        "z": z,
        "colorscale": "Blues",
        "reversescale": True,
        "hoverongaps": False,
        "colorbar": {"title": {"text": unit}},
        "xgap": 1,
        "ygap": 1,
    }
    return figure([trace], "", "", height=max(360, 20 * len(ys) + 120))


def _place(primitive: Primitive) -> tuple[str, str, int]:
    shape, out = primitive.inputs[0], primitive.output
    y = f"{'×'.join(map(str, shape))} → {'×'.join(map(str, out))}"
    kernel, mid = primitive.number("kernel"), primitive.number("mid")
    if primitive.kind == "mbconv":
        options = [f"k{kernel}", f"e{(mid or shape[0]) / shape[0]:g}"]
        options += [f"g{primitive.number('groups')}"] * (primitive.number("groups") > 1)
        options += ["se"] * (primitive.number("se") > 0)
        return y, " ".join(options), -int(np.prod(shape[1:]))
    return y, f"{primitive.kind}{f' {kernel}×{kernel}' if kernel > 1 else ''}", -int(np.prod(shape[1:]))


def errors(scores: Mapping[str, float], noise: float | None, label: str) -> Figure:
    """Held-out error of each model in percent, and the noise floor of repeated measurement as a line."""
    names = list(scores)
    trace = {"type": "bar", "x": names, "y": numbers(list(scores.values())), "marker": {"color": ACCENT}, "name": label}
    shapes, notes = [], []
    if noise is not None:
        shapes = [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": noise,
                "y1": noise,
                "line": {"color": BAD, "dash": "dash", "width": 2},
            }
        ]
        notes = [
            {
                "xref": "paper",
                "x": 1,
                "y": noise,
                "text": f"noise floor {noise:.2f} %",
                "showarrow": False,
                "yanchor": "bottom",
                "xanchor": "right",
                "font": {"color": BAD},
                "bgcolor": "white",
            }
        ]
    return figure([trace], "", f"{label} (%)", height=340, shapes=shapes, annotations=notes, showlegend=False)
