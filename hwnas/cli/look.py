"""Commands that only look: spaces, tables, doctor, registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.shell import Json, app, columns, finite, show
from hwnas.core.errors import InputError

tables_app = typer.Typer(help="Cost tables: list, show, diff, merge.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tables_app, name="tables")


@app.command("spaces")
def spaces_command(
    space: Annotated[str | None, typer.Argument(help="one space, with options where it has any")] = None,
    as_json: Json = False,
) -> None:
    """The search spaces, or one: genes, size, primitives."""
    from hwnas.spaces import get_space, spaces

    if space is None:
        names = {name: (spaces.get(name).__doc__ or "").splitlines()[0] for name in spaces}
        show({"spaces": list(names)}, "\n".join(f"{name:16}{text}" for name, text in names.items()), as_json)
        return
    chosen = get_space(space)
    genes = [{"name": gene.name, "choices": list(gene.choices)} for gene in chosen.genes]
    primitives = chosen.primitives()
    report = {
        "space": chosen.spec,
        "size": chosen.size,
        "slots": len(chosen.slots),
        "genes": genes,
        "primitives": [{"key": p.key, "macs": p.macs, "params": p.parameters} for p in primitives],
    }
    text = [
        f"{chosen.spec}: {len(genes)} genes, {chosen.size:.4g} architectures, {len(primitives)} primitives",
        f"an architecture: {chosen.format(chosen.sample(1, 0)[0])}\n",
        columns(
            ["primitive", "MACs (M)", "parameters"],
            [[p.key, f"{p.macs / 1e6:.3f}", f"{p.parameters}"] for p in primitives],
        ),
    ]
    show(report, "\n".join(text), as_json)


@tables_app.command("list")
def tables_list(as_json: Json = False) -> None:
    """The measured tables that ship with hwnas."""
    from hwnas.core.table import CostTable, shipped_tables

    with shipped_tables() as files:
        tables = [CostTable.load(path) for path in files]
    rows = [
        {"path": t.name, "target": t.target.to_json(), "primitives": len(t.rows), "metrics": list(t.metrics)}
        for t in tables
    ]
    lines = [[Path(t.name).name, str(len(t.rows)), ", ".join(t.metrics), str(t.target)] for t in tables]
    show(
        {"tables": rows},
        columns(["table", "primitives", "metrics", "target"], lines) if lines else "no tables",
        as_json,
    )


@tables_app.command("show")
def tables_show(
    table: Annotated[Path, typer.Argument(help="TABLE.csv, a run folder, or a name of tables list")],
    as_json: Json = False,
) -> None:
    """A table's target, metrics and rows."""
    from hwnas.core.table import CostTable

    loaded = CostTable.load(table)
    rows = {
        key: {
            metric: {
                "value": finite(cost.value),
                "low": finite(cost.low),
                "high": finite(cost.high),
                "n": cost.n,
                "verdict": cost.verdict,
            }
            for metric, cost in row.items()
        }
        for key, row in loaded.rows.items()
    }
    report = {
        "target": loaded.target.to_json(),
        "metrics": list(loaded.metrics),
        "rows": rows,
        "manifest": dict(loaded.manifest),
    }
    lines = [
        [key, *(f"{row[m].value:.6g}" if m in row else "-" for m in loaded.metrics)] for key, row in loaded.rows.items()
    ]
    show(report, f"{loaded.target}\n\n" + columns(["primitive", *loaded.metrics], lines), as_json)


@tables_app.command("diff")
def tables_diff(
    before: Path,
    after: Path,
    metric: Annotated[str, typer.Option(help="column to compare")] = "latency_ms",
    as_json: Json = False,
) -> None:
    """Which primitives changed beyond both confidence intervals."""
    from hwnas.core.table import CostTable, compare

    first, second = CostTable.load(before), CostTable.load(after)
    for table in (first, second):
        if metric not in table.metrics:
            raise InputError(f"{table.name} has no column {metric!r}; it has {', '.join(table.metrics)}")
    changes, gone, new, common = compare(first, second, metric)
    report = {
        "same_target": first.target == second.target,
        "compared": common,
        "only_before": gone,
        "only_after": new,
        "changed": [
            {"key": c.key, "before": c.before.value, "after": c.after.value, "ratio": finite(c.ratio)} for c in changes
        ],
    }
    lines = [[c.key, f"{c.before.value:.6g}", f"{c.after.value:.6g}", f"{c.ratio:.3f}"] for c in changes]
    notes = [] if first.target == second.target else [f"targets differ: {first.target} | {second.target}"]
    notes.append(
        f"{len(changes)} of {common} common primitives changed beyond both intervals; {len(gone)} only before, "
        f"{len(new)} only after"
    )
    show(
        report,
        "\n".join([*notes, *([columns(["primitive", "before", "after", "ratio"], lines)] if lines else [])]),
        as_json,
    )


@tables_app.command("merge")
def tables_merge(
    tables: list[Path], out: Annotated[Path, typer.Option("--out", help="TABLE.csv to write")], as_json: Json = False
) -> None:
    """Join tables of one target; a conflicting cost is an error."""
    from functools import reduce

    from hwnas.core.table import CostTable

    if len(tables) < 2:
        raise InputError("tables merge needs two tables or more")
    merged = reduce(CostTable.merge, map(CostTable.load, tables))
    merged.save(out)
    show({"out": str(out), "primitives": len(merged.rows)}, f"{out}: {len(merged.rows)} primitives", as_json)


@app.command("doctor")
def doctor(as_json: Json = False) -> None:
    """Devices, runtimes and libraries found, and how steadily this machine measures now."""
    from hwnas.profile.doctor import diagnose

    findings = diagnose()
    report = [{"topic": f.topic, "level": f.level, "found": f.found, "advice": f.advice} for f in findings]
    marks = {"ok": "ok  ", "info": "-   ", "warning": "!   "}
    lines = [f"{marks[f.level]}{f.topic}: {f.found}{f'; {f.advice}' if f.advice else ''}" for f in findings]
    show({"findings": report}, "\n".join(lines), as_json)


@app.command("registry")
def registry(as_json: Json = False) -> None:
    """Everything that has a name: spaces, backends, meters, predictors, algorithms, data sets, log formats and more."""
    from hwnas.parse import parsers
    from hwnas.predict import choosers, predictors
    from hwnas.profile.backends import backends
    from hwnas.profile.meters import meters
    from hwnas.search import algorithms, sources
    from hwnas.spaces import spaces
    from hwnas.spaces.primitive import kinds
    from hwnas.train.algorithms import algorithms as supernets
    from hwnas.train.data import datasets
    from hwnas.train.oneshot import one_shot

    registries = (
        *(spaces, kinds, backends, meters, parsers, predictors, choosers, sources, algorithms),
        *(datasets, supernets, one_shot),
    )
    report = {each.kind: list(each) for each in registries}
    show(report, "\n".join(f"{kind:20}{', '.join(names)}" for kind, names in report.items()), as_json)
