"""Kernels of positions that follow each other, what a process learns and leaves out, and the warp of a target."""

from pathlib import Path

import numpy as np
import pytest

from hwnas.predict import load_predictor
from hwnas.predict.features import choice_features, position_features
from hwnas.predict.gp import GaussianProcess
from hwnas.predict.kernels import adjacent
from hwnas.predict.likelihood import factor, left_out, mixture, negative_likelihood, triangles
from hwnas.predict.metrics import score
from hwnas.predict.warp import Warp
from hwnas.spaces import get_space

SPACE = get_space("mnasnet")


@pytest.mark.parametrize("spec", ["mnasnet", "ofa-mbv3", "fbnet:variant=cifar", "nasbench201", "nasbench-macro"])
def test_positions_share_the_columns_of_the_choices(spec: str) -> None:
    space = get_space(spec)
    population = space.sample(20, 0)
    positions = position_features(space)
    assert len(positions) > 1
    shared = {tuple(column) for column in choice_features(space)(population).T}
    for position in positions:
        assert {tuple(column) for column in position(population).T} <= shared


def test_adjacent_is_the_mean_over_consecutive_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3, 5)), rng.normal(size=(2, 3, 5))
    inner = np.einsum("npd,mpd->pnm", a, b)
    assert np.allclose(adjacent(a, b), (inner[0] * inner[1] + inner[1] * inner[2]) / 2)
    assert np.linalg.eigvalsh(adjacent(a, a)).min() > -1e-9
    assert (adjacent(a[:, :1], b[:, :1]) == 0).all()


def test_what_a_block_costs_after_another_is_learnt() -> None:
    rng = np.random.default_rng(1)
    population = SPACE.distinct(SPACE.sample(900, 0))
    cost = SPACE.macs(population) / 1e8
    for position in range(6):
        surcharge = rng.normal(0, 0.2, (4, 4))
        cost = cost + surcharge[population[:, position], population[:, position + 1]]
    learnt, test = slice(0, 600), slice(600, None)
    errors = {}
    for kernels in ("offset+additive", "offset+additive+pairs"):
        model = GaussianProcess(SPACE, kernels=kernels).fit(population[learnt], cost[learnt])
        errors[kernels] = score("mape", cost[test], model.predict(population[test]))
    assert errors["offset+additive+pairs"] < 0.7 * errors["offset+additive"]


def two_kernels(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x, noise = rng.normal(size=(n, 3)), rng.uniform(0.5, 2.0, n)
    grams = np.stack([x @ x.T, np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2))])
    return grams, noise, x[:, 0] + np.sin(x[:, 1]) + rng.normal(0, 0.2, n)


def test_the_likelihood_and_its_slopes() -> None:
    grams, noise, y = two_kernels(40)
    logs, prior, stack = np.log([0.7, 0.4, 0.1]), np.full(3, -2.0), triangles(grams)
    covariance = 0.7 * grams[0] + 0.4 * grams[1] + np.diag(0.1 * noise)
    expected = 0.5 * y @ np.linalg.solve(covariance, y) + 0.5 * np.linalg.slogdet(covariance)[1]
    value, slopes = negative_likelihood(logs, stack, y, noise, prior, 3.0)
    assert value == pytest.approx(expected + 0.5 * (((logs - prior) / 3.0) ** 2).sum(), rel=1e-6)
    for number in range(3):
        step = 1e-5 * np.eye(3)[number]
        ends = [negative_likelihood(logs + sign * step, stack, y, noise, prior, 3.0)[0] for sign in (1, -1)]
        assert slopes[number] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_a_row_left_out_is_predicted_by_the_others() -> None:
    grams, noise, y = two_kernels(25)
    factored = factor(mixture(triangles(grams), np.array([0.7, 0.4]), 25), 0.1 * noise)
    covariance = 0.7 * grams[0] + 0.4 * grams[1]
    errors, spreads = left_out(factored, y)
    others, noisy = np.arange(1, 25), covariance + np.diag(0.1 * noise)
    weights = np.linalg.solve(noisy[np.ix_(others, others)], covariance[others, 0])
    assert errors[0] == pytest.approx(y[0] - weights @ y[others], rel=1e-5)
    assert spreads[0] == pytest.approx(noisy[0, 0] - weights @ covariance[others, 0], rel=1e-5)


@pytest.mark.parametrize("rows", [300, 900])
def test_rows_that_stand_out_are_not_learnt_from(rows: int) -> None:
    rng = np.random.default_rng(rows)
    population = SPACE.distinct(SPACE.sample(rows + 300, 0))
    cost = SPACE.macs(population) / 1e8 * (1 + rng.normal(0, 0.01, len(population)))
    learnt, test = slice(0, rows), slice(rows, None)
    measured = cost.copy()
    measured[rng.choice(rows, rows // 30, replace=False)] *= 1.6
    clean, spoilt = (GaussianProcess(SPACE).fit(population[learnt], values[learnt]) for values in (cost, measured))
    errors = [score("mape", cost[test], model.predict(population[test])) for model in (clean, spoilt)]
    assert errors[1] < 1.15 * errors[0]


@pytest.mark.parametrize("loss", ["l2", "l1", "tukey"])
def test_rows_left_out_are_not_looked_at(loss: str) -> None:
    rng = np.random.default_rng(2)
    population = SPACE.distinct(SPACE.sample(320, 0))
    cost = SPACE.macs(population) / 1e8 * (1 + 0.02 * rng.standard_t(2, len(population)))
    fold = np.arange(len(population)) % 5
    model = GaussianProcess(SPACE, kernels="offset+additive", loss=loss)
    quick = score("mape", cost, model.cross_predict(population, cost, fold))
    slow = np.empty(len(cost))
    for part in range(5):
        refitted = model.clone().fit(population[fold != part], cost[fold != part])
        slow[fold == part] = refitted.predict(population[fold == part])
    assert quick == pytest.approx(score("mape", cost, slow), rel=0.03)


def test_a_warp_is_monotone_and_comes_back() -> None:
    y = np.random.default_rng(0).beta(8, 2, 500) * 100
    warp = Warp.fit(y)
    assert np.allclose(warp.backward(warp.forward(y)), y)
    assert abs(np.mean(warp.forward(y))) < 0.05 and abs(np.std(warp.forward(y)) - 1) < 0.1
    wide = np.linspace(-5, 5, 101)
    assert (np.diff(warp.backward(wide)) > 0).all()
    few = Warp.fit(np.array([1.0, 1.0, 2.0]))
    assert few.forward(np.array([1.0, 2.0]))[0] < few.forward(np.array([1.0, 2.0]))[1]


def test_a_warped_process_learns_what_levels_off_and_is_saved(tmp_path: Path) -> None:
    population = SPACE.distinct(SPACE.sample(400, 2))
    size = SPACE.macs(population) / SPACE.macs(population).mean()
    accuracy = 70 - 20 * np.exp(-2 * size)
    model = GaussianProcess(SPACE, metric="val_acc", warp=True, effects=True).fit(population[:300], accuracy[:300])
    predicted = model.predict(population[300:])
    assert score("kendall", accuracy[300:], predicted) > 0.95 and score("mape", accuracy[300:], predicted) < 1
    model.save(tmp_path / "m")
    assert (load_predictor(tmp_path / "m").predict(population[300:]) == predicted).all()
