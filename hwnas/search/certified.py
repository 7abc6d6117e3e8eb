"""Search, measure, correct, and search again, until a winner is certified or the measuring budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwnas.core.arrays import Array, Population
from hwnas.core.documents import SAMPLES_FILE
from hwnas.core.errors import InfeasibleBudgetError
from hwnas.core.files import scratch
from hwnas.core.progress import say
from hwnas.search.additive import Additive, Factor
from hwnas.search.finalists import Certificates, Finalists, leaves_room, room_left, standing
from hwnas.search.problem import Problem
from hwnas.search.result import Candidate, Result
from hwnas.search.rows import RowTable
from hwnas.search.source import Source
from hwnas.search.verify import decisive

MEASURED = 24
A_ROUND = 4
NARROW = 0.01
"""Processes differ by so much: an interval that is narrower says no more."""

Solve = Callable[[Problem], tuple[Result, list[Candidate]]]


@dataclass(frozen=True)
class Evidence:
    """Predicted and measured values of one cost, by architecture, (n,) each.

    `predicted` is of the uncorrected source; `worst` the end of the confidence interval that is nearer to the bound.
    """

    genotypes: Population
    predicted: Array
    measured: Array
    worst: Array


def certified(
    problem: Problem,
    solve: Solve,
    *,
    measured: int = MEASURED,
    store: str | Path | None = None,
    journal: Path | None = None,
    seed: int = 0,
    use_up: bool = False,
) -> tuple[Result, Certificates]:
    """The most accurate finalist that keeps its budgets on the device, and its certificates.

    Args:
        solve: searches a problem; gives the result and its finalists, best first.
        measured: at most so many networks are measured.
        store: see `verify`.
        journal: the file that keeps what was measured, so that a search that is cut off goes on; None: none does.
        use_up: whether finalists that use no budget up come after those that do, whatever their accuracy.

    Each round measures the best finalists interleaved, and where one keeps its budgets, all of them once more (in the
    same company: beside others a network runs slower than alone). Where none keeps its budgets with the whole of its
    confidence interval, the costs are corrected by what was measured (see `corrected`) and the search goes on; also
    where the winner leaves room in its budgets because it surely costs less than predicted, once; with `use_up` as long
    as there are finalists that may use a budget up. A target that is not this machine ends it at once, not measured.
    """
    with scratch() as folder:
        finalists = Finalists(store or folder / SAMPLES_FILE, journal, seed, use_up)
        return _until_certified(problem, solve, measured, finalists)


def _until_certified(
    problem: Problem, solve: Solve, measured: int, finalists: Finalists
) -> tuple[Result, Certificates]:
    (result, found), had_room = solve(problem), False
    while True:
        finalists.reconsider(found)
        new = [c for c in found if c.arch not in finalists.known][: min(A_ROUND, measured - len(finalists.known))]
        finalists.measure(result, new)
        if any(finalists.promising(candidate) for candidate in new):
            finalists.measure(result, new)
        winner = min(finalists.candidates.values(), key=finalists.rank)
        certificates = finalists.known[winner.arch]
        result = _awarded(result, winner, finalists)
        kept, room = standing(certificates) == 0, leaves_room(certificates, finalists.use_up)
        enough = kept and (not room or (had_room and not finalists.use_up))
        if enough or not new or len(finalists.known) >= measured:
            left = room_left(certificates) if kept and room else []
            return result.with_best(result.best, left), certificates
        had_room |= kept
        why = "the winner leaves room in its budget" if kept else f"{len(new)} finalists break their budget, or nearly"
        say(f"{why}; the cost model is corrected, the search goes on")
        costs = _corrected_costs(problem, finalists.known)
        try:
            result, found = solve(replace(problem, costs=costs))
        except InfeasibleBudgetError as error:
            return result.with_best(result.best, [f"as measured, {error}"]), certificates
        result = result.with_best(result.best, _corrections(costs))


def _awarded(result: Result, winner: Candidate, finalists: Finalists) -> Result:
    """`result` with the winner, its certificate, and why it is not the most accurate of the finalists."""
    known, better = finalists.known, [c for c in finalists.candidates.values() if c.accuracy > winner.accuracy]
    broke = sum(decisive(certificates).status == "failed" for certificates in known.values())
    unsure = sum(standing(known[candidate.arch]) == 1 for candidate in better)
    notes = [f"{broke} of {len(known)} finalists measured broke a budget on the device"] if broke else []
    if unsure:
        notes.append(f"{unsure} more accurate finalists keep the budget, but not with the whole of their intervals")
    return result.with_best(replace(winner, certificate=decisive(known[winner.arch]).to_json()), notes)


def _corrected_costs(problem: Problem, known: Mapping[str, Certificates]) -> dict[str, Source]:
    costs = dict(problem.costs)
    for name, source in problem.costs.items():
        pairs = [
            (arch, c.measured, c.worst)
            for arch, certificates in known.items()
            for c in certificates
            if c.claim.quantity == name and c.measured is not None and c.verdict != "exact"
        ]
        if pairs:
            genotypes = problem.space.parse_many([arch for arch, *_ in pairs])
            measured, worst = np.array([values for _, *values in pairs]).T
            costs[name] = corrected(source, Evidence(genotypes, source.predict(genotypes), measured, worst))
    return costs


def _corrections(costs: Mapping[str, Source]) -> list[str]:
    """What was done to the predictions, in words."""
    return [
        f"{name} of networks that were not measured is {source.notes['scale']:.3g} times what {source.text} predicts, "
        f"by the {source.notes['measured']} that were"
        for name, source in costs.items()
        if "scale" in source.notes
    ]


def _scale(evidence: Evidence) -> float:
    """The median of `worst` over predicted, each weighed by how narrow its interval is.

    The worse end is taken so that what is found next keeps its budget with the whole of its interval. What was measured
    while the machine was disturbed says too much that way, and counts little beside what was not. What was predicted to
    cost nothing tells no scale.
    """
    some = evidence.predicted > 0
    if not some.any():
        return 1.0
    ratios, reach = (evidence.worst / value for value in (evidence.predicted, evidence.measured))
    ratios, weights = ratios[some], 1 / (np.abs(reach[some] - 1) + NARROW) ** 2
    order = np.argsort(ratios)
    below = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(weights.sum() / 2, below, ratios[order]))


def corrected(source: Source, evidence: Evidence) -> Source:
    """`source`, right about the architectures measured, and scaled elsewhere as these tell (`_scale`)."""
    scale = _scale(evidence)
    measured = RowTable(evidence.genotypes, evidence.measured)

    def interval(population: Population, coverage: float) -> tuple[Array, Array]:
        assert source.interval is not None
        low, high = source.interval(population, coverage)
        return measured(population, scale * low), measured(population, scale * high)

    additive = source.additive and Additive(
        (Factor(f.genes, scale * f.values) for f in source.additive.factors), source.additive.unit
    )
    return replace(
        source,
        predict=lambda population: measured(population, scale * source.predict(population)),
        interval=interval if source.interval else None,
        additive=additive,
        notes={**source.notes, "scale": scale, "measured": len(measured)},
    )
