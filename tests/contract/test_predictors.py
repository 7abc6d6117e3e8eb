"""What every registered predictor must hold; a new kind is tested by being registered."""

from pathlib import Path

import numpy as np
import pytest

from hwnas.core.errors import DomainError, InputError, MissingCostError
from hwnas.core.table import Cost, CostTable
from hwnas.core.target import Target
from hwnas.predict import Predictor, load_predictor, predictors
from hwnas.spaces import SearchSpace, get_space

QUICK: dict[str, dict[str, object]] = {
    "mlp": {"steps": 300},
    "lstm": {"steps": 60},
    "ensemble": {"members": (("gp", {}, 0.5), ("physical", {}, 0.5))},
}
SPACES = ("ofa-mbv3:width=0.5,resolution=64/96", "nasbench201", "nasbench-macro")


def block_table(space: SearchSpace) -> CostTable:
    rows = {
        p.key: {"latency_ms": Cost(0.01 + p.macs / 2e7 + p.bytes_moved / 4e7, n=9, verdict="steady")}
        for p in space.primitives()
    }
    return CostTable(Target("toy", "torch"), rows)


def measured(space: SearchSpace, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    population = space.distinct(space.sample(n, seed))
    cost = space.total(block_table(space).vector(space, "latency_ms"), population)
    noise = np.random.default_rng(seed).normal(1, 0.01, len(population))
    return population, (1.1 * cost + 0.2) * noise


def make(kind: str, space: SearchSpace, metric: str = "latency_ms") -> Predictor:
    return predictors.get(kind)(space, block_table(space), metric=metric, **QUICK.get(kind, {}))


@pytest.fixture(params=list(predictors))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("spec", SPACES)
def test_learns_and_survives_saving(kind: str, spec: str, tmp_path: Path) -> None:
    space = get_space(spec)
    population, latency = measured(space, 150, 0)
    model = make(kind, space).fit(population[:100], latency[:100])
    held_out, truth = population[100:], latency[100:]
    predicted = model.predict(held_out)
    assert predicted.shape == (len(held_out),)
    assert np.corrcoef(predicted, truth)[0, 1] > 0.7
    model.save(tmp_path / "model")
    opened = load_predictor(tmp_path / "model")
    np.testing.assert_allclose(opened.predict(held_out), predicted, rtol=1e-5)
    np.testing.assert_allclose(opened.interval(held_out), model.interval(held_out), rtol=1e-5)


@pytest.mark.parametrize("kind", [name for name in predictors if name != "sum"])
def test_knows_more_than_the_sum_of_parts(kind: str) -> None:
    """What running a whole network adds to the costs of its primitives is learnt."""
    space = get_space(SPACES[0])
    population, latency = measured(space, 200, 4)
    held_out, truth = population[150:], latency[150:]

    def error(model: Predictor) -> float:
        return float(np.median(np.abs(model.predict(held_out) / truth - 1)))

    assert error(make(kind, space).fit(population[:150], latency[:150])) < 0.7 * error(make("sum", space))


def test_intervals_contain_each_other_and_cover(kind: str) -> None:
    space = get_space(SPACES[0])
    population, latency = measured(space, 300, 1)
    model = make(kind, space).fit(population[:150], latency[:150])
    low90, high90 = model.interval(population[150:], 0.9)
    low50, high50 = model.interval(population[150:], 0.5)
    assert (low90 <= low50).all() and (high50 <= high90).all()
    inside = (latency[150:] >= low90) & (latency[150:] <= high90)
    assert inside.mean() >= 0.75


def test_throughput_is_fitted_as_its_inverse(kind: str) -> None:
    space = get_space("nasbench-macro")
    population, latency = measured(space, 250, 2)
    throughput = 1000 / latency
    model = make(kind, space, "throughput_ips").fit(population[:150], throughput[:150])
    predicted = model.predict(population[150:])
    assert np.corrcoef(predicted, throughput[150:])[0, 1] > 0.7
    assert 0.4 < np.median(predicted / throughput[150:]) < 2.5


def test_same_seed_same_model(kind: str) -> None:
    space = get_space("nasbench-macro")
    population, latency = measured(space, 60, 3)
    first, second = (make(kind, space).fit(population, latency).predict(population) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_refuses_what_training_held_constant(kind: str) -> None:
    space = get_space("ofa-mbv3:width=0.5,resolution=64/96")
    population, latency = measured(space, 80, 4)
    small = population[:, -1] == 0
    model = make(kind, space).fit(population[small], latency[small])
    if not model.learns:
        assert model.predict(population).shape == (len(population),)
        return
    with pytest.raises(DomainError, match=r"r was 64 .* is 96"):
        model.predict(population)
    assert model.predict(population, extrapolate=True).shape == (len(population),)


def test_refuses_values_that_nobody_can_learn_from(kind: str) -> None:
    space = get_space("nasbench-macro")
    population, latency = measured(space, 20, 5)
    model = make(kind, space)
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(InputError, match="row 3"):
            model.fit(population, np.where(np.arange(len(latency)) == 3, bad, latency))
    with pytest.raises(InputError, match="architectures and"):
        model.fit(population, latency[:-1])
    if model.learns:
        with pytest.raises(InputError, match="nothing to learn"):
            model.fit(population, np.ones(len(latency)))
    with pytest.raises(DomainError):
        model.fit(population[:, :-1], latency)


def test_says_that_it_needs_costs_or_does_without(kind: str) -> None:
    space = get_space("nasbench-macro")
    if predictors.get(kind).needs_costs:
        with pytest.raises(InputError, match="needs a cost table"):
            predictors.get(kind)(space)
        return
    population, latency = measured(space, 80, 6)
    model = predictors.get(kind)(space, **QUICK.get(kind, {})).fit(population, latency)
    assert np.isfinite(model.predict(population)).all()


@pytest.mark.parametrize("kind", [kind for kind in predictors if predictors.get(kind).needs_costs])
def test_a_missing_cost_is_never_zero(kind: str) -> None:
    space = get_space("nasbench-macro")
    full = block_table(space)
    lost = space.primitives()[1].key
    table = CostTable(full.target, {key: row for key, row in full.rows.items() if key != lost})
    model = predictors.get(kind)(space, table)
    population, latency = measured(space, 60, 7)
    with pytest.raises(MissingCostError, match="1:"):
        model.fit(population, latency)


def test_unknown_option(kind: str) -> None:
    with pytest.raises(InputError, match="no option 'colour'"):
        predictors.get(kind)(get_space("nasbench-macro"), colour=1)


@pytest.mark.parametrize("kind", ["mlp", "ridge", "gp", "boosting"])
def test_an_unknown_loss_is_refused(kind: str) -> None:
    space = get_space(SPACES[0])
    with pytest.raises(InputError, match="loss"):
        predictors.get(kind)(space, block_table(space), loss="huge", **QUICK.get(kind, {})).fit(*measured(space, 30, 0))


def test_a_kind_registered_from_outside_survives_saving(tmp_path: Path) -> None:
    from hwnas.predict.linear import AdditiveRidge

    @predictors.register("from-outside")
    class FromOutside(AdditiveRidge):
        """A kind of another package."""

    try:
        space = get_space(SPACES[0])
        population, values = measured(space, 60, 0)
        model = FromOutside(space).fit(population, values)
        model.save(tmp_path)
        opened = load_predictor(tmp_path)
        assert type(opened) is FromOutside
        np.testing.assert_allclose(opened.predict(population), model.predict(population))
    finally:
        del predictors._members["from-outside"]
