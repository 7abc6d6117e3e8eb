"""Searches that learn the choices while they train a super-network: train, choose exactly, measure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from hwnas.core.arrays import Population
from hwnas.core.errors import InputError
from hwnas.core.files import check_folder
from hwnas.core.progress import is_first_process, say
from hwnas.search.algorithm import objectives
from hwnas.search.certified import MEASURED
from hwnas.search.evaluator import Scored
from hwnas.search.moves import nondominated
from hwnas.search.probable import Limit, most_probable
from hwnas.search.problem import ACCURACY, Constraint, Problem, make_problem
from hwnas.search.reach import Range, check_reach, first_feasible, infeasible, reachable
from hwnas.search.result import Candidate, Result, problem_to_json
from hwnas.search.run import FINALISTS, candidates, finish
from hwnas.search.source import Source
from hwnas.search.subnets import Remembering
from hwnas.train.expected import ExpectedCost

if TYPE_CHECKING:
    from hwnas.train.choices import Choices
    from hwnas.train.config import OneShotConfig
    from hwnas.train.mixed import MixedNetwork
    from hwnas.train.oneshot import CostTerm
    from hwnas.train.supernet import Supernet

BAND = 0.03
CHANCE = 0.9


def one_shot_search(
    config: OneShotConfig,
    costs: str | Sequence[str] | Mapping[str, Source] = (),
    *,
    out: str | Path,
    max: Mapping[str, float] | None = None,
    min: Mapping[str, float] | None = None,
    confidence: float | None = None,
    measured: int = MEASURED,
    store: str | Path | None = None,
) -> Result:
    """Train the super-network of `config` in `out` and find the network it says; the same call resumes what was killed.

    The training pulls the expected cost to the budget; the last step is exact: of all architectures within the budget
    and within 3 % of it, the most probable ones are evaluated, and the most accurate of them wins. Arguments as of
    `hwnas.search.search`. Under torchrun all processes train and the first one alone measures and writes. Raises
    `InfeasibleBudgetError` before any training where no architecture keeps the budgets.
    """
    from hwnas.train.oneshot import train_one_shot

    check_folder(out)
    folder = str(Path(out).resolve())
    problem = make_problem(
        config.space,
        Source(folder, ACCURACY, _untrained, supernet=folder),
        costs,
        max=max,
        min=min,
        confidence=confidence,
    )
    ranges = _check(problem)
    started = time.perf_counter()
    supernet = train_one_shot(config, _terms(problem, ranges), folder)
    say(f"{config.algorithm}: {_entropy_text(supernet)}")
    exact = Remembering(supernet.accuracy, len(problem.space.genes))
    problem = replace(problem, accuracy=replace(problem.accuracy, predict=exact, asked=exact.asked))
    choose = _Chooser(config, ranges, supernet, started)
    if not is_first_process():
        return choose(problem)[0]
    return finish(problem, choose, measured=measured, store=store, seed=config.seed, out=out, use_up=True)


def _untrained(population: np.ndarray) -> np.ndarray:
    raise InputError("the super-network is not trained yet")


def _check(problem: Problem) -> dict[str, Range]:
    """The reachable range of each cost; raises where the problem cannot be solved, before anything is trained."""
    if problem.known() is not None:
        raise InputError(
            "a table of measured networks answers for those alone, and a search that learns its choices asks for any: "
            "fit a predictor to it (hwnas fit-predictor) and give its folder as --cost"
        )
    ranges = check_reach(problem, None)
    if ranges and first_feasible(problem) is None:
        raise infeasible(problem, ranges, None)
    return ranges or {name: reachable(source, problem.space) for name, source in problem.costs.items()}


def _bounds(problem: Problem) -> list[Constraint]:
    return [constraint for constraint in problem.constraints if constraint.quantity != ACCURACY]


def _claim(problem: Problem, constraint: Constraint) -> Limit:
    """The constraint as a limit on what is claimed: the cost, or with a confidence the end of its interval."""
    source = problem.costs[constraint.quantity]

    def claimed(population: np.ndarray) -> np.ndarray:
        return problem.claimed(constraint, population, source.predict(population))

    return Limit(claimed, high=constraint.bound) if constraint.upper else Limit(claimed, low=constraint.bound)


def _terms(problem: Problem, ranges: Mapping[str, Range]) -> list[CostTerm]:
    """The costs that the training takes into account: those with a bound, or all where none has one."""
    from hwnas.train.oneshot import CostTerm

    space = problem.space
    bounded = [
        CostTerm(c.quantity, ExpectedCost(space, _claim(problem, c).cost), least, c.bound, c.upper, most)
        for c, (least, most) in ((c, ranges[c.quantity]) for c in _bounds(problem))
    ]
    return bounded or [
        CostTerm(name, ExpectedCost(space, source.predict), ranges[name][0]) for name, source in problem.costs.items()
    ]


@dataclass(frozen=True)
class _Chooser:
    """Solves a problem with what was learnt; called again with costs that measurements have corrected."""

    config: OneShotConfig
    ranges: dict[str, Range]
    supernet: Supernet
    started: float

    def __call__(self, problem: Problem) -> tuple[Result, list[Candidate]]:
        pool, notes = self._pool(problem)
        if not len(pool):
            raise infeasible(problem, self.ranges, None)
        accuracy = problem.accuracy.predict(pool)
        enough = problem.accuracy_violation(accuracy) == 0
        if not enough.any():
            raise infeasible(problem, self.ranges, float(accuracy.max()))
        order = np.flatnonzero(enough)[np.argsort(-accuracy[enough], kind="stable")]
        scored = Scored(pool[order], accuracy[order], problem.cost_values(pool[order]))
        chosen = candidates(problem, scored)
        assert problem.accuracy.asked is not None
        asked = len(problem.accuracy.asked())
        result = Result(
            problem_to_json(problem),
            chosen[0],
            candidates(problem, scored[nondominated(objectives(scored, problem))[::-1]]),
            [(asked, chosen[0].accuracy)],
            self.config.algorithm,
            self.config.seed,
            asked,
            time.perf_counter() - self.started,
            {name: ends for name, ends in self.ranges.items() if any(c.quantity == name for c in _bounds(problem))},
            [*notes, *_undecided(self.supernet)],
            {"entropy": _entropy(self.supernet)},
        )
        return result, chosen

    def _pool(self, problem: Problem) -> tuple[Population, list[str]]:
        """The most probable architectures that use a budget up, or where there are none, that keep all of them."""
        probabilities = _choices(self.supernet).probabilities().double().cpu().numpy()
        solve = partial(most_probable, problem.space, probabilities, n=FINALISTS, seed=self.config.seed)
        bounds = _bounds(problem)
        limits = [_claim(problem, constraint) for constraint in bounds]
        banded = [[*limits[:i], _band(limit), *limits[i + 1 :]] for i, limit in enumerate(limits) if bounds[i].bound]
        pools = [pool for pool in map(solve, banded) if len(pool)]
        if not bounds or pools:
            pool = np.concatenate(pools) if pools else solve([])
            logs = np.log(probabilities[np.arange(pool.shape[1]), pool]).sum(axis=1)
            return problem.space.distinct(pool[np.argsort(-logs, kind="stable")])[:FINALISTS], []
        asked = " and ".join(map(str, bounds))
        return solve(limits), [f"no architecture within {BAND:.0%} of the budget {asked} was found"]


def _band(limit: Limit) -> Limit:
    if np.isfinite(limit.high):
        return replace(limit, low=limit.high - BAND * abs(limit.high))
    return replace(limit, high=limit.low + BAND * abs(limit.low))


def _choices(supernet: Supernet) -> Choices:
    return cast("MixedNetwork", supernet.network).choices


def _entropy(supernet: Supernet) -> dict[str, float]:
    values = _choices(supernet).entropy().tolist()
    return {gene.name: value for gene, value in zip(supernet.space.genes, values, strict=True)}


def _entropy_text(supernet: Supernet) -> str:
    values = list(_entropy(supernet).values())
    return f"the mean entropy of {len(values)} choices is {float(np.mean(values)):.2f} of what chance has"


def _undecided(supernet: Supernet) -> list[str]:
    entropy = _entropy(supernet)
    left = [name for name, value in entropy.items() if value >= CHANCE]
    if not left:
        return []
    return [
        f"{len(left)} of {len(entropy)} choices stayed near chance (entropy above {CHANCE:.0%} of the most it can be): "
        f"{', '.join(left)}; there the budget decided and not the data; train longer, or raise arch_learning_rate"
    ]
