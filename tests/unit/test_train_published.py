"""Checkpoints of Once-for-All load and give the outputs of its own package."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from hwnas.core.errors import InputError
from hwnas.spaces import SearchSpace, get_space
from hwnas.train import DataConfig, SupernetConfig, load_supernet, train_supernet
from hwnas.train.published import read_published

CASES = {
    "OFAMobileNetV3": "ofa-mbv3:width=1.0,resolution=64,num_classes=10",
    "OFAProxylessNASNets": "ofa-mbv2:widths=proxyless,width=1.3,last_block=elastic,resolution=64,num_classes=10",
}


LOADING = {
    "gdown": ("gdown",),
    "tqdm": ("tqdm",),
    "torchvision": (
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    ),
}


class Stub(ModuleType):
    """A module in which every name that is no module of `LOADING` is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Once-for-All's own networks; what its package imports for downloads and data loading alone is left out."""
    if importlib.util.find_spec("ofa") is None:
        pytest.skip("the package ofa is not installed (pip install ofa)")
    for package, modules in LOADING.items():
        if importlib.util.find_spec(package) is None:
            for name in modules:
                monkeypatch.setitem(sys.modules, name, Stub(name))
    return importlib.import_module("ofa.imagenet_classification.elastic_nn.networks")


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if ("bn" in name or "matrix" in name) and tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.05)


def activate(model: torch.nn.Module, space: SearchSpace, row: np.ndarray) -> None:
    values = [gene.choices[i] for gene, i in zip(space.genes, row, strict=True)]
    n = (len(values) - 6) // 2
    depths = values[2 * n : 2 * n + 5] + ([1] if n == 21 else [])
    model.set_active_subnet(ks=values[:n], e=values[n : 2 * n], d=depths)  # type: ignore[operator]


@pytest.mark.parametrize("name", list(CASES))
def test_sub_networks_give_the_outputs_of_once_for_all(networks: ModuleType, tmp_path: Path, name: str) -> None:
    space = get_space(CASES[name])
    width = {"OFAMobileNetV3": 1.0, "OFAProxylessNASNets": 1.3}[name]
    model = getattr(networks, name)(
        n_classes=10,
        dropout_rate=0,
        width_mult=width,
        ks_list=[3, 5, 7],
        expand_ratio_list=[3, 4, 6],
        depth_list=[2, 3, 4],
    )
    randomise(model.eval())
    torch.save({"state_dict": model.state_dict()}, tmp_path / "ofa.pth")
    settings = SupernetConfig(
        space=space.spec, data=DataConfig(name="digits"), init=tmp_path / "ofa.pth", epochs=0, threads=1
    )
    train_supernet(settings, tmp_path / "out")
    network = load_supernet(tmp_path / "out").network
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for row in space.sample(10, 0):
        activate(model, space, row)
        with torch.no_grad():
            theirs, ours = model(images), network(images, row)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(network.extract(row)(images), theirs, rtol=1e-4, atol=1e-5)


OLD_NAMES = {
    "first_conv.conv.weight": "blocks.0.conv.weight",
    "blocks.0.mobile_inverted_conv.depth_conv.conv.weight": "blocks.1.depthwise.weight",
    "blocks.3.mobile_inverted_conv.inverted_bottleneck.conv.conv.weight": "blocks.4.expand.weight",
    "blocks.3.mobile_inverted_conv.depth_conv.conv.5to3_matrix": "blocks.4.transforms.depthwise_5to3",
    "blocks.20.mobile_inverted_conv.point_linear.bn.bn.running_var": "blocks.21.project_bn.running_var",
    "blocks.20.mobile_inverted_conv.depth_conv.se.fc.reduce.bias": "blocks.21.se_reduce.bias",
    "final_expand_layer.bn.weight": "blocks.22.bn.weight",
    "feature_mix_layer.conv.weight": "blocks.24.conv.weight",
    "classifier.linear.bias": "blocks.25.linear.bias",
}


def test_names_of_the_first_releases_are_known(tmp_path: Path) -> None:
    torch.save({"state_dict": {name: torch.zeros(1) for name in OLD_NAMES}}, tmp_path / "old.pth")
    found = read_published(tmp_path / "old.pth", get_space("ofa-mbv3"))
    assert list(found) == list(OLD_NAMES.values())


def test_a_checkpoint_that_is_none_says_so(tmp_path: Path) -> None:
    space = get_space("ofa-mbv3")
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"state_dict": {"layer1.0.conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in {
        "text.pth": "not a readable PyTorch checkpoint",
        "resnet.pth": "layer1.0.conv1.weight is no tensor of Once-for-All",
        "list.pth": "holds no state dict",
        "absent.pth": "no checkpoint at",
    }.items():
        with pytest.raises(InputError, match=message):
            read_published(tmp_path / name, space)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="tensors alone"):
        read_published(tmp_path / "evil.pth", get_space("ofa-mbv3"))
