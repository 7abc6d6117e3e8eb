"""The choosers of `hwnas profile --select`: the registry of them, and those that learn from what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.arrays import Population
from hwnas.core.documents import NETWORKS_FILE
from hwnas.core.errors import InputError
from hwnas.core.progress import say
from hwnas.core.registry import Registry
from hwnas.predict.active import Progress, next_to_measure, progress_of, unmeasured
from hwnas.predict.data import Measurements
from hwnas.predict.intervals import genotype_groups
from hwnas.predict.metrics import HIGHER_IS_BETTER, SCORES
from hwnas.predict.sources import read_sources
from hwnas.predict.transfer import Transfer, pick_for_transfer
from hwnas.profile import AtRandom, Chooser, Request, Run
from hwnas.profile.run import METRIC
from hwnas.spaces import SearchSpace, get_space

FIRST_NETWORKS = 20
LEAST_NETWORKS = 10
AT_MOST = 1000
GROWTH = 0.2
FEWEST_AT_ONCE = 5
OPTIONS = {"until": "--until SCORE=VALUE", "transfer_from": "--transfer-from TABLE"}

choosers: Registry[type[Chooser]] = Registry("chooser", named=True)
choosers.register("random")(AtRandom)


def make_chooser(select: str, until: str | None = None, transfer_from: Sequence[Path] = ()) -> Chooser:
    """The chooser that the command line asks for; raises `InputError` for options that do not go together."""
    if until is not None:
        if select not in (AtRandom.name, Until.name):
            raise InputError(f"--until picks the networks itself: leave --select {select} out")
        select = Until.name
    kind, given = choosers.get(select), {"until": until, "transfer_from": tuple(transfer_from)}
    for option, value in given.items():
        if bool(value) != (option in kind.options):
            owner = next(name for name in (select, *choosers) if option in choosers.get(name).options)
            raise InputError(f"--select {owner} and {OPTIONS[option]} go together: give both or neither")
    return kind(*(given[option] for option in kind.options))


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


@choosers.register("until")
class Until(Chooser):
    """Picks what teaches most, batch after batch, until predictions surely meet `aim`, such as `within_10=0.95`."""

    options = ("until",)
    most = AT_MOST

    def __init__(self, aim: str) -> None:
        self.aim, self.text = Aim.parse(aim), aim

    @property
    def label(self) -> str:
        return f"until {self.text}"

    def pick(self, run: Run, request: Request) -> Population:
        space = get_space(request.space)
        tried, data = measured_in(run, space)
        if self.aim.met_by(progress_in(run, space, self.aim)):
            return tried[:0]
        n = FIRST_NETWORKS - len(tried) if len(tried) < FIRST_NETWORKS else int(GROWTH * len(tried))
        candidates = unmeasured(space, tried, seed=request.seed + len(tried))
        if not len(candidates):
            return candidates
        known, number = (data.population, data.values), min(max(n, FEWEST_AT_ONCE), request.left)
        return next_to_measure(
            space, METRIC, *known, number, table=run.table(), candidates=candidates, seed=request.seed
        )

    def outcome(self, run: Run, request: Request) -> dict[str, Any]:
        """`until`: whether the aim is met, and where the score stands."""
        progress = progress_in(run, get_space(request.space), self.aim)
        return {"until": self.aim.report(progress, run.networks().num_rows)}

    def describe(self, outcome: dict[str, Any]) -> str:
        stood = outcome["until"]
        value = "-" if stood["value"] is None else f"{stood['value']:.4g} (surely {stood['surely']:.4g})"
        more = "more --networks may help" if stood["n"] >= LEAST_NETWORKS else f"it takes {LEAST_NETWORKS} to say"
        state = "met" if stood["met"] else f"not met; {more}"
        return f"{stood['score']} {value} after {stood['n']} networks; {stood['aim']:g} is asked for: {state}"


@choosers.register("transfer")
class ForTransfer(Chooser):
    """Picks the networks that tell most of a device beside the `tables` of other devices."""

    options = ("transfer_from",)

    def __init__(self, tables: Sequence[str | Path]) -> None:
        self.tables = tables

    def design(self, request: Request) -> Population:
        if request.networks < 1:
            raise InputError("--select transfer: say how many networks to measure (--networks 10)")
        say("choosing the networks that tell most, by what other devices took for them")
        return pick_for_transfer(get_space(request.space), METRIC, request.networks, self.tables, request.seed)

    def outcome(self, run: Run, request: Request) -> dict[str, Any]:
        """`expected`: MAPE (percent) and Spearman correlation of as many measurements on the devices of the tables.

        None where the tables hold too few networks to say.
        """
        space = get_space(request.space)
        sources = read_sources(self.tables, space, METRIC, request.seed)
        say("asking each device of the tables what so many measurements would have told of it")
        model = Transfer(space, metric=METRIC).learn_sources(sources)
        return {"expected": model.expected_accuracy(sources, request.networks, request.seed)}

    def describe(self, outcome: dict[str, Any]) -> str:
        expected = outcome["expected"]
        if expected is None:
            return ""
        return (
            "to expect of fit-predictor --transfer-from, going by the devices of the tables: "
            f"MAPE {expected['mape']:.2f} %, Spearman {expected['spearman']:.3f}"
        )


def progress_in(run: Run, space: SearchSpace, aim: Aim) -> Progress | None:
    """How near the networks measured in `run` have come to `aim`; None while they are too few to say."""
    _, data = measured_in(run, space)
    return progress_of(data, aim.name, run.table()) if len(data) >= LEAST_NETWORKS else None


def measured_in(run: Run, space: SearchSpace) -> tuple[Population, Measurements]:
    """The networks of `space` that `run` has tried (n, genes), and those of them that have a latency."""
    networks: dict[str, list[Any]] = {"space": [], "arch": [], METRIC: [], f"{METRIC}_verdict": []}
    if (run.folder / NETWORKS_FILE).is_file():
        networks = run.networks().to_pydict()
    rows = [i for i, spec in enumerate(networks["space"]) if spec == space.spec]
    tried = space.parse_many([networks["arch"][i] for i in rows])
    latency = [networks[METRIC][i] for i in rows]
    valid = [latency[k] is not None and networks[f"{METRIC}_verdict"][i] != "failed" for k, i in enumerate(rows)]
    population = tried[np.array(valid, dtype=bool)]
    values = np.array([value for value, keep in zip(latency, valid, strict=True) if keep], dtype=np.float64)
    return tried, Measurements(space, METRIC, population, values, genotype_groups(population))
