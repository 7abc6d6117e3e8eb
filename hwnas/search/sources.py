"""Where accuracies and costs come from: what `--accuracy` and `--cost` name, as functions of a population.

A source is written `PREFIX:REST` (`table:FILE#COLUMN`, `ofa:acc_predictor.pth`, `note10:FOLDER`, `dpu:TARGET`), as a
path (a predictor's folder, a cost table, a super-network), or as a built-in count (`macs_m`, `params_m`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hwnas.core.documents import PREDICTOR, SUPERNET
from hwnas.core.errors import InputError
from hwnas.core.registry import Registry
from hwnas.core.table import CostTable, is_table
from hwnas.core.target import Target
from hwnas.core.units import MACS, PARAMS, THROUGHPUT, UNSUPPORTED, Quantity, quantity_of
from hwnas.search.additive import Additive
from hwnas.search.source import Source, translation
from hwnas.spaces import SearchSpace

Factory = Callable[[str, SearchSpace], list[Source]]
sources: Registry[Factory] = Registry("source")
COUNTS: dict[str, tuple[Quantity, str]] = {"macs_m": (MACS, "macs"), "params_m": (PARAMS, "parameters")}


def open_sources(text: str, space: SearchSpace) -> list[Source]:
    """The sources that `text` names for networks of `space`; a cost table with several metrics gives several.

    Raises `InputError` where it names none, or one of another space.
    """
    prefix, colon, rest = text.partition(":")
    if colon and prefix in sources:
        return sources.get(prefix)(rest, space)
    if text in COUNTS:
        return [count(text, space)]
    path = text.partition("#")[0]
    if not (is_table(path) or Path(path).exists()):
        known = ", ".join([*(f"{name}:..." for name in sources), *COUNTS])
        raise InputError(f"no source of costs or accuracies at {text}; give a path, or one of {known}")
    return _open_path(text, space)


def accuracy_source(text: str, space: SearchSpace) -> Source:
    """The source that `--accuracy` names; raises `InputError` where it is a cost, or none."""
    found = open_sources(text, space)
    if len(found) != 1 or found[0].quantity.is_cost:
        names = ", ".join(source.quantity.name for source in found)
        raise InputError(f"--accuracy {text} gives {names}, not one accuracy")
    return found[0]


def cost_sources(texts: list[str], space: SearchSpace) -> dict[str, Source]:
    """The costs that `--cost [NAME=]SOURCE` name, by quantity (`latency_ms`, or `NAME.latency_ms`).

    Raises `InputError` where two of them share a name.
    """
    result: dict[str, Source] = {}
    for text in texts:
        name, rest = _split_name(text)
        for source in open_sources(rest, space):
            key = f"{name}.{source.quantity.name}" if name else source.quantity.name
            if key in result:
                raise InputError(f"two costs are called {key}: name them apart, as --cost a={rest} --cost b=...")
            if not source.quantity.is_cost:
                raise InputError(f"--cost {text} gives {source.quantity.name}, which is no cost")
            result[key] = source
    return result


def _split_name(text: str) -> tuple[str, str]:
    name, equals, rest = text.partition("=")
    return (name, rest) if equals and name.isidentifier() else ("", text)


def count(name: str, space: SearchSpace) -> Source:
    """A built-in count, in millions: `macs_m` for one image, or `params_m`."""
    attribute = COUNTS[name][1]
    counts = [getattr(primitive, attribute) for primitive in space.primitives()]
    return additive_source(name, name, Additive.of_primitives(space, counts, unit=1e6))


def additive_source(text: str, column: str, additive: Additive, target: Target | None = None) -> Source:
    return Source(text, column, additive, additive=additive, target=target)


def _open_path(text: str, space: SearchSpace) -> list[Source]:
    path, _, column = text.partition("#")
    found: Source | None = None
    if (Path(path) / PREDICTOR.file).is_file():
        found = predictor_source(path, space)
    elif (Path(path) / SUPERNET.file).is_file():
        from hwnas.search.subnets import supernet_source

        found = supernet_source(path, space)
    if found is not None:
        if column not in ("", found.column):
            raise InputError(f"{path} gives {found.column}, not {column}; leave #{column} out")
        return [found]
    if is_table(path):
        return _cost_table(path, column, space)
    raise InputError(
        f"{path} is no source: expected a predictor's folder (model.json), a cost table (.csv with its .json) "
        "or a super-network's folder"
    )


def predictor_source(folder: str, space: SearchSpace) -> Source:
    """A saved predictor as a source; raises `InputError` where it is of a space that does not hold `space`."""
    from hwnas.predict import load_predictor
    from hwnas.predict.store import read_document

    model = load_predictor(folder)
    target = read_document(Path(folder)).get("target")
    move = translation(space, model.space, folder)
    return Source(
        folder,
        model.metric,
        lambda population: model.predict(move(population)),
        lambda population, coverage: model.interval(move(population), coverage),
        target=Target.from_json(target, folder) if target else None,
    )


def _cost_table(path: str, column: str, space: SearchSpace) -> list[Source]:
    table = CostTable.load(path)
    if column == THROUGHPUT.name or (column in table.metrics and quantity_of(column) == THROUGHPUT):
        from hwnas.predict import predictors

        made = predictors.get("sum")(space, table, metric=column)
        return [Source(path, column, made.predict, target=table.target)]
    return [
        additive_source(path, metric, Additive.of_primitives(space, table.vector(space, metric)), table.target)
        for metric in table.summable(column or None)
    ]


@sources.register("table")
def _measured(rest: str, space: SearchSpace) -> list[Source]:
    from hwnas.search.measured import measured_source

    path, _, column = rest.partition("#")
    if not column:
        raise InputError(f"table:{rest} names no column; write table:{path}#COLUMN")
    return [measured_source(path, column, space)]


@sources.register("ofa")
def _ofa(rest: str, space: SearchSpace) -> list[Source]:
    from hwnas.search.published import OfaAccuracy

    return [Source(f"ofa:{rest}", "accuracy", OfaAccuracy(rest, space))]


@sources.register("note10")
def _note10(rest: str, space: SearchSpace) -> list[Source]:
    from hwnas.parse.ofa_lookup import METRIC, NOTE10
    from hwnas.search.published import note10_latency

    return [additive_source(f"note10:{rest}", METRIC, note10_latency(rest, space), NOTE10)]


@sources.register("dpu")
def _dpu(rest: str, space: SearchSpace) -> list[Source]:
    """How many blocks of a network the DPU does not run whole; at most 0 keeps a search to what it runs."""
    from hwnas.fpga import get_target, supported

    unsupported = ~supported(space.primitives(), get_target(rest))
    additive = Additive.of_primitives(space, unsupported.astype(np.float64))
    return [additive_source(f"dpu:{rest}", UNSUPPORTED.name, additive)]
