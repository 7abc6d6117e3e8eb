"""Training a super-network: it learns, resumes exactly, and says what is wrong."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hwnas.core.config import load_config
from hwnas.core.errors import InputError
from hwnas.train import DataConfig, SupernetConfig, load_supernet, train_supernet
from hwnas.train import loop as loop_module
from hwnas.train.supernet import Supernet, resolution_of

SPACE = "ofa-mbv3:width=0.1,resolution=32/40,num_classes=10"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**changes: object) -> SupernetConfig:
    values: dict[str, object] = {
        "space": SPACE,
        "data": DataConfig(name="digits", train_limit=128),
        "rule": "sandwich",
        "epochs": 2,
        "batch": 32,
        "subnets": 3,
        "calibration_images": 64,
        "checkpoint_s": 0,
    }
    return SupernetConfig.model_validate({**values, **changes})


class Killed(BaseException):
    """Stands for a signal that nothing catches."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("weights-*.safetensors")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Supernet]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_supernet(config(), folder)


def test_a_checkpoint_is_read_back_with_the_same_accuracies(trained: tuple[Path, Supernet]) -> None:
    folder, supernet = trained
    population = supernet.space.sample(3, 0)
    accuracy = supernet.accuracy(population)
    assert accuracy.shape == (3,) and ((accuracy >= 0) & (accuracy <= 1)).all()
    np.testing.assert_array_equal(load_supernet(folder).accuracy(population), accuracy)
    np.testing.assert_array_equal(supernet.accuracy(population[[2, 0, 2]]), accuracy[[2, 0, 2]])


def test_accuracy_is_that_of_the_extracted_network(trained: tuple[Path, Supernet]) -> None:
    _, supernet = trained
    row = supernet.space.sample(1, 3)[0]
    network = supernet.extract(row)
    side = resolution_of(network)
    assert supernet.evaluator.accuracy(network, side) == supernet.accuracy(row)[0]
    shared = supernet.extract(row, recalibrate=False)
    x = torch.randn(4, 3, side, side)
    torch.testing.assert_close(shared(x), supernet.network(x, row), rtol=0, atol=1e-5)
    assert not torch.allclose(shared(x), network(x))


def test_evaluating_leaves_the_weights_alone(trained: tuple[Path, Supernet]) -> None:
    _, supernet = trained
    before = {name: tensor.clone() for name, tensor in supernet.network.state_dict().items()}
    supernet.accuracy(supernet.space.sample(2, 5))
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.network.state_dict().items())


@pytest.mark.parametrize("rule", ["sandwich", "progressive"])
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    settings = config(rule=rule, epochs=3, teacher_fraction=0.3)
    whole = weights_after(settings, tmp_path / "whole")
    folder, calls = tmp_path / "killed", iter(range(1000))
    step = loop_module.Run._step

    def dies(run: loop_module.Run, *arguments: object) -> dict[str, float]:
        if next(calls) in (2, 6, 7):
            raise Killed
        return step(run, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module.Run, "_step", dies)
    for _ in range(3):
        with pytest.raises(Killed):
            train_supernet(settings, folder)
    resumed = weights_after(settings, folder)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def weights_after(settings: SupernetConfig, folder: Path) -> dict[str, torch.Tensor]:
    train_supernet(settings, folder)
    return weights(folder)


def test_a_finished_run_is_not_trained_again(trained: tuple[Path, Supernet], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = trained

    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(loop_module.Run, "_step", fails)
    assert json.loads((folder / "supernet.json").read_text())["finished"] is True
    train_supernet(config(), folder)


def test_another_configuration_is_not_mixed_into_a_run(trained: tuple[Path, Supernet]) -> None:
    with pytest.raises(InputError, match="batch 32, asked is 16"):
        train_supernet(config(batch=16), trained[0])


def test_a_loss_that_is_not_finite_names_step_and_network(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss of .* is (nan|inf) at step \d+ \(sandwich"):
        train_supernet(config(learning_rate=1e12), tmp_path)


def damage_weights(folder: Path) -> None:
    path = next(folder.glob("weights-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 255
    path.write_bytes(data)


def drop_weights(folder: Path) -> None:
    next(folder.glob("weights-*.safetensors")).unlink()


def change_space(folder: Path) -> None:
    path = folder / "supernet.json"
    path.write_text(path.read_text().replace("width=0.1", "width=0.5"))


def cut_json(folder: Path) -> None:
    path = folder / "supernet.json"
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_weights, "damaged"),
        (drop_weights, "cannot read"),
        (change_space, "weights of another space"),
        (cut_json, "not a readable checkpoint"),
    ],
)
def test_a_checkpoint_that_cannot_be_trusted_is_refused(
    trained: tuple[Path, Supernet], tmp_path: Path, harm: object, message: str
) -> None:
    shutil.copytree(trained[0], tmp_path / "copy")
    harm(tmp_path / "copy")  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        load_supernet(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_configuration_names_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("space: ofa-mbv3\ndata: {name: digits}\nepoch: 3\n")
    with pytest.raises(InputError, match="did you mean 'epochs'"):
        load_config(path, SupernetConfig)


def test_classes_of_space_and_data_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_classes=10"):
        train_supernet(config(space="ofa-mbv3:width=0.1,resolution=32,num_classes=12"), tmp_path)
