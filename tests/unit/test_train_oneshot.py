"""The mixed network, expected costs, and FBNet's training of weights and choices."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hwnas.core.errors import InputError
from hwnas.spaces import SearchSpace, get_space
from hwnas.train import DataConfig, OneShotConfig, SupernetConfig, load_supernet, train_supernet
from hwnas.train import loop as loop_module
from hwnas.train.choices import Choices
from hwnas.train.expected import ExpectedCost, layer_costs
from hwnas.train.fbnet import DualAscent, Published, gates_of
from hwnas.train.mixed import MixedNetwork, layers_of
from hwnas.train.oneshot import CostTerm, train_one_shot

SPACE = "nasbench-macro:resolution=8"
SPACES = [SPACE, "fbnet:variant=cifar,width=0.1,resolution=8,num_classes=10,head=16", "fbnet:resolution=32,width=0.2"]

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**changes: object) -> OneShotConfig:
    values: dict[str, object] = {
        "space": SPACE,
        "data": DataConfig(name="digits", train_limit=80),
        "epochs": 2,
        "batch": 8,
        "arch_learning_rate": 0.1,
        "calibration_images": 16,
        "checkpoint_s": 0,
    }
    return OneShotConfig.model_validate({**values, **changes})


def macs(space: SearchSpace) -> ExpectedCost:
    return ExpectedCost(space, lambda population: space.macs(population) / 1e6)


def term(bound: float | None = 8.0, most: float = math.inf) -> CostTerm:
    return CostTerm("macs_m", macs(get_space(SPACE)), 1.0, bound, most=most)


# the mixed network


@pytest.mark.parametrize("spec", SPACES)
def test_an_extracted_network_gives_the_outputs_it_gave_inside(spec: str) -> None:
    space = get_space(spec)
    mixed = MixedNetwork(space, seed=1).eval()
    for row in space.sample(2, 0):
        network = mixed.extract(row)
        images = torch.randn(2, *network.topology.inputs[0])
        with torch.no_grad():
            torch.testing.assert_close(network(images), mixed(images, row.tolist()), rtol=0, atol=1e-5)


def test_a_gate_weighs_the_blocks_it_names() -> None:
    space = get_space(SPACE)
    mixed, images = MixedNetwork(space).eval(), torch.randn(2, 3, 8, 8)
    one = [0] * 8
    hot = [{0: torch.tensor(1.0), 1: torch.tensor(0.0)}, *[{0: torch.tensor(1.0)}] * 7]
    with torch.no_grad():
        torch.testing.assert_close(mixed(images, one), mixed(images, hot))
        half = mixed.layers[2](torch.ones(1, 64, 4, 4), {0: torch.tensor(0.5), 2: torch.tensor(0.5)})
        parts = [mixed.layers[2](torch.ones(1, 64, 4, 4), choice) for choice in (0, 2)]
    torch.testing.assert_close(half, (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize("spec", ["ofa-mbv3:resolution=32", "mnasnet:resolution=32", "nasbench201"])
def test_spaces_whose_genes_do_more_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="more than choose the block of one layer"):
        layers_of(get_space(spec))


# choices


def test_choices_pad_layers_with_fewer_choices() -> None:
    choices = Choices([2, 3, 1])
    p = choices.probabilities()
    torch.testing.assert_close(p, torch.tensor([[0.5, 0.5, 0], [1 / 3] * 3, [1, 0, 0]]))
    torch.testing.assert_close(choices.entropy(), torch.tensor([1.0, 1.0, 0.0]))
    drawn = choices.gumbel_softmax(choices.logits, 0.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.sum(1), torch.ones(3))
    assert drawn[0, 2] == 0 and (drawn[2] == torch.tensor([1.0, 0, 0])).all()


def test_gumbel_softmax_draws_each_choice_as_often_as_it_is_probable() -> None:
    choices = Choices([3] * 2000)
    choices.logits.copy_(torch.tensor([0.7, 0.2, 0.1]).log().expand(2000, 3))
    drawn = choices.gumbel_softmax(choices.logits, 0.01, torch.Generator().manual_seed(3))
    share = torch.nn.functional.one_hot(drawn.argmax(1), 3).float().mean(0)
    torch.testing.assert_close(share, torch.tensor([0.7, 0.2, 0.1]), rtol=0, atol=0.04)
    assert (drawn.max(1).values > 0.99).float().mean() > 0.9


def test_updates_are_those_of_adam() -> None:
    choices, reference = Choices([3, 3]), torch.zeros(2, 3, requires_grad=True)
    adam = torch.optim.Adam([reference], lr=0.1, weight_decay=0.01, betas=(0.5, 0.999))
    for step in range(4):
        gradient = torch.tensor([[1.0, -2.0, 0.5 * step], [0.0, 1.0, -1.0]])
        reference.grad = gradient.clone()
        adam.step()
        choices.update(gradient, 0.1, 0.01)
    torch.testing.assert_close(choices.logits, reference.detach())


# expected costs


def every(space: SearchSpace) -> np.ndarray:
    return np.array(list(product(*map(range, space.choices))), dtype=np.int16)


def mean_cost(cost: ExpectedCost, p: torch.Tensor) -> torch.Tensor:
    """The definition: the sum over all architectures of probability times cost."""
    rows = every(cost.space)
    chance = p[torch.arange(rows.shape[1]), torch.from_numpy(rows).long()].prod(1)
    return (chance * torch.from_numpy(cost.cost(rows))).sum()


def probabilities(seed: int) -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def test_the_expected_cost_of_a_table_is_exact() -> None:
    cost, p = macs(get_space(SPACE)), probabilities(0).requires_grad_()
    assert cost.layers is not None
    found, true = cost(p, np.random.default_rng(0)), mean_cost(cost, p)
    assert float(found.detach()) == pytest.approx(float(true.detach()), rel=1e-9)
    (a,), (b,) = torch.autograd.grad(found, p), torch.autograd.grad(true, p)
    torch.testing.assert_close(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))


def test_the_expected_cost_of_any_other_model_is_unbiased() -> None:
    space = get_space(SPACE)
    cost = ExpectedCost(space, lambda population: (space.macs(population) / 1e7) ** 2)
    assert cost.layers is None
    p, rng = probabilities(1).requires_grad_(), np.random.default_rng(0)
    true = mean_cost(cost, p)
    (slope,) = torch.autograd.grad(true, p)
    drawn = [cost(p, rng) for _ in range(300)]
    slopes = torch.stack([torch.autograd.grad(each, p)[0] for each in drawn])
    values = torch.stack([each.detach() for each in drawn])
    assert abs(float(values.mean() - true.detach())) < 4 * float(values.std()) / 300**0.5
    off = (slopes - slopes.mean(2, keepdim=True)).mean(0) - (slope - slope.mean(1, keepdim=True))
    assert float(off.abs().max()) < 0.05 * float(slope.abs().max())


def test_layer_costs_with_different_numbers_of_choices() -> None:
    space = get_space("fbnet:variant=cifar,width=0.1,resolution=8,num_classes=10")
    found = layer_costs(space, space.parameters)
    assert found is not None
    rows = space.sample(50, 1)
    np.testing.assert_allclose(found(rows), space.parameters(rows))
    assert ExpectedCost(space, space.parameters).digest != ExpectedCost(space, space.macs).digest


# the losses


def test_the_published_loss() -> None:
    loss = Published(term(None), 0.2, 0.6)
    p = probabilities(2).float()
    cost = float(macs(get_space(SPACE))(p, np.random.default_rng(0)))
    found = loss(torch.tensor(2.0), p, p, np.random.default_rng(0))
    assert float(found) == pytest.approx(2.0 * 0.2 * np.log(1000 * cost) ** 0.6, rel=1e-5)
    with pytest.raises(InputError, match="takes the logarithm"):
        Published(CostTerm("latency_ms", macs(get_space(SPACE)), 0.0005), 0.2, 0.6)


@pytest.mark.parametrize(("bound", "sign"), [(2.0, 1), (1000.0, -1)])
def test_the_multiplier_pulls_to_the_target_from_both_sides(bound: float, sign: int) -> None:
    loss = DualAscent([term(bound)], 0.1)
    loss(torch.tensor(1.0), probabilities(0).float(), probabilities(0).float(), np.random.default_rng(0))
    assert float(loss.multipliers[0]) * sign > 0


def test_a_target_that_the_whole_space_keeps_does_not_pull() -> None:
    """There is nothing to use up, and the data alone decide."""
    for far in (term(1000.0, most=900.0), CostTerm("macs_m", macs(get_space(SPACE)), 1.0, 0.5, upper=False)):
        loss = DualAscent([far], 0.1)
        plain = loss(torch.tensor(1.0), probabilities(0).float(), probabilities(0).float(), np.random.default_rng(0))
        assert loss.multipliers[0] == 0 and plain == 1.0


def test_of_several_bounds_those_that_hold_do_not_pull() -> None:
    loss = DualAscent([term(2.0), term(1000.0)], 0.1)
    loss(torch.tensor(1.0), probabilities(0).float(), probabilities(0).float(), np.random.default_rng(0))
    assert loss.multipliers[0] > 0 and loss.multipliers[1] == 0


# training


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("weights-*.safetensors")))


class Killed(BaseException):
    """Stands for a signal that nothing catches."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oneshot")
    train_one_shot(config(), [term()], folder)
    return folder


def test_the_folder_is_a_super_network(trained: Path) -> None:
    supernet = load_supernet(trained)
    rows = supernet.space.sample(2, 0)
    accuracy = supernet.accuracy(rows)
    assert ((accuracy >= 0) & (accuracy <= 1)).all()
    network = supernet.extract(rows[0])
    assert supernet.evaluator.accuracy(network, 8) == accuracy[0]
    assert (supernet.network.choices.logits != 0).any()
    report = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()][-1]["report"]
    assert {"entropy", "expected macs_m", "multiplier of macs_m"} == set(report)


def test_a_killed_run_resumes_to_the_same_weights_and_choices(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = loop_module.Run._step, iter(range(1000))

    def dies(run: loop_module.Run, *arguments: object) -> dict[str, float]:
        if next(calls) in (3, 9):
            raise Killed
        return step(run, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module.Run, "_step", dies)
    for _ in range(2):
        with pytest.raises(Killed):
            train_one_shot(config(), [term()], tmp_path)
    train_one_shot(config(), [term()], tmp_path)
    whole, resumed = weights(trained), weights(tmp_path)
    assert whole.keys() == resumed.keys() and any(name.startswith("choices.") for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_target_or_cost_is_not_mixed_into_a_run(trained: Path) -> None:
    with pytest.raises(InputError, match=r"max of macs_m 8.0, asked is 9.0"):
        train_one_shot(config(), [term(9.0)], trained)
    space = get_space(SPACE)
    other = CostTerm("macs_m", ExpectedCost(space, lambda population: space.macs(population) / 2e6), 0.5, 8.0)
    with pytest.raises(InputError, match=r"cost of macs_m"):
        train_one_shot(config(), [other], trained)


def test_weights_and_choices_learn_from_separate_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hwnas.train.oneshot import halves
    from hwnas.train.supernet import open_data

    data = open_data(get_space(SPACE), config())
    one, other = halves(data, config(arch_fraction=0.5))
    assert len(one.train) == len(other.train) == 40
    assert one.train.rows is not None and other.train.rows is not None
    assert not set(one.train.rows) & set(other.train.rows)
    with pytest.raises(InputError, match="arch_fraction"):
        halves(data, config(arch_fraction=0.999))


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"the loss of the mixture is (nan|inf) at step \d+ \(fbnet"):
        train_one_shot(config(learning_rate=1e12), [term()], tmp_path / "weights")
    monkeypatch.setattr(DualAscent, "forward", lambda self, loss, p, mixture, rng: loss * float("nan") * p.sum())
    with pytest.raises(InputError, match=r"the loss of the choices is nan at step \d+ \(fbnet"):
        train_one_shot(config(), [term()], tmp_path / "choices")


def test_what_is_learnt_is_the_better_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss that is lower for one choice of every layer, the choices find it and their entropy falls."""
    wanted = torch.tensor([0.0, 1.0, 0.0])
    monkeypatch.setattr(DualAscent, "forward", lambda self, loss, p, mixture, rng: -(p * wanted).sum())
    supernet = train_one_shot(config(arch_learning_rate=0.5, epochs=3), [term()], tmp_path)
    choices = supernet.network.choices
    assert (choices.probabilities().argmax(1) == 1).all() and (choices.entropy() < 0.9).all()  # type: ignore[operator]


def test_bfloat16_trains(tmp_path: Path) -> None:
    supernet = train_one_shot(config(precision="bf16", epochs=0.5), [term()], tmp_path)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in supernet.network.parameters())


def test_train_supernet_says_where_fbnet_is(tmp_path: Path) -> None:
    settings = SupernetConfig(space=SPACE, data=DataConfig(name="digits"), algorithm="fbnet")
    with pytest.raises(InputError, match="hwnas search --config"):
        train_supernet(settings, tmp_path)


def test_gates_have_one_entry_a_choice() -> None:
    mixed = MixedNetwork(get_space(SPACE))
    gates = gates_of(mixed, mixed.choices.probabilities())
    assert len(gates) == 8 and all(isinstance(g, dict) and len(g) == 3 for g in gates)
