"""The command line: a command parses its options and calls one function of the packages below."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from hwnas.core.errors import HwnasError, InputError

app = typer.Typer(
    name="hwnas",
    help="Which network should run on this device? Measure, predict, search under a budget, confirm.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
tables_app = typer.Typer(help="Cost tables: list, show, diff, merge.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tables_app, name="tables")

Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output")]
Space = Annotated[str, typer.Option("--space", help="search space, such as ofa-mbv3:width=1.2,resolution=160/176")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="seed of every random choice")]


def main() -> None:
    """Entry point of `hwnas`: exit code 0 done, 2 bad input, 3 a claim failed, 70 an error of ours, 130 interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.exit(run([argument for argument in arguments if argument != "--debug"], debug))


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command; errors become one line on standard error and an exit code."""
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        message, code = "interrupted; the same command resumes", 130
    except HwnasError as error:
        message, code = " ".join(str(error).split()), error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if hasattr(error, "format_message"):
            message, code = _usage(error), 2
        else:
            message, code = f"an error of ours: {type(error).__name__}: {error} (--debug shows where)", 70
    if debug:
        traceback.print_exc()
    print(f"hwnas: {message}", file=sys.stderr)
    return code


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "hwnas"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; see {command} --help"


def show(report: Any, text: str, as_json: bool) -> None:
    """The result of a command: JSON for a program, or lines for a person."""
    print(json.dumps(report, allow_nan=False, ensure_ascii=False) if as_json else text)


def columns(head: list[str], rows: list[list[str]]) -> str:
    """Aligned text columns; all but the first are right-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = (
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    )
    return "\n".join(line.rstrip() for line in lines)


def bounds(pairs: list[str], option: str) -> dict[str, float]:
    """`QUANTITY=VALUE` pairs as a mapping; raises `InputError` for anything else."""
    result: dict[str, float] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not (name and equals and 0 < number < float("inf")):
            raise InputError(
                f"{option} {pair!r}: write {option} QUANTITY=VALUE with a positive value, such as latency_ms=20"
            )
        if name in result:
            raise InputError(f"{option} {name} is given twice")
        result[name] = number
    return result


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
    from hwnas.core.files import data_folder
    from hwnas.core.table import CostTable

    with data_folder("assets") as assets:
        tables = [CostTable.load(path) for path in sorted((assets / "latency_tables").glob("*.csv"))]
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
    table: Annotated[Path, typer.Argument(help="TABLE.csv or a run folder")], as_json: Json = False
) -> None:
    """A table's target, metrics and rows."""
    from hwnas.core.table import CostTable

    loaded = CostTable.load(table)
    rows = {
        key: {
            metric: {
                "value": _finite(cost.value),
                "low": _finite(cost.low),
                "high": _finite(cost.high),
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


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


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
    changes, gone, new = compare(first, second, metric)
    common = len(first.rows.keys() & second.rows.keys())
    report = {
        "same_target": first.target == second.target,
        "compared": common,
        "only_before": gone,
        "only_after": new,
        "changed": [
            {"key": c.key, "before": c.before.value, "after": c.after.value, "ratio": _finite(c.ratio)} for c in changes
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


if __name__ == "__main__":
    main()
