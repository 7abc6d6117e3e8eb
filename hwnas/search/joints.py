"""The one place where the search touches predictors, super-networks and the timer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.core.errors import DomainError, InputError, TargetMismatchError, UnavailableError
from hwnas.core.target import Target
from hwnas.predict import load_predictor
from hwnas.predict.auto import choose
from hwnas.predict.data import Measurements
from hwnas.predict.intervals import genotype_groups
from hwnas.predict.metrics import score
from hwnas.predict.store import read_document
from hwnas.search.sources import Array, Population, Source
from hwnas.spaces import SearchSpace
from hwnas.train.expected import Cost, ExpectedCost

if TYPE_CHECKING:
    from hwnas.profile import Measurement, Settings
    from hwnas.spaces.modules import Network
    from hwnas.train.config import OneShotConfig
    from hwnas.train.oneshot import CostTerm
    from hwnas.train.supernet import Supernet

MODEL = "model.json"
SUPERNET = "supernet.json"
NETWORK = "network.json"
PROBED = 16


def is_predictor(path: str | Path) -> bool:
    return (Path(path) / MODEL).is_file()


def predictor_source(folder: str, space: SearchSpace) -> Source:
    """A saved predictor as a source; raises `InputError` where it is of a space that does not hold `space`."""
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


def translation(space: SearchSpace, other: SearchSpace, what: str) -> Callable[[Population], Population]:
    """Genotypes of `space` as genotypes of `other`, where each choice of the one is a choice of the other.

    Spaces that differ in a list of choices alone, such as their resolutions, share networks and therefore predictors.
    """
    if space == other:
        return lambda population: population
    refusal = DomainError(f"{what} is of {other.spec}, which is not {space.spec}; choose one that was fitted on it")
    if [gene.name for gene in space.genes] != [gene.name for gene in other.genes]:
        raise refusal
    tables = []
    for mine, theirs in zip(space.genes, other.genes, strict=True):
        if not set(mine.choices) <= set(theirs.choices):
            raise refusal
        tables.append(np.array([theirs.choices.index(choice) for choice in mine.choices], dtype=np.int16))

    def move(population: Population) -> Population:
        return np.stack([table[column] for table, column in zip(tables, population.T, strict=True)], axis=1)

    probe = space.sample(PROBED, 0)
    if any(space.graph(row) != other.graph(moved) for row, moved in zip(probe, move(probe), strict=True)):
        raise refusal
    return move


def local_settings(target: Target | None) -> Settings:
    """How to measure on `target` here; raises `UnavailableError` where it is not a runtime of this machine."""
    from hwnas.profile import Settings, backends
    from hwnas.profile.backends.base import TRIALS
    from hwnas.profile.device import local_target

    if target is None:
        raise UnavailableError("the cost is of no device")
    if target.origin != "measured" or target.runtime not in backends:
        raise UnavailableError(f"{target} is no target that this machine can measure")
    mismatches, reasons = [], []
    for device in backends.get(target.runtime).devices:
        backend = backends.get(target.runtime)
        trials = TRIALS if target.tuned and backend.can_tune else 0
        settings = Settings(device, target.precision, target.batch, target.threads, target.cache, target.graphs, trials)
        try:
            local_target(target.runtime, settings).require_same(target, "the cost")
        except TargetMismatchError as error:
            mismatches.append(str(error))
        except InputError as error:
            reasons.append(str(error))
        else:
            return settings
    raise UnavailableError((mismatches or reasons)[-1])


def measure_latencies(
    models: Mapping[str, bytes],
    networks: Mapping[str, tuple[str, str]],
    target: Target,
    settings: Settings,
    store: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Latencies in ms by name, measured interleaved in one campaign; `store` keeps the samples.

    Measured are the ONNX models, or, where the runtime does not read ONNX, the same `networks` (space, architecture).
    """
    from hwnas.profile import Subject, backends, measure_onnx, measure_subjects

    how: dict[str, Any] = {"runtime": target.runtime, "settings": settings, "store": store, "seed": seed}
    if backends.get(target.runtime).reads_onnx:
        return measure_onnx(models, **how)
    return measure_subjects({name: Subject("network", arch, space) for name, (space, arch) in networks.items()}, **how)


def environment(settings: Settings) -> dict[str, Any]:
    from hwnas.profile.device import environment

    return environment(settings)


def is_supernet(path: str | Path) -> bool:
    return (Path(path) / SUPERNET).is_file()


def open_supernet(folder: str | Path) -> Supernet:
    """A trained super-network: its `space`, the `accuracy` of sub-networks, and `extract` for one of them."""
    from hwnas.train import load_supernet

    return load_supernet(folder)


def train_one_shot(config: OneShotConfig, terms: list[CostTerm], folder: str) -> Supernet:
    """Train a mixed super-network and its choices in `folder`; see `hwnas.train.oneshot`."""
    from hwnas.train.oneshot import train_one_shot

    return train_one_shot(config, terms, folder)


def cost_term(
    space: SearchSpace, name: str, cost: Cost, least: float, bound: float | None = None, upper: bool = True
) -> CostTerm:
    """A cost that such a training takes into account."""
    from hwnas.train.oneshot import CostTerm

    return CostTerm(name, ExpectedCost(space, cost), least, bound, upper)


def build_network(space: SearchSpace, row: Population, supernet: str | Path | None) -> Network:
    """A network in PyTorch with the weights of a super-network or of its own training; untrained where `None`.

    Raises `InputError` where the folder holds another network's weights.
    """
    if supernet is None:
        return space.build(row).eval()
    if (Path(supernet) / NETWORK).is_file():
        from hwnas.train import load_network

        trained = load_network(supernet, "cpu")
        if trained.topology != space.graph(row):
            raise InputError(f"{supernet} holds the weights of another network than {space.format(row)}")
        return trained
    opened = open_supernet(supernet)
    network = opened.extract(translation(space, opened.space, str(supernet))(row[None])[0])
    return network.cpu().eval()


def fitted_accuracy(
    space: SearchSpace, population: Population, values: Array, seed: int
) -> tuple[Callable[[Population], Array], dict[str, Any]]:
    """An accuracy model fitted to evaluated sub-networks, and how well it ranks those that it did not see.

    A kind is chosen by cross-validation; where the values leave nothing to learn, the model is their mean.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        mean = float(values.mean())
        return lambda genotypes: np.full(len(genotypes), mean), {"sub_networks": len(values), "model": "mean"}
    data = Measurements(space, "accuracy", population, values, genotype_groups(population))
    choice = choose(data, None, "kendall", seed)
    notes = {
        "sub_networks": len(values),
        "model": choice.model.name,
        "kendall": score("kendall", values, choice.predicted),
        "spearman": score("spearman", values, choice.predicted),
    }
    return lambda genotypes: choice.model.predict(genotypes, extrapolate=True), notes
