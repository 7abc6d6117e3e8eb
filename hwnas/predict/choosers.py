"""Which networks a profiling run measures: the choosers that `hwnas.profile.profile` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.errors import InputError
from hwnas.core.progress import say
from hwnas.predict.active import Progress, next_to_measure, progress_of, unmeasured
from hwnas.predict.data import NETWORKS, Measurements
from hwnas.predict.intervals import genotype_groups
from hwnas.predict.metrics import HIGHER_IS_BETTER, SCORES
from hwnas.predict.transfer import Transfer, expected_accuracy, read_sources
from hwnas.profile import Run
from hwnas.profile.run import METRIC, Chooser
from hwnas.spaces import SearchSpace

FIRST_NETWORKS = 20
LEAST_NETWORKS = 10
GROWTH = 0.2
FEWEST_AT_ONCE = 5


@dataclass(frozen=True)
class Aim:
    """A score that predictions are to reach: at least `value` where more is better, else at most."""

    name: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Aim:
        """`within_10=0.95`, `mape=2`, ...; raises `InputError` for an unknown score or a value it cannot have."""
        name, equals, value = text.partition("=")
        if not equals or name not in SCORES:
            raise InputError(f"--until {text!r}: write SCORE=VALUE with a score of {', '.join(SCORES)}")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not (0 < number <= 1 if name in HIGHER_IS_BETTER else 0 < number < float("inf")):
            most = "at most 1" if name in HIGHER_IS_BETTER else "finite"
            raise InputError(
                f"--until {text!r}: {name} is a number above 0 and {most}, such as within_10=0.95 or mape=2"
            )
        return cls(name, number)

    def met_by(self, progress: Progress | None) -> bool:
        """Whether the score is surely good enough."""
        if progress is None:
            return False
        return progress.surely >= self.value if self.name in HIGHER_IS_BETTER else progress.surely <= self.value

    def report(self, progress: Progress | None, networks: int) -> dict[str, Any]:
        """What is asked and where it stands after that many networks, as JSON."""
        reached = progress.to_json() if progress else {"value": None, "surely": None, "n": networks}
        return {"score": self.name, "aim": self.value, "met": self.met_by(progress), **reached}


def until(space: SearchSpace, aim: Aim, seed: int = 0) -> Chooser:
    """A chooser that asks for what teaches most, batch after batch, until `aim` is surely met."""

    def choose(run: Run, most: int) -> NDArray[np.int16]:
        tried, data = measured_in(run, space)
        if aim.met_by(progress_in(run, space, aim)):
            return tried[:0]
        n = FIRST_NETWORKS - len(tried) if len(tried) < FIRST_NETWORKS else int(GROWTH * len(tried))
        candidates = unmeasured(space, tried, seed=seed + len(tried))
        if not len(candidates):
            return candidates
        known, number = (data.population, data.values), min(max(n, FEWEST_AT_ONCE), most)
        return next_to_measure(space, METRIC, *known, number, table=run.table(), candidates=candidates, seed=seed)

    return choose


def progress_in(run: Run, space: SearchSpace, aim: Aim) -> Progress | None:
    """How near the networks measured in `run` have come to `aim`; None while they are too few to say."""
    _, data = measured_in(run, space)
    return progress_of(data, aim.name, run.table()) if len(data) >= LEAST_NETWORKS else None


def for_transfer(space: SearchSpace, tables: Sequence[str | Path], seed: int = 0) -> Chooser:
    """A chooser of the networks that tell most of a device beside other devices' `tables`, which are read at once."""
    sources = read_sources(tables, space, METRIC, seed)
    say("choosing the networks that tell most, by what other devices took for them")

    def choose(run: Run, most: int) -> NDArray[np.int16]:
        tried, _ = measured_in(run, space)
        picked = Transfer(space, metric=METRIC).learn_sources(sources).pick(most + len(tried), seed)
        known = {row.tobytes() for row in tried}
        return picked[[row.tobytes() not in known for row in picked]][:most]

    return choose


def expected_of_transfer(
    space: SearchSpace, tables: Sequence[str | Path], networks: int, seed: int = 0
) -> dict[str, float]:
    """MAPE (percent) and Spearman correlation that `networks` measurements reached on the devices of `tables`."""
    sources = read_sources(tables, space, METRIC, seed)
    say("asking each device of the tables what so many measurements would have told of it")
    return expected_accuracy(Transfer(space, metric=METRIC).learn_sources(sources), sources, networks, seed)


def measured_in(run: Run, space: SearchSpace) -> tuple[NDArray[np.int16], Measurements]:
    """The networks of `space` that `run` has tried (n, genes), and those of them that have a latency."""
    networks: dict[str, list[Any]] = {"space": [], "arch": [], METRIC: [], f"{METRIC}_verdict": []}
    if (run.folder / NETWORKS).is_file():
        networks = run.networks().to_pydict()
    rows = [i for i, spec in enumerate(networks["space"]) if spec == space.spec]
    tried = space.parse_many([networks["arch"][i] for i in rows])
    latency = [networks[METRIC][i] for i in rows]
    valid = [latency[k] is not None and networks[f"{METRIC}_verdict"][i] != "failed" for k, i in enumerate(rows)]
    population = tried[np.array(valid, dtype=bool)]
    values = np.array([value for value, keep in zip(latency, valid, strict=True) if keep], dtype=np.float64)
    return tried, Measurements(space, METRIC, population, values, genotype_groups(population))
