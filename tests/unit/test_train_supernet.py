"""Training a super-network: it learns, resumes exactly, and says what is wrong."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hwnas.core.config import load_config
from hwnas.core.errors import InputError, UnavailableError
from hwnas.search.subnets import supernet_source
from hwnas.spaces import get_space
from hwnas.train import DataConfig, NetworkConfig, SupernetConfig, load_supernet, train_network, train_supernet
from hwnas.train import loop as loop_module
from hwnas.train.elastic import ElasticNetwork
from hwnas.train.schedule import stages
from hwnas.train.supernet import Supernet, resolution_of

SPACE = "ofa-mbv3:width=0.1,resolution=32/40,num_classes=10"

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_what_a_search_evaluated_is_there_for_the_next(
    trained: tuple[Path, Supernet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted one too; not for other weights, nor where the file was changed to nonsense."""
    folder, space = shutil.copytree(trained[0], tmp_path / "supernet"), trained[1].space
    population, asked = space.sample(6, 1), []
    plain = Supernet.extract

    def counted(supernet: Supernet, row: Any, recalibrate: bool = True) -> Any:
        asked.append(space.format(row))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(supernet, row, recalibrate)

    def accuracies() -> np.ndarray:
        source = supernet_source(str(folder), space)
        assert source.exact is not None
        return source.exact(population)

    monkeypatch.setattr(Supernet, "extract", counted)
    with pytest.raises(KeyboardInterrupt):
        accuracies()
    found = accuracies()
    assert len(asked) == len(set(asked)) + 1 == 7, "what was under way is evaluated again, and nothing else"
    np.testing.assert_array_equal(accuracies(), found)
    assert len(asked) == 7
    kept = folder / "accuracies.json"
    for text in ("{", kept.read_text().replace('"seed": 0', '"seed": 1'), kept.read_text().replace("0.", '"0.', 1)):
        kept.write_text(text)
        asked[:] = ["before"] * 3
        np.testing.assert_array_equal(accuracies(), found)
        assert len(asked) == 9


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


def test_how_to_go_on_after_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="start again with a lower learning_rate and another --out"):
        train_supernet(config(learning_rate=1e12, checkpoint_s=1000), tmp_path / "none")
    step, calls = loop_module.Run._step, iter(range(100))

    def explodes(run: loop_module.Run, phase: object, number: int, *rest: object) -> dict[str, float]:
        if next(calls) == 5:
            run.saved -= 1
            run.check_finite({"a": float("nan")}, number, "test")
        return step(run, phase, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop_module.Run, "_step", explodes)
    with pytest.raises(InputError, match=r"it goes on from the checkpoint of step 4 in") as caught:
        train_supernet(config(checkpoint_s=0), tmp_path / "some")
    assert "at step 5" in str(caught.value)


def test_another_data_set_is_not_mixed_into_a_run(trained: tuple[Path, Supernet], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "copy")
    path = tmp_path / "copy" / "supernet.json"
    about = json.loads(path.read_text())
    assert about["data_set"]["classes"] == [str(digit) for digit in range(10)]
    for key, other, message in (
        ("classes", ["a", "b"], "other classes"),
        ("labels", "0" * 16, "other labels"),
        ("mean", [0.5, 0.5, 0.5], "other images"),
    ):
        path.write_text(json.dumps(about | {"data_set": about["data_set"] | {key: other}}))
        with pytest.raises(InputError, match=message):
            train_supernet(config(), tmp_path / "copy")
        with pytest.raises(InputError, match=message):
            load_supernet(tmp_path / "copy").accuracy(trained[1].space.sample(1, 0))


def test_the_folder_of_another_training_is_left_alone(trained: tuple[Path, Supernet], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "copy")
    (tmp_path / "copy" / "model-00001-of-00002.safetensors").write_text("precious")
    before = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    space = get_space(SPACE)
    alone = NetworkConfig(space=SPACE, arch=space.format(space.sample(1, 0)[0]), data=config().data, epochs=6)
    with pytest.raises(InputError, match=r"holds a super-network \(supernet\.json\): choose another --out"):
        train_network(alone, tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == before
    (tmp_path / "copy" / "supernet.json").unlink()
    train_supernet(config(epochs=0.5), tmp_path / "copy")
    assert (tmp_path / "copy" / "model-00001-of-00002.safetensors").read_text() == "precious"


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="finds no GPU"):
        train_supernet(config(device="cuda"), tmp_path)


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
        (cut_json, "not a readable super-network"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: true", "epochs: a number or a text is expected, not true or false"),
        ("epochs: 3\nepochs: 4", "the key 'epochs' stands twice"),
        ("epochs: 0", r"config\.yaml: epochs 0 needs the weights of an init$"),
        ("algorithm: fbnet\narch_fraction: 0.2", "arch_fraction is of a search that .* hwnas search"),
        ("[1, 2]: 3", "config.yaml:4: not readable as YAML"),
        ("data: {name: digits, name: folder}", "config.yaml:4: not readable as YAML: the key 'name' stands twice"),
    ],
)
def test_configurations_that_contradict_themselves(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"space: ofa-mbv3\n{'' if 'data' in text else 'data: {name: digits}'}\n\n{text}\n")
    with pytest.raises(InputError, match=message) as caught:
        load_config(path, SupernetConfig)
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_where_its_images_and_folder_were_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells a data set apart is what it holds, not where it lies."""
    (tmp_path / "before").mkdir()
    labels = np.arange(160) % 10
    pixels = np.random.default_rng(0).integers(0, 255, (160, 8, 8, 3), dtype=np.uint8)
    for number, label in enumerate(labels):
        folder = tmp_path / "before" / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "before")
    whole = config(data=DataConfig(name="folder", path=Path("images")), epochs=1)
    train_supernet(whole, "supernet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path / "after")
    supernet = load_supernet("supernet")
    assert supernet.accuracy(supernet.space.sample(1, 0)).shape == (1,)
    elsewhere = config(data=DataConfig(name="folder", path=tmp_path / "after" / "images"), epochs=1)
    train_supernet(elsewhere, "supernet")
    assert load_supernet("supernet").about["finished"]


def test_classes_of_space_and_data_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_classes=10"):
        train_supernet(config(space="ofa-mbv3:width=0.1,resolution=32,num_classes=12"), tmp_path)


def test_weights_of_another_super_network_are_a_start(trained: tuple[Path, Supernet], tmp_path: Path) -> None:
    taken = train_supernet(config(init=trained[0], epochs=0), tmp_path / "same")
    state = trained[1].network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in taken.network.state_dict().items())
    np.testing.assert_array_equal(
        load_supernet(tmp_path / "same").accuracy(taken.space.sample(1, 0)),
        trained[1].accuracy(taken.space.sample(1, 0)),
    )
    with pytest.raises(InputError, match="weights of another space"):
        train_supernet(config(init=trained[0], epochs=0, space=SPACE.replace("0.1", "0.3")), tmp_path / "other")


def test_bfloat16_trains(tmp_path: Path) -> None:
    supernet = train_supernet(config(precision="bf16", epochs=0.5), tmp_path)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in supernet.network.parameters())
    assert not any(map(torch.equal, *(n.parameters() for n in (supernet.network.blocks[0], fresh().blocks[0]))))


def fresh() -> ElasticNetwork:
    return ElasticNetwork(get_space(SPACE), 0)


def test_every_width_kernel_and_depth_is_trained_in_the_published_order() -> None:
    plan = stages(config(rule="progressive", epochs=605))
    assert [(s.epochs, s.lr, s.subnets, s.warmup) for s in plan] == [
        (180, 0.08, 1, 0),
        (125, 0.03, 1, 5),
        (25, 0.0025, 2, 0),
        (125, 0.0075, 2, 5),
        (25, 0.0025, 4, 0),
        (125, 0.0075, 4, 5),
    ]
    space = get_space(SPACE)
    sizes = [[len(values) for values in stage.choices(space)] for stage in plan]
    kernels, expansions, depths = ([row[i] for row in sizes] for i in (0, 20, 40))
    assert (kernels, expansions, depths) == ([1, 3, 3, 3, 3, 3], [1, 1, 1, 1, 2, 3], [1, 1, 2, 3, 3, 3])
    assert all(row[-1] == 2 for row in sizes)
    assert sum(s.epochs for s in stages(config(rule="progressive", epochs=7))) == pytest.approx(7)


SCRIPT = """
import hashlib, sys, torch
torch.set_num_threads(1)
from hwnas.train import SupernetConfig, train_supernet
from hwnas.core.config import load_config
supernet = train_supernet(load_config(sys.argv[1], SupernetConfig), sys.argv[2])
if len(sys.argv) > 3:
    from torch.distributed import get_rank
    data = b"".join(p.detach().numpy().tobytes() for p in supernet.network.parameters())
    open(f"{sys.argv[3]}-{get_rank()}", "w").write(hashlib.sha256(data).hexdigest())
"""


def script(tmp_path: Path, settings: SupernetConfig) -> tuple[Path, Path]:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "config.yaml").write_text(settings.model_dump_json(exclude_none=True))
    return tmp_path / "train.py", tmp_path / "config.yaml"


def test_two_processes_train_one_super_network(tmp_path: Path) -> None:
    program, settings = script(tmp_path, config(batch=16, epochs=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    subprocess.run(
        [*command, str(program), str(settings), str(tmp_path / "out"), str(tmp_path / "digest")],
        check=True,
        capture_output=True,
        timeout=300,
    )
    first, second = ((tmp_path / f"digest-{rank}").read_text() for rank in (0, 1))
    assert first == second
    about = json.loads((tmp_path / "out" / "supernet.json").read_text())
    assert about["finished"] and about["step"] == 128 // 32
    assert load_supernet(tmp_path / "out").accuracy(get_space(SPACE).sample(1, 0)).shape == (1,)


def test_a_run_that_is_killed_at_any_moment_resumes(tmp_path: Path) -> None:
    settings = config(epochs=4)
    program, path = script(tmp_path, settings)
    folder, log = tmp_path / "killed", tmp_path / "killed" / "supernet.json"
    process = subprocess.Popen([sys.executable, str(program), str(path), str(folder)], stderr=subprocess.DEVNULL)
    while process.poll() is None and (not log.exists() or json.loads(log.read_text())["step"] < 4):
        time.sleep(0.002)
    process.kill()
    assert process.wait() != 0
    (folder / ".course-00000003.safetensors.x7.hwnas-part").write_bytes(b"cut off")
    resumed, whole = weights_after(settings, folder), weights_after(settings, tmp_path / "whole")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sorted(p.suffix for p in folder.iterdir()) == [
        ".json",
        ".jsonl",
        ".safetensors",
        ".safetensors",
    ]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Signals as `hwnas` handles them, whoever started the tests: one that runs in the background ignores Ctrl-C."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_the_step_that_was_under_way(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no checkpoint was due yet; and Ctrl-C is what it was before."""
    settings, plain = config(epochs=2, checkpoint_s=3600.0), loop_module.Run._step

    def interrupted_at_5(run: loop_module.Run, phase: loop_module.Phase, step: int, *rest: Any) -> dict[str, float]:
        if step == 5:
            signal.raise_signal(number)
        return plain(run, phase, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop_module.Run, "_step", interrupted_at_5)
        train_supernet(settings, tmp_path / "stopped")
    assert "ends after this step and keeps it" in capsys.readouterr().err
    assert signal.getsignal(number) is signal.default_int_handler
    assert json.loads((tmp_path / "stopped" / "supernet.json").read_text())["step"] == 6
    resumed, whole = weights_after(settings, tmp_path / "stopped"), weights_after(settings, tmp_path / "whole")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_tensorboard_is_optional(tmp_path: Path) -> None:
    settings = config(tensorboard=True, epochs=0.3)
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UnavailableError, match="pip install tensorboard"):
            train_supernet(settings, tmp_path)
    else:
        train_supernet(settings, tmp_path)
        assert any((tmp_path / "tensorboard").iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        train_supernet(config(), tmp_path / "file")


def test_a_disk_that_is_full_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    program, path = script(tmp_path, config(epochs=2))
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    run = "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    command = [sys.executable, "-c", limited + run, str(program), str(path), str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode != 0
    assert "InputError: cannot write" in found.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").glob("*.safetensors")) and not list((tmp_path / "out").glob(".*"))


def test_progressive_shrinking_is_for_spaces_that_have_its_choices(tmp_path: Path) -> None:
    settings = config(space="mnasnet:resolution=32,num_classes=10", rule="progressive")
    with pytest.raises(InputError, match="rule: sandwich"):
        train_supernet(settings, tmp_path)
    assert not list(tmp_path.iterdir())
