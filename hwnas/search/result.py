"""What a search hands over: the best architecture, the front, and enough to repeat, resume and verify it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hwnas
from hwnas.core.documents import SEARCH
from hwnas.core.errors import InputError
from hwnas.search.problem import Problem, constraint_to_json


@dataclass(frozen=True)
class Candidate:
    """An architecture in the space's notation, its accuracy, its predicted costs by quantity, and its certificate."""

    arch: str
    accuracy: float
    costs: Mapping[str, float]
    certificate: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        certificate = None if self.certificate is None else dict(self.certificate)
        return {"arch": self.arch, "accuracy": self.accuracy, "costs": dict(self.costs), "certificate": certificate}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Candidate:
        """Raises KeyError, TypeError or AttributeError for what is none."""
        certificate = values.get("certificate")
        if not isinstance(values["arch"], str) or not isinstance(certificate, dict | None):
            raise TypeError(f"{values['arch']!r} with the certificate {certificate!r} is no candidate")
        costs = {name: _number(value) for name, value in values["costs"].items()}
        return cls(values["arch"], _number(values["accuracy"]), costs, certificate)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


@dataclass(frozen=True)
class Result:
    """The outcome of a search.

    Attributes:
        problem: what was asked, as JSON: space, sources, their columns and targets, constraints, confidence.
        best: the most accurate architecture found that keeps all constraints.
        front: those that no other one found beats in accuracy and all costs, by ascending accuracy.
        history: (evaluations, best accuracy so far) whenever it rose.
        evaluations: distinct architectures whose accuracy was asked.
        seconds: of the search itself.
        reachable: quantity -> least and most that the space can reach, for each constrained cost.
        notes: what a person should know, such as why a budget was not used up.
        accuracy_model: how the accuracy was estimated: the model fitted to sub-networks and its rank correlation, or
            the entropy of each learnt choice as a part of the most it can have.
    """

    problem: Mapping[str, Any]
    best: Candidate
    front: Sequence[Candidate]
    history: Sequence[tuple[int, float]]
    algorithm: str
    seed: int
    evaluations: int
    seconds: float
    reachable: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    accuracy_model: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document of `--json` and of `search.json`."""
        return {
            **SEARCH.head(),
            "hwnas": hwnas.__version__,
            **self.problem,
            "algorithm": self.algorithm,
            "seed": self.seed,
            "best": self.best.to_json(),
            "front": [candidate.to_json() for candidate in self.front],
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "reachable": {name: list(ends) for name, ends in self.reachable.items()},
            "history": [list(point) for point in self.history],
            "notes": list(self.notes),
            "accuracy_model": dict(self.accuracy_model),
        }

    def save(self, folder: str | Path) -> None:
        """Write `search.json` into a run folder; it is whole or not there.

        A super-network in that folder is named relative to it, so that the folder can be moved.
        """
        SEARCH.write(Path(folder) / SEARCH.file, portable(self.to_json(), Path(folder).resolve()))

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read a run folder; raises `InputError` where it holds no search, or a damaged one."""
        path = Path(folder) / SEARCH.file
        values = SEARCH.read(path)
        try:
            return cls(
                _problem_from_json(values, Path(folder)),
                Candidate.from_json(values["best"]),
                [Candidate.from_json(candidate) for candidate in values["front"]],
                [(point[0], point[1]) for point in values["history"]],
                values["algorithm"],
                values["seed"],
                values["evaluations"],
                values["seconds"],
                {name: (ends[0], ends[1]) for name, ends in values["reachable"].items()},
                [str(note) for note in values["notes"]],
                dict(values["accuracy_model"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{path}: a damaged search ({type(error).__name__}: {error}); search again") from error

    def with_best(self, best: Candidate, notes: Sequence[str] = ()) -> Result:
        """The same with another winner, or one with its certificate."""
        front = [best if candidate.arch == best.arch else candidate for candidate in self.front]
        return replace(self, best=best, front=front, notes=[*self.notes, *notes])


PROBLEM_FIELDS = ("space", "accuracy", "supernet", "costs", "targets", "constraints", "confidence")


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """What was asked, in the fields `PROBLEM_FIELDS`."""
    return {
        "space": problem.space.spec,
        "accuracy": problem.accuracy.text,
        "supernet": problem.accuracy.supernet,
        "costs": {name: source.text for name, source in problem.costs.items()},
        "columns": {name: source.column for name, source in problem.costs.items()},
        "targets": {name: source.target and source.target.to_json() for name, source in problem.costs.items()},
        "constraints": [constraint_to_json(constraint) for constraint in problem.constraints],
        "confidence": problem.confidence,
    }


def portable(value: Any, folder: Path) -> Any:
    """A JSON value in which super-networks that lie in `folder` are named relative to it."""
    if isinstance(value, list):
        return [portable(part, folder) for part in value]
    if not isinstance(value, dict):
        return value
    document = {key: portable(part, folder) for key, part in value.items()}
    supernet = document.get("supernet")
    if isinstance(supernet, str) and Path(supernet).is_relative_to(folder):
        document["supernet"] = str(Path(supernet).relative_to(folder))
    return document


def _problem_from_json(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The problem of a search in `folder`; raises KeyError, TypeError or ValueError for what is none."""
    problem = {name: values[name] for name in PROBLEM_FIELDS} | {"columns": dict(values.get("columns", {}))}
    for constraint in problem["constraints"]:
        (bound,) = (constraint[name] for name in ("max", "min") if name in constraint)
        if _number(bound) < 0 or not isinstance(constraint["quantity"], str):
            raise TypeError(f"{constraint} is no constraint")
    if problem["supernet"] is not None:
        problem["supernet"] = str(folder.resolve() / problem["supernet"])
    return problem
