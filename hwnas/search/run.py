"""`search`: from the names of sources and budgets to the best architecture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.arrays import Array
from hwnas.core.documents import JOURNAL, SEARCH
from hwnas.core.errors import InputError
from hwnas.core.files import check_folder
from hwnas.core.progress import progress, say
from hwnas.search.algorithm import algorithms, objectives
from hwnas.search.certified import MEASURED, Solve, certified
from hwnas.search.evaluator import Evaluator, Scored
from hwnas.search.moves import leading, nondominated
from hwnas.search.problem import ACCURACY, Constraint, Problem, make_problem
from hwnas.search.reach import Range, check_reach, first_feasible, infeasible
from hwnas.search.result import Candidate, Result, problem_to_json
from hwnas.search.source import Source
from hwnas.search.verify import save_certificates
from hwnas.spaces import SearchSpace

AUTO = "auto"
EVALUATIONS = 80_000
FINALISTS = 8
FRONT_ASKED = 12
ENOUGH = 0.8


def search(
    space: str | SearchSpace,
    accuracy: str | Source,
    costs: str | Sequence[str] | Mapping[str, Source] = (),
    *,
    max: Mapping[str, float] | None = None,
    min: Mapping[str, float] | None = None,
    confidence: float | None = None,
    algorithm: str = AUTO,
    seed: int = 0,
    front: bool = False,
    evaluations: int = EVALUATIONS,
    seconds: float | None = None,
    measured: int = MEASURED,
    store: str | Path | None = None,
    out: str | Path | None = None,
) -> Result:
    """Find the most accurate architecture under budgets, of equally accurate ones the cheapest.

    Args:
        space: the space, or its name with options.
        accuracy: a source to maximise: a super-network's or predictor's folder, `table:FILE#COLUMN`, `ofa:FILE`.
        costs: sources of costs, each as `--cost` takes it (`[NAME=]SOURCE`), or opened ones by quantity.
        max, min: bounds by quantity, in its unit; `NAME.quantity` where several costs share one.
        confidence: the probability with which a bound on a predicted cost has to hold; None: the prediction itself.
        algorithm: a registered name; `auto` is `nsga2` where the front is asked for, else `evolution`.
        front: whether the whole accuracy-cost front is wanted.
        evaluations: at most so many distinct architectures are asked for their accuracy.
        seconds: a limit on the time too; a search that it ends is not repeatable.
        measured: at most so many finalists are measured, where a budget is of this machine; 0: none is.
        store: the sample store of the profile behind the cost model; see `verify`.
        out: the run folder to write `search.json` and `certificates.json` to.

    Raises `InfeasibleBudgetError` where no architecture keeps the budgets, `InputError` for what cannot be used.
    """
    check_folder(out)
    problem = make_problem(space, accuracy, costs, max=max, min=min, confidence=confidence)
    if out is not None and (Path(out) / SEARCH.file).exists():
        say(f"{out} holds a search, which this one replaces at its end")

    def run(asked: Problem) -> tuple[Result, list[Candidate]]:
        return solve(asked, algorithm, seed, front=front, evaluations=evaluations, seconds=seconds)

    return finish(problem, run, measured=measured, store=store, seed=seed, out=out)


def finish(
    problem: Problem,
    run: Solve,
    *,
    measured: int,
    store: str | Path | None,
    seed: int,
    out: str | Path | None,
    use_up: bool = False,
) -> Result:
    """Solve a problem by `run`, measure its finalists where a budget is of this machine, and write what came of it."""
    journal = Path(out) / JOURNAL.file if out is not None else None
    if measured and any(constraint.quantity in problem.costs for constraint in problem.constraints):
        how: dict[str, Any] = {"measured": measured, "store": store, "journal": journal, "seed": seed}
        result, certificates = certified(problem, run, use_up=use_up, **how)
    else:
        result, certificates = run(problem)[0], []
    if out is not None and journal is not None:
        save_certificates(out, certificates)
        result.save(out)
        journal.unlink(missing_ok=True)
    return result


def solve(
    problem: Problem,
    algorithm: str = AUTO,
    seed: int = 0,
    *,
    front: bool = False,
    evaluations: int = EVALUATIONS,
    seconds: float | None = None,
) -> tuple[Result, list[Candidate]]:
    """`search` for an opened problem, without measuring; gives the finalists too, best first."""
    if evaluations < 1:
        raise InputError(f"evaluations is {evaluations}, expected at least 1")
    name = ("nsga2" if front else "evolution") if algorithm == AUTO else algorithm
    run = algorithms.get(name)
    known = problem.known()
    ranges = check_reach(problem, known)
    start = first_feasible(problem) if known is None and ranges else None
    problem.accuracy.predict(problem.space.sample(1, 0))  # what has to be fitted first is no part of the search's time
    started = time.perf_counter()
    evaluator = Evaluator(problem, evaluations, np.random.default_rng(seed), seconds, start)
    with progress("search", evaluator.limit) as evaluator.shown:
        run(evaluator)
    found = evaluator.feasible()
    if not len(found):
        raise infeasible(problem, ranges, evaluator.best_short)
    considered = found if problem.accuracy.exact is None else _asked_exactly(evaluator, found, front)
    finalists = _finalists(problem, considered)
    chosen = candidates(problem, finalists)
    shown = _front(evaluator, considered)
    notes = _unused(problem, considered, finalists[:1], ranges)
    took = time.perf_counter() - started
    result = Result(
        problem_to_json(problem),
        chosen[0],
        candidates(problem, shown),
        evaluator.history,
        name,
        seed,
        evaluator.evaluations,
        took,
        ranges,
        notes,
        problem.accuracy.notes,
    )
    return result, chosen


def candidates(problem: Problem, scored: Scored) -> list[Candidate]:
    """The architectures as text, with their accuracy and costs."""
    return [
        Candidate(problem.space.format(row), float(score), dict(zip(problem.costs, map(float, costs), strict=True)))
        for row, score, costs in zip(scored.genotypes, scored.score, scored.costs, strict=True)
    ]


def _finalists(problem: Problem, found: Scored) -> Scored:
    """The most accurate ones, best first; of equally accurate ones the cheapest first."""
    found = leading(found, FINALISTS)
    return found[np.lexsort(-objectives(found, problem).T[::-1])[:FINALISTS]]


def _asked_exactly(evaluator: Evaluator, found: Scored, front: bool) -> Scored:
    """The finalists, all that the super-network was ever asked about, and with `front` some spread over the front.

    Their score is what the super-network itself says, of those that keep the constraints.
    """
    problem = evaluator.problem
    genotypes = [_finalists(problem, found).genotypes]
    if front:
        spread = _front(evaluator, found).genotypes
        genotypes.append(spread[np.linspace(0, len(spread) - 1, FRONT_ASKED).astype(int)])
    if problem.accuracy.asked is not None:
        genotypes.append(problem.accuracy.asked())
    population = problem.space.distinct(np.concatenate(genotypes))
    costs = problem.cost_values(population)
    kept = problem.violation(population, costs) == 0
    population, costs = population[kept], costs[kept]
    assert problem.accuracy.exact is not None
    accuracy = problem.accuracy.exact(population)
    enough = problem.accuracy_violation(accuracy) == 0
    if not enough.any():
        raise infeasible(problem, {}, float(accuracy.max()))
    return Scored(population[enough], accuracy[enough], costs[enough])


def _front(evaluator: Evaluator, found: Scored) -> Scored:
    front = found[nondominated(objectives(found, evaluator.problem))]
    return front[np.argsort(front.score, kind="stable")]


def _unused(problem: Problem, found: Scored, winner: Scored, ranges: Mapping[str, Range]) -> list[str]:
    """Why a budget was not used up: what the best architecture that uses it reaches."""
    notes = []
    names = list(problem.costs)
    for constraint in problem.constraints:
        if constraint.quantity == ACCURACY or not constraint.upper or constraint.bound <= 0:
            continue
        costs = found.costs[:, names.index(constraint.quantity)]
        spent = float(winner.costs[0, names.index(constraint.quantity)])
        if spent < ENOUGH * constraint.bound:
            most = ranges[constraint.quantity][1]
            notes.append(_why_more_would_not_help(constraint, spent, found.score[costs > spent], most))
    return notes


def _why_more_would_not_help(constraint: Constraint, spent: float, dearer: Array, most: float) -> str:
    what = f"the winner uses {spent / constraint.bound:.0%} of the budget {constraint}"
    if most < ENOUGH * constraint.bound:
        return f"{what}: no network of the space costs more than {most:.6g}"
    if not len(dearer):
        return f"{what}: no architecture met costs more"
    return (
        f"{what}: more would not help, the best of the {len(dearer)} architectures met that cost more "
        f"has an accuracy of {float(dearer.max()):.6g}"
    )
