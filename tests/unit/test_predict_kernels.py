"""Kernels of positions that follow each other, and the warp of a target that levels off."""

from pathlib import Path

import numpy as np
import pytest

from hwnas.predict import load_predictor
from hwnas.predict.features import choice_features, position_features
from hwnas.predict.gp import GaussianProcess
from hwnas.predict.kernels import adjacent
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
