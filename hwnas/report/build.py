"""From the documents in a folder (runs, models, searches, super-networks) to the sections of a page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hwnas
from hwnas.core.documents import PREDICTOR, RUN, SEARCH, SIMULATED_RUN, SUPERNET, TABLE_FILE
from hwnas.core.errors import InputError
from hwnas.core.files import read_json
from hwnas.core.table import CostTable
from hwnas.core.target import Target
from hwnas.core.units import quantity_of
from hwnas.predict.store import read_document
from hwnas.profile.run import Run
from hwnas.report import figures
from hwnas.report.page import Section, write_page
from hwnas.search.result import Result

Document = dict[str, Any]

FILES = {"run": RUN.file, "model": PREDICTOR.file, "search": SEARCH.file, "supernet": SUPERNET.file}
KINDS = {document.kind for document in (RUN, SIMULATED_RUN, PREDICTOR, SEARCH, SUPERNET)}
"""Other programs call their files so too."""
SCORES = {
    "MAPE %": "mape",
    "RMSE": "rmse",
    "within 5 %": "within_5",
    "within 10 %": "within_10",
    "Kendall tau": "kendall",
}
"""The columns of a model's scores, and their names in its document."""


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write a page on everything that `folder` and the folders in it hold; `report.html` there unless `out` is given.

    Raises `InputError` where nothing in it can be reported.
    """
    folder = Path(folder)
    found = {kind: _documents(folder, kind) for kind in FILES}
    try:
        sections = _sections(found)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{folder} holds a damaged document ({type(error).__name__}: {error}); make it again"
        ) from error
    if not sections:
        raise InputError(
            f"{folder} holds no finished profiling run, predictor, super-network or search: give the folder of one, "
            "or repeat the command that was to make it"
        )
    seen = Counter[str]()
    for index, section in enumerate(sections):
        seen[section.name] += 1
        if seen[section.name] > 1:
            sections[index] = replace(section, name=f"{section.name}-{seen[section.name]}")
    path = Path(out) if out else folder / "report.html"
    write_page(path, "Which network for this device?", f"{folder.resolve().name}, hwnas {hwnas.__version__}", sections)
    return path


def _sections(found: Mapping[str, Mapping[Path, Document]]) -> list[Section]:
    return [
        *_certificates(found["search"]),
        *_fronts(found["search"]),
        *_models(found["model"]),
        *_supernets(found["supernet"]),
        *_tables(found["run"]),
        *_machines(found["run"]),
    ]


def _documents(folder: Path, kind: str) -> dict[Path, Document]:
    """Documents of a kind by the folder they stand in, in the order of their names; hidden folders are left out."""
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}")
    found = (path for path in folder.rglob(FILES[kind]) if not _hidden(path.relative_to(folder)))
    return {path.parent: _read(kind, path) for path in sorted(found) if _is_ours(path)}


def _is_ours(path: Path) -> bool:
    """Whether hwnas wrote the file, whole or damaged; another program's may have the same name."""
    try:
        return read_json(path).get("kind") in KINDS
    except InputError:
        return any(f'"{kind}"' in path.read_text(errors="replace") for kind in KINDS)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(kind: str, path: Path) -> Document:
    """The document at `path`, checked by what wrote it; raises `InputError`."""
    if kind == "search":
        return Result.load(path.parent).to_json()
    if kind == "model":
        return read_document(path.parent)
    if kind == "supernet":
        return SUPERNET.read(path)
    if read_json(path).get("kind") == SIMULATED_RUN.kind:
        return SIMULATED_RUN.read(path)
    Run.load(path.parent)
    return RUN.read(path)


def _certificates(searches: Mapping[Path, Document]) -> Iterator[Section]:
    by_quantity: dict[str, list[Document]] = defaultdict(list)
    for folder, search in searches.items():
        if certificate := search["best"].get("certificate"):
            by_quantity[certificate["quantity"]].append({"name": folder.name, "search": search, **certificate})
    head = ["search", "budget", "predicted", "measured", "95 % interval", "accuracy", "certificate", "architecture"]
    for quantity, rows in by_quantity.items():
        unit = quantity_of(quantity).unit
        cells = [_certificate_cells(row, unit) for row in rows]
        notes = [f"{row['name']}: {note}." for row in rows for note in row["search"]["notes"]]
        text = " ".join(["Each winner was measured after the search, where its device is this one.", *notes])
        yield Section(
            f"certificates-{_slug(quantity)}",
            f"Certificates: {quantity}",
            text,
            figures.certificates(rows, unit),
            [head, *cells],
        )


def _certificate_cells(row: Document, unit: str) -> list[str]:
    interval = "-" if row["low"] is None else f"{_number(row['low'])} to {_number(row['high'])}"
    best = row["search"]["best"]
    return [
        row["name"],
        f"{row['budget']:.4g} {unit}",
        f"{row['predicted']:.4g}",
        _number(row["measured"]),
        interval,
        f"{best['accuracy']:.4g}",
        row["status"].replace("_", " "),
        row["arch"],
    ]


def _fronts(searches: Mapping[Path, Document]) -> Iterator[Section]:
    by_cost: dict[tuple[str, str], list[Document]] = defaultdict(list)
    for search in searches.values():
        for cost in search["costs"]:
            by_cost[search["space"], cost].append(search)
    for (space, cost), group in by_cost.items():
        points = {c["arch"]: _point(c, cost) for search in group for c in search["front"]}
        winners = [
            {**_point(search["best"], cost), "budget": constraint.get("max", constraint.get("min"))}
            for search in group
            for constraint in search["constraints"]
            if constraint["quantity"] == cost
        ]
        text = f"Networks of {space} that no other one found beats in both; dotted lines are budgets."
        yield Section(
            f"front-{_slug(cost)}",
            "Accuracy against cost",
            text,
            figures.front(_undominated(points.values(), quantity_of(cost).lower_is_better), winners, cost),
        )


def _undominated(points: Iterable[Document], less_is_better: bool) -> list[Document]:
    """Those that no other point beats in accuracy at a cost as good, the best cost first."""
    kept: list[Document] = []
    sign = 1 if less_is_better else -1
    for point in sorted(points, key=lambda point: (sign * point["cost"], -point["accuracy"])):
        if not kept or point["accuracy"] > kept[-1]["accuracy"]:
            kept.append(point)
    return kept


def _point(candidate: Document, cost: str) -> Document:
    return {"arch": candidate["arch"], "accuracy": candidate["accuracy"], "cost": candidate["costs"][cost]}


def _models(models: Mapping[Path, Document]) -> Iterator[Section]:
    by_metric: dict[tuple[str, str], dict[str, Document]] = defaultdict(dict)
    for folder, model in models.items():
        if "evaluation" in model:
            by_metric[model["space"], model["metric"]][folder.name] = model
    for (space, metric), group in by_metric.items():
        scores = {name: model["scores"]["metrics"]["mape"] for name, model in group.items()}
        noise = next((model["noise"]["mape"] for model in group.values() if model.get("noise")), None)
        rows = [
            [name, *(_number(model["scores"]["metrics"][key]) for key in SCORES.values())]
            for name, model in group.items()
        ]
        yield Section(
            f"errors-{_slug(metric)}",
            f"How well {metric} is predicted",
            f"On networks of {space} that the models had not seen.",
            figures.errors(scores, noise, "MAPE"),
            [["model", *SCORES], *rows],
        )
        evaluations = {name: model["evaluation"] for name, model in group.items()}
        yield Section(
            f"predicted-{_slug(metric)}",
            "Predicted against measured",
            "A point a network; on the dotted line the prediction is what was measured.",
            figures.predicted_against_measured(evaluations, metric),
        )


def _supernets(supernets: Mapping[Path, Document]) -> Iterator[Section]:
    for folder, supernet in supernets.items():
        config = {"step": supernet.get("step"), "finished": supernet.get("finished"), **supernet.get("config", {})}
        rows = [[key.replace("_", " "), _shown(value)] for key, value in config.items() if value is not None]
        text = "One set of weights for every network of the space; how it was trained."
        yield Section(f"supernet-{_slug(folder.name)}", "Super-network", text, rows=[["", ""], *rows])


def _tables(runs: Mapping[Path, Document]) -> Iterator[Section]:
    for folder in runs:
        if not (folder / TABLE_FILE).is_file():
            continue
        table = CostTable.load(folder)
        for metric in table.metrics:
            verdicts = Counter(row[metric].verdict for row in table.rows.values() if metric in row)
            counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
            text = f"Primitives on {table.target}: {counts}. Darker takes longer."
            yield Section(
                f"table-{_slug(folder.name)}-{_slug(metric)}",
                f"The table: {metric}",
                text,
                figures.table_heatmap(table, metric),
            )


def _machines(runs: Mapping[Path, Document]) -> Iterator[Section]:
    for folder, run in runs.items():
        environment = run.get("environment") or {"hwnas": run["made_by"]}
        rows = [["target", str(Target.from_json(run["target"], str(folder)))]]
        for key, value in environment.items():
            rows.append([key.replace("_", " "), _shown(value)])
        yield Section(f"machine-{_slug(folder.name)}", "The machine", "", rows=[["", ""], *rows])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items() if part is not None)
    return str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)
