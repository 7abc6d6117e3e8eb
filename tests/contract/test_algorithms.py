"""What every registered search algorithm must hold; a new one is tested by being registered."""

import numpy as np
import pytest

from hwnas.core.errors import InfeasibleBudgetError
from hwnas.search import Problem, Source, algorithms, make_problem, solve
from hwnas.search.algorithm import objectives
from hwnas.search.evaluator import Evaluator
from hwnas.search.moves import nondominated
from hwnas.spaces import get_space

SMALL, LARGE = "nasbench-macro", "ofa-mbv3:width=0.5,resolution=64/96"


@pytest.fixture(params=list(algorithms))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def rugged(spec: str) -> Source:
    """An accuracy in which genes interact."""
    space = get_space(spec)
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(2, len(space.choices), int(space.choices.max())))
    genes = np.arange(len(space.choices))

    def predict(population: np.ndarray) -> np.ndarray:
        one, two = first[genes, population], second[genes, population]
        return 0.5 + 0.01 * (one.sum(1) + (one[:, 1:] * two[:, :-1]).sum(1))

    return Source("rugged", "accuracy", predict)


def problem(spec: str, **bounds: float) -> Problem:
    return make_problem(spec, rugged(spec), ["macs_m", "params_m"], max=bounds)


def run(name: str, asked: Problem, limit: int, seed: int = 0) -> Evaluator:
    evaluator = Evaluator(asked, limit, np.random.default_rng(seed))
    algorithms.get(name)(evaluator)
    return evaluator


def test_every_architecture_found_keeps_the_budgets_and_is_asked_once(name: str) -> None:
    asked = problem(LARGE, macs_m=20, params_m=2.5)
    evaluator = run(name, asked, 1500)
    found = evaluator.feasible()
    assert 0 < evaluator.evaluations == len(found) <= 1500
    assert len(np.unique(found.genotypes, axis=0)) == len(found)
    np.testing.assert_array_equal(asked.space.canonical(found.genotypes), found.genotypes)
    assert (asked.space.macs(found.genotypes) <= 20e6).all()
    assert (asked.space.parameters(found.genotypes) <= 2.5e6).all()
    np.testing.assert_allclose(found.score, asked.accuracy.predict(found.genotypes))


def test_the_best_never_gets_worse(name: str) -> None:
    history = run(name, problem(LARGE, macs_m=25), 1500).history
    counts, best = zip(*history, strict=True)
    assert list(counts) == sorted(counts)
    assert list(best) == sorted(set(best))


def test_same_seed_same_result_and_another_seed_another(name: str) -> None:
    asked = problem(LARGE, macs_m=20)
    first, again, other = (run(name, asked, 800, seed).feasible() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.genotypes, again.genotypes)
    np.testing.assert_array_equal(first.score, again.score)
    assert not np.array_equal(first.genotypes, other.genotypes)


def test_a_small_space_is_solved_exactly(name: str) -> None:
    asked = problem(SMALL, macs_m=60)
    space = asked.space
    everything = np.indices(space.choices.tolist(), dtype=np.int16).reshape(len(space.choices), -1).T
    within = everything[space.macs(everything) <= 60e6]
    result, _ = solve(asked, name, evaluations=50_000)
    assert result.best.accuracy == pytest.approx(asked.accuracy.predict(within).max(), abs=1e-12)
    assert result.evaluations == len(within)


def test_budgets_that_exclude_each_other_end_the_search(name: str) -> None:
    space = get_space(LARGE)
    opposite = Source("opposite", "latency_ms", lambda population: 100 - space.macs(population) / 1e6)
    asked = make_problem(LARGE, rugged(LARGE), {"latency_ms": opposite}, max={"macs_m": 15, "latency_ms": 80})
    with pytest.raises(InfeasibleBudgetError, match="at once"):
        solve(asked, name, evaluations=300)


def test_the_front_is_dominated_by_nothing_that_was_found(name: str) -> None:
    evaluator = run(name, problem(LARGE), 1000)
    found = evaluator.feasible()
    values = objectives(found, evaluator.problem)
    front = values[nondominated(values)]
    at_least = (values[:, None] >= front[None]).all(axis=2)
    above = (values[:, None] > front[None]).any(axis=2)
    assert not (at_least & above).any()


def test_evolution_beats_random() -> None:
    asked = problem(LARGE, macs_m=20)
    best = {name: max(run(name, asked, 3000, seed).history[-1][1] for seed in range(3)) for name in algorithms}
    assert best["evolution"] > best["random"]
