"""From budgets to the best architecture: what a search promises, refuses and writes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hwnas.core.errors import InfeasibleBudgetError, InputError, UnknownNameError
from hwnas.fpga import get_target, runs_on, supported
from hwnas.search import Problem, Result, Source, make_problem, search, solve
from hwnas.search.moves import crossover, crowding, mutate, neighbours, nondominated, ranks
from hwnas.search.reach import minimise, reachable
from hwnas.search.rows import RowHash, RowSet, RowTable
from hwnas.search.subnets import spread
from hwnas.spaces import get_space

SPEC = "ofa-mbv3:width=0.5,resolution=64/96"
SPACE = get_space(SPEC)
WEIGHTS = np.random.default_rng(3).random(len(SPACE.choices))


def simple(population: np.ndarray) -> np.ndarray:
    """Every gene helps, some more than others."""
    return 0.5 + (population * WEIGHTS).sum(1) / 200


ACCURACY = Source("simple", "accuracy", simple)


def everything(spec: str) -> np.ndarray:
    choices = get_space(spec).choices
    return np.indices(choices.tolist(), dtype=np.int16).reshape(len(choices), -1).T


# sets of rows


def test_rows_are_told_apart_and_repeats_found() -> None:
    population = SPACE.sample(20_000, 0)
    hashes = RowHash(len(SPACE.choices))(population)
    assert len(np.unique(hashes)) == len(np.unique(population, axis=0))


def test_a_row_set_lets_each_row_in_once() -> None:
    rng, row_set, seen = np.random.default_rng(0), RowSet(), set[int]()
    for _ in range(50):
        hashes = rng.integers(0, 3000, 200).astype(np.uint64)
        added = row_set.add(hashes)
        expected = [i for i, h in enumerate(hashes.tolist()) if h not in seen and h not in hashes[:i].tolist()]
        assert added.tolist() == expected
        seen |= set(hashes.tolist())


# moves


def test_mutation_changes_one_gene_or_more_and_stays_in_the_space() -> None:
    population = SPACE.sample(500, 0)
    mutated = mutate(population, SPACE, 0.0, np.random.default_rng(0))
    assert ((mutated != population).sum(1) == 1).all()
    SPACE.check(mutate(population, SPACE, 3.0, np.random.default_rng(0)))
    assert (mutate(population, SPACE, 3.0, np.random.default_rng(0)) != population).sum() > 3 * 500


def test_children_take_each_gene_from_a_parent() -> None:
    parents = np.stack([np.zeros(30, np.int16), np.ones(30, np.int16)])
    children = crossover(parents, 400, 0.5, np.random.default_rng(0))
    mixed = (children.min(1) == 0) & (children.max(1) == 1)
    assert children.shape == (400, 30)
    assert 60 < mixed[:200].sum() < 140 and not mixed[200:].any()
    assert 0.4 < children[:200][mixed[:200]].mean() < 0.6


def test_the_neighbourhood_is_every_change_of_one_gene() -> None:
    row = get_space("nasbench201").sample(1, 0)
    near = neighbours(row, get_space("nasbench201"))
    assert len(near) == 6 * 4 == len(np.unique(near, axis=0))
    assert ((near != row).sum(1) == 1).all()


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_ranks_and_front_follow_from_dominance(columns: int) -> None:
    values = np.random.default_rng(0).integers(0, 12, (80, columns)).astype(float)
    dominated = (values[None] >= values[:, None]).all(2) & (values[None] > values[:, None]).any(2)
    rank = ranks(values)
    np.testing.assert_array_equal(rank == 0, ~dominated.any(1))
    for level in range(1, rank.max() + 1):
        above = dominated[np.ix_(rank == level, rank == level - 1)]
        assert above.any(1).all()
        assert not dominated[np.ix_(rank == level, rank == level)].any()
    front = {tuple(row) for row in values[nondominated(values)]}
    assert front == {tuple(row) for row in values[rank == 0]}
    assert len(front) == len(nondominated(values))


def test_crowding_prefers_the_ends_and_the_lonely() -> None:
    distance = crowding(np.array([[0.0, 10], [1, 9], [2, 8], [9, 1], [10, 0]]))
    assert np.isinf(distance[[0, 4]]).all()
    assert distance[1] < distance[2] and distance[1] < distance[3]


# what can be reached


def test_the_reach_of_an_opaque_cost_is_found() -> None:
    def macs(population: np.ndarray) -> np.ndarray:
        return SPACE.macs(population) / 1e6

    opaque = Source("opaque", "latency_ms", macs)
    exact = reachable(make_problem(SPEC, ACCURACY, "macs_m").costs["macs_m"], SPACE)
    assert reachable(opaque, SPACE) == pytest.approx(exact, rel=1e-9)


def test_minimise_finds_the_least_of_a_small_space() -> None:
    space = get_space("nasbench201")
    values = np.random.default_rng(0).normal(size=(6, 5)) * np.arange(1, 7)[:, None]

    def function(population: np.ndarray) -> np.ndarray:
        return values[np.arange(6), population].sum(1)

    assert function(minimise(function, space)[None])[0] == function(everything("nasbench201")).min()


def test_the_reach_of_a_small_space_is_exact_however_rugged_the_cost() -> None:
    """A budget that three of 15,625 random latencies keep is found and used up, by whatever seed."""
    space = get_space("nasbench201")
    every = everything("nasbench201")
    latencies, accuracies = np.random.default_rng(0).random((2, len(every)))
    powers = 5 ** np.arange(len(space.choices))
    index = np.empty(len(every), dtype=int)
    index[every @ powers] = np.arange(len(every))
    rugged = Source("rugged", "latency_ms", lambda population: latencies[index[population @ powers]])
    accuracy = Source("random", "accuracy", lambda population: accuracies[index[population @ powers]])
    assert reachable(rugged, space) == (latencies.min(), latencies.max())
    budget = np.sort(latencies)[2]
    best = accuracies[latencies <= budget].max()
    for seed in range(3):
        found = search(space, accuracy, {"latency_ms": rugged}, max={"latency_ms": budget}, evaluations=500, seed=seed)
        assert found.best.accuracy == best


@pytest.mark.parametrize("feasible", [1, 10])
def test_the_networks_of_a_table_that_keep_a_budget_are_all_met(feasible: int) -> None:
    rng = np.random.default_rng(1)
    known = SPACE.distinct(SPACE.sample(20_000, 1))
    latencies, accuracies = rng.random((2, len(known)))

    def column(values: np.ndarray, name: str) -> Source:
        table = RowTable(known, values)
        return Source("table", name, lambda population: table(population, np.nan), known=known)

    budget = np.sort(latencies)[feasible - 1]
    costs = {"latency_ms": column(latencies, "latency_ms")}
    for seed in range(3):
        result = search(SPACE, column(accuracies, "accuracy"), costs, max={"latency_ms": budget}, seed=seed)
        assert result.best.accuracy == accuracies[latencies <= budget].max()


def test_the_accuracy_model_sees_the_whole_of_the_space() -> None:
    population = spread(SPACE, 100)
    macs, ends = SPACE.macs(population), SPACE.macs(np.stack([0 * SPACE.choices, SPACE.choices - 1]))
    assert (macs.min(), macs.max()) == tuple(ends) and len(SPACE.distinct(population)) == 100
    counts, _ = np.histogram(macs, bins=5, range=tuple(ends.tolist()))
    assert counts.min() >= 8


@pytest.mark.parametrize(("end", "bound"), [("max", 1.0), ("min", 9e9)])
def test_an_impossible_budget_is_refused_with_both_ends(end: str, bound: float) -> None:
    with pytest.raises(InfeasibleBudgetError, match=f"--{end} macs_m") as caught:
        search(SPEC, ACCURACY, "macs_m", **{end: {"macs_m": bound}})  # type: ignore[arg-type]
    least, most = reachable(make_problem(SPEC, ACCURACY, "macs_m").costs["macs_m"], SPACE)
    assert f"{least:.6g}" in str(caught.value) and f"{most:.6g}" in str(caught.value)


def test_a_search_stays_within_what_a_dpu_runs() -> None:
    space, dpu = get_space("fbnet:variant=cifar"), get_target("zcu102-b4096")
    blocks = np.append(~supported(space.primitives(), dpu), False)
    alien = Source("alien", "accuracy", lambda population: blocks[space.blocks(population)].mean(1))
    free = search(space, alien, evaluations=2000).best
    kept = search(space, alien, "dpu:zcu102-b4096", max={"unsupported_blocks": 0}, evaluations=2000).best
    assert free.accuracy > 0.2 and not runs_on(space, [space.parse(free.arch)], dpu).any()
    assert kept.accuracy == 0 and runs_on(space, [space.parse(kept.arch)], dpu).all()
    with pytest.raises(InfeasibleBudgetError, match="unsupported_blocks reaches from 2 to"):
        search("nasbench201", ACCURACY, "dpu:zcu102-b4096", max={"unsupported_blocks": 0})


def test_a_budget_that_only_the_cheapest_network_meets_is_met() -> None:
    least, _ = reachable(make_problem(SPEC, ACCURACY, "macs_m").costs["macs_m"], SPACE)
    result = search(SPEC, ACCURACY, "macs_m", max={"macs_m": least * 1.0001}, evaluations=200)
    assert result.best.costs["macs_m"] == pytest.approx(least)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("quantity", "ideal"), [("macs_m", min), ("throughput_ips", max)])
def test_of_equally_accurate_networks_the_cheapest_wins(
    exact: bool, quantity: str, ideal: Callable[[list[float]], float]
) -> None:
    def rough(population: np.ndarray) -> np.ndarray:
        return np.round(simple(population), 1)

    accuracy = Source("rough", "accuracy", simple if exact else rough, exact=rough if exact else None)
    cost = Source("cost", quantity, lambda population: SPACE.macs(population) / 1e6)
    problem = make_problem(SPEC, accuracy, {quantity: cost})
    result, finalists = solve(problem, evaluations=500)
    equal = [candidate.costs[quantity] for candidate in finalists if candidate.accuracy == result.best.accuracy]
    assert len(equal) > 1 and result.best.costs[quantity] == ideal(equal)
    assert result.best.arch in {candidate.arch for candidate in result.front}


def test_an_accuracy_that_is_too_much_to_ask_names_the_best_found() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"best accuracy found under the budgets is 0\.7"):
        search(SPEC, ACCURACY, "macs_m", max={"macs_m": 20}, min={"accuracy": 0.99}, evaluations=2000)


# results


def test_a_search_writes_a_result_that_reads_back(tmp_path: Path) -> None:
    result = search(SPEC, ACCURACY, ["macs_m", "params_m"], max={"macs_m": 20}, seed=4, evaluations=500, out=tmp_path)
    again = Result.load(tmp_path)
    assert again.to_json() == json.loads(json.dumps(result.to_json()))
    assert again.evaluations == 500 and again.seed == 4
    best = SPACE.parse(result.best.arch)[None]
    assert result.best.accuracy == pytest.approx(simple(best)[0])
    assert result.best.costs == pytest.approx(
        {"macs_m": SPACE.macs(best)[0] / 1e6, "params_m": SPACE.parameters(best)[0] / 1e6}
    )
    written = json.loads((tmp_path / "search.json").read_text())
    assert set(written["best"]) == {"arch", "accuracy", "costs", "certificate"}


def test_the_front_rises_in_accuracy_and_cost() -> None:
    result = search(SPEC, ACCURACY, "macs_m", front=True, evaluations=3000)
    accuracy = [candidate.accuracy for candidate in result.front]
    macs = [candidate.costs["macs_m"] for candidate in result.front]
    assert result.algorithm == "nsga2" and len(result.front) > 20
    assert accuracy == sorted(set(accuracy)) and macs == sorted(set(macs))
    assert result.best.arch == result.front[-1].arch


def test_a_budget_left_unused_is_explained() -> None:
    flat = Source("flat", "accuracy", lambda population: 0.9 - 0.001 * population.sum(1))
    result = search(SPEC, flat, "macs_m", max={"macs_m": 40}, evaluations=3000)
    assert "more would not help, the best of the" in result.notes[0]
    result = search(SPEC, flat, "macs_m", max={"macs_m": 4000}, evaluations=300)
    assert "no network of the space costs more than" in result.notes[0]
    assert not search(SPEC, ACCURACY, "macs_m", max={"macs_m": 20}, evaluations=3000).notes


def test_confidence_keeps_the_end_of_the_interval_below_the_budget() -> None:
    def predict(population: np.ndarray) -> np.ndarray:
        return SPACE.macs(population) / 1e6

    def interval(population: np.ndarray, coverage: float) -> tuple[np.ndarray, np.ndarray]:
        return predict(population) * (1 - coverage / 10), predict(population) * (1 + coverage / 10)

    sure = Source("model", "latency_ms", predict, interval)
    plain = search(SPEC, ACCURACY, {"latency_ms": sure}, max={"latency_ms": 20}, evaluations=3000)
    careful = search(SPEC, ACCURACY, {"latency_ms": sure}, max={"latency_ms": 20}, confidence=0.9, evaluations=3000)
    assert careful.best.costs["latency_ms"] * 1.08 <= 20 < plain.best.costs["latency_ms"] * 1.08
    assert careful.best.accuracy < plain.best.accuracy


def test_exact_counts_hold_with_any_confidence() -> None:
    dpu = "dpu:zcu102-b4096"
    result = search(
        "ofa-mbv3:width=0.5,resolution=64,variant=cifar",
        ACCURACY,
        ["size=params_m", dpu],
        max={"size.params_m": 1.5, "unsupported_blocks": 0},
        confidence=0.9,
        evaluations=300,
    )
    assert result.best.costs["size.params_m"] <= 1.5 and result.best.costs["unsupported_blocks"] == 0


def test_only_what_the_tables_know_is_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    space = get_space("mnasnet")
    rows = space.distinct(space.sample(300, 0))
    lines = [f"'{space.format(row)}';{rng.random()}".replace("'", "") for row in rows]
    text = "\n".join(f'"{line.split(";")[0].replace(chr(34), chr(34) * 2)}",{line.split(";")[1]}' for line in lines)
    (tmp_path / "t.csv").write_text(f"arch,top1_acc\n{text}\n")
    result = search("mnasnet", f"table:{tmp_path / 't.csv'}#top1_acc", "params_m")
    assert result.evaluations == len(rows)
    assert result.best.accuracy == max(float(line.split(";")[1]) for line in lines)


def test_the_super_networks_own_word_decides_among_finalists() -> None:
    def exact(population: np.ndarray) -> np.ndarray:
        return simple(population) + np.where(population[:, 0] == 1, 0.5, 0.0)

    sampled = SPACE.canonical(np.ones((1, len(SPACE.choices)), int))
    source = Source("model", "accuracy", simple, exact=exact, asked=lambda: sampled)
    result, finalists = solve(make_problem(SPEC, source, "macs_m", max={"macs_m": 40}), evaluations=2000)
    for candidate in finalists:
        assert candidate.accuracy == pytest.approx(exact(SPACE.parse(candidate.arch)[None])[0])
    assert result.best.accuracy == max(candidate.accuracy for candidate in finalists)
    assert result.best.accuracy >= exact(sampled)[0]


DAMAGED = {"empty": "", "no search": '{"kind": "other", "schema": 1}', "cut": '{"kind": "search", "schema": 1}'}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_folder_without_a_whole_search_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(InputError, match=r"search\.json"):
        Result.load(tmp_path)


def test_an_unknown_algorithm_is_refused_before_anything_runs() -> None:
    def never(population: np.ndarray) -> np.ndarray:
        raise AssertionError("asked")

    problem: Problem = make_problem(SPEC, Source("never", "accuracy", never))
    with pytest.raises(UnknownNameError, match="did you mean 'evolution'"):
        solve(problem, "evolutoin")
    with pytest.raises(InputError, match="at least 1"):
        solve(problem, evaluations=0)
