"""`Run`: the folder that profiling leaves, and `Request`: what it was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.core.arrays import Population
from hwnas.core.documents import NETWORKS_FILE, RUN, stamp
from hwnas.core.errors import InputError
from hwnas.core.table import CostTable
from hwnas.core.target import Target
from hwnas.profile.backends import Settings
from hwnas.profile.device import environment
from hwnas.profile.history import History
from hwnas.profile.metrics import COLUMNS
from hwnas.profile.stats import Noise, noise_floor
from hwnas.profile.store import Store
from hwnas.profile.subject import Subject
from hwnas.spaces import get_space

if TYPE_CHECKING:
    import pyarrow

METRIC = "latency_ms"
FIRST, REPEAT = 0, 1


@dataclass(frozen=True)
class Request:
    """What a run was asked for: a space, how many of its networks, chosen how, and how many measured twice.

    Attributes:
        networks: how many at most.
        select: the label of the `Chooser` that picks them.
        chosen: the architectures that it has picked so far.
    """

    space: str
    networks: int = 0
    select: str = ""
    seed: int = 0
    repeats: int = 0
    chosen: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Request:
        """The request that `asdict` gave, read back from JSON."""
        if not isinstance(values["space"], str):
            raise TypeError(f"the space is {values['space']!r}")
        return cls(**{**values, "chosen": tuple(map(str, values["chosen"]))})

    @property
    def left(self) -> int:
        """How many networks may still be chosen."""
        return self.networks - len(self.chosen)

    def choosing(self, population: Population) -> Request:
        """This request with `population` (n, genes) chosen besides, where it is new and as far as there is room."""
        return self._with(map(get_space(self.space).format, population))

    def continuing(self, others: Iterable[Request]) -> Request:
        """This request with what was chosen for one of `others` by the same chooser, of the same space and seed."""
        same = [
            other.chosen
            for other in others
            if (other.space, other.select, other.seed) == (self.space, self.select, self.seed)
        ]
        earlier: tuple[str, ...] = max(same, key=len, default=())
        return self._with(earlier)

    def extends(self, other: Request) -> bool:
        """Whether this is `other`, with more networks chosen or the same."""
        return replace(other, chosen=self.chosen) == self and set(other.chosen) <= set(self.chosen)

    def _with(self, archs: Iterable[str]) -> Request:
        return replace(self, chosen=tuple(dict.fromkeys([*self.chosen, *archs]))[: self.networks])

    def primitives(self) -> list[Subject]:
        return [Subject.primitive(primitive) for primitive in get_space(self.space).primitives()]

    def sampled(self) -> list[Subject]:
        """The networks to measure."""
        return [Subject("network", arch, self.space) for arch in self.chosen]

    def repeated(self) -> list[Subject]:
        """Those measured a second time: networks, or primitives where no networks are asked for."""
        subjects = self.sampled() or self.primitives()
        chosen = np.random.default_rng([self.seed, REPEAT]).permutation(len(subjects))[: self.repeats]
        return [subjects[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Run:
    """The folder of a profiling run.

    It holds `run.json` (what was asked, target, environment), `samples.sqlite` (raw times, unless they are in a shared
    store), `table.csv` with `table.json` (the primitives' costs) and, where networks were measured, `networks.parquet`.
    """

    folder: Path
    target: Target
    requests: tuple[Request, ...]
    store: Path
    goal: float
    metrics: tuple[str, ...] = (METRIC,)

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """The run in `folder`; raises `InputError` where there is none, or one that cannot be read."""
        path = Path(folder) / RUN.file
        values = RUN.read(path)
        try:
            requests = tuple(Request.from_json(request) for request in values["requests"])
            target, store, goal = values["target"], Path(folder, values["store"]), float(values["goal"])
            metrics = tuple(values.get("metrics", (METRIC,)))
            if not set(metrics) <= set(COLUMNS):
                raise ValueError(f"the metrics are {values['metrics']!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a profiling run: {type(error).__name__} {error}") from error
        return cls(Path(folder), Target.from_json(target, str(path)), requests, store, goal, metrics)

    def asking(self, request: Request) -> Run:
        """This run with `request` among its requests, in the place of those that it extends."""
        kept = [request if request.extends(other) else other for other in self.requests]
        return replace(self, requests=tuple(dict.fromkeys([*kept, request])))

    def measuring(self, metrics: Iterable[str]) -> Run:
        """This run with `metrics` among its own."""
        wanted = {*self.metrics, *metrics}
        return replace(self, metrics=tuple(name for name in COLUMNS if name in wanted))

    def table(self) -> CostTable:
        """The costs of the primitives."""
        return CostTable.load(self.folder)

    def networks(self) -> pyarrow.Table:
        """The measured networks: `space`, `arch`, and of each metric value, interval, n, verdict and `_repeat`."""
        from pyarrow import parquet

        path = self.folder / NETWORKS_FILE
        if not path.is_file():
            raise InputError(f"{path}: this run holds no measured networks (yet); profile with --networks N")
        return parquet.read_table(path)

    def noise(self) -> Noise | None:
        """How far two independent measurements of the same subject lie apart; None where none was measured twice."""
        subjects = list(dict.fromkeys(subject for request in self.requests for subject in request.repeated()))
        with Store(self.store, read_only=True) as store:
            history = History(store, self.target)
            first = history.measurements(subjects, series=FIRST)
            again = history.measurements(subjects, series=REPEAT)
        return noise_floor((first[subject].median, again[subject].median) for subject in subjects)

    def failures(self) -> dict[str, str]:
        """Why primitives and networks, by name, have no cost."""
        subjects = dict.fromkeys(s for request in self.requests for s in [*request.primitives(), *request.sampled()])
        with Store(self.store, read_only=True) as store:
            history = History(store, self.target)
            found = history.measurements(history.tried(subjects), series=FIRST)
        return {subject.name: each.reason for subject, each in found.items() if each.verdict == "failed"}

    def summary(self) -> dict[str, Any]:
        """What the run holds, as JSON: counts by verdict, why some failed, and the noise of repeats as fractions."""
        table = self.table()
        verdicts = [row[METRIC].verdict for row in table.rows.values()]
        primitives = len(verdicts)
        measured = (self.folder / NETWORKS_FILE).is_file()
        networks = self.networks().column(f"{METRIC}_verdict").to_pylist() if measured else []
        noise = self.noise()
        return {
            "run": str(self.folder),
            "target": self.target.to_json(),
            "primitives": primitives,
            "networks": len(networks),
            **{verdict: [*verdicts, *networks].count(verdict) for verdict in ("steady", "noisy", "failed")},
            "failures": self.failures(),
            "metrics": list(table.metrics),
            "unmeasurable": dict(table.manifest.get("unmeasurable", {})),
            "noise": asdict(noise) if noise else None,
        }

    def save(self, settings: Settings) -> None:
        """Write `run.json`."""
        inside = self.store.resolve().is_relative_to(self.folder.resolve())
        RUN.write(
            self.folder / RUN.file,
            {
                **stamp(),
                "target": self.target.to_json(),
                "goal": self.goal,
                "metrics": list(self.metrics),
                "store": str(
                    self.store.resolve().relative_to(self.folder.resolve()) if inside else self.store.resolve()
                ),
                "requests": [asdict(request) for request in self.requests],
                "environment": environment(settings),
            },
        )
