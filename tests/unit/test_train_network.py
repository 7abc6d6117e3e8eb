"""Training one network: it learns, resumes exactly, and starts from a super-network's weights."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hwnas.core.errors import InputError, UnavailableError
from hwnas.spaces import get_space
from hwnas.train import DataConfig, NetworkConfig, SupernetConfig, load_network, train_network, train_supernet
from hwnas.train import loop as loop_module
from hwnas.train.batches import randaugment
from hwnas.train.evaluate import Evaluator
from hwnas.train.supernet import open_data

SPACE = "ofa-mbv3:width=0.1,resolution=32,num_classes=10"
SMALLEST = get_space(SPACE).format(np.zeros_like(get_space(SPACE).choices))
DATA = DataConfig(name="digits", train_limit=160)


def config(**changes: object) -> NetworkConfig:
    values: dict[str, object] = {
        "space": SPACE,
        "arch": SMALLEST,
        "data": DATA,
        "epochs": 2,
        "warmup_epochs": 0.2,
        "batch": 32,
        "ema": 0.9,
        "mixup": 0.2,
        "threads": 1,
        "checkpoint_s": 0,
    }
    return NetworkConfig.model_validate({**values, **changes})


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_and_is_read_back(tmp_path: Path) -> None:
    trained = train_network(
        config(epochs=12, data=DataConfig(name="digits", train_limit=400), mixup=0, learning_rate=0.1), tmp_path
    )
    assert trained.accuracy["test"] > 0.3
    assert same(load_network(tmp_path), trained.network)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float) -> None:
    whole = train_network(config(ema=ema), tmp_path / "whole").network
    step, calls = loop_module.Run._step, iter(range(100))

    def dies(run: loop_module.Run, *arguments: object) -> dict[str, float]:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return step(run, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module.Run, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train_network(config(ema=ema), tmp_path / "killed")
    assert same(train_network(config(ema=ema), tmp_path / "killed").network, whole)


def test_statistics_fit_the_weights_after_a_short_training(tmp_path: Path) -> None:
    """The average of ten steps' weights would go with running statistics that are mostly those of the start."""
    settings = config(epochs=2, ema=0.99, data=DataConfig(name="digits", train_limit=320), learning_rate=0.1, mixup=0)
    trained = train_network(settings, tmp_path)
    again = load_network(tmp_path)
    data = open_data(get_space(SPACE), settings)
    Evaluator(data, 2000, settings.seed, torch.device("cpu")).recalibrate(again, 32)
    assert same(again, trained.network)


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    first, again, other = (
        train_network(config(epochs=0.4, warmup_epochs=0, seed=seed), tmp_path / str(index)).network
        for index, seed in enumerate((0, 0, 1))
    )
    assert same(first, again) and not same(first, other)


def test_fine_tuning_starts_from_the_weights_of_a_super_network(tmp_path: Path) -> None:
    settings = SupernetConfig(
        space=SPACE, data=DATA, rule="sandwich", epochs=1, batch=32, subnets=2, calibration_images=64, threads=1
    )
    supernet = train_supernet(settings, tmp_path / "super")
    row = supernet.space.parse(SMALLEST)
    tuned = train_network(
        config(init=tmp_path / "super", learning_rate=1e-12, ema=0, weight_decay=0, epochs=0.2, warmup_epochs=0),
        tmp_path / "tuned",
    )
    ours, theirs = tuned.network.state_dict(), supernet.extract(row).state_dict()
    for name in ours:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(ours[name], theirs[name])
    again = train_network(config(init=tmp_path / "tuned", epochs=0.4, warmup_epochs=0), tmp_path / "more")
    assert not same(again.network, tuned.network)
    with pytest.raises(InputError, match="asked is"):
        train_network(config(init=tmp_path / "super", space=SPACE.replace("0.1", "0.2")), tmp_path / "other")


def test_an_architecture_of_another_space(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an architecture"):
        train_network(config(arch='{"ops":[]}'), tmp_path)


def test_randaugment_is_reproducible() -> None:
    pixels = torch.randint(0, 255, (10, 16, 16, 3), dtype=torch.uint8)
    try:
        randaugment(pixels, 2, 0)
    except UnavailableError as error:
        pytest.skip(str(error))
    once, again, other = (randaugment(pixels, 2, seed) for seed in (0, 0, 1))
    assert once.shape == pixels.shape and once.dtype == torch.uint8
    assert torch.equal(once, again) and not torch.equal(once, other) and not torch.equal(once, pixels)


def test_a_trained_network_is_exported_with_its_weights(tmp_path: Path) -> None:
    from hwnas.search import export
    from hwnas.search.export import build_network

    settings = config(epochs=0.2, warmup_epochs=0)
    trained = train_network(settings, tmp_path / "alone")
    space = get_space(settings.space)
    network = build_network(space, space.parse(settings.arch), tmp_path / "alone")
    images = torch.randn(2, *network.topology.inputs[0])
    torch.testing.assert_close(network(images), trained.network(images))
    exported = export(settings.arch, space, supernet=tmp_path / "alone")
    assert exported.difference < 1e-3
    said = {entry.key: entry.value for entry in onnx.load_from_string(exported.model).metadata_props}
    assert (said["hwnas.space"], said["hwnas.arch"]) == (space.spec, settings.arch)
    assert json.loads(said["hwnas.classes"]) == [str(digit) for digit in range(10)] and "RGB" in said["hwnas.input"]
    data = open_data(space, settings)
    assert (json.loads(said["hwnas.mean"]), json.loads(said["hwnas.std"])) == (list(data.mean), list(data.std))
    other = space.format(space.choices - 1)
    with pytest.raises(InputError, match="another network"):
        export(other, space, supernet=tmp_path / "alone")
