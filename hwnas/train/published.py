"""Once-for-All's published checkpoints: their tensors under the names of an `ElasticNetwork`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hwnas.core.errors import InputError
from hwnas.spaces import SearchSpace

OPERATIONS = {
    "inverted_bottleneck.conv": "expand",
    "inverted_bottleneck.bn": "expand_bn",
    "depth_conv.conv": "depthwise",
    "depth_conv.bn": "depthwise_bn",
    "depth_conv.se.fc.reduce": "se_reduce",
    "depth_conv.se.fc.expand": "se_expand",
    "point_linear.conv": "project",
    "point_linear.bn": "project_bn",
}
WRAPPERS = {
    ".mobile_inverted_conv.": ".conv.",
    ".conv.conv.": ".conv.",
    ".bn.bn.": ".bn.",
    ".linear.linear.": ".linear.",
}


def read_published(path: str | Path, space: SearchSpace) -> dict[str, Tensor]:
    """The weights of a checkpoint that Once-for-All published (or its code wrote), named as `ElasticNetwork`'s are.

    `space` is one it was trained for: `ofa-mbv3` with `width` 1.0 or 1.2, or
    `ofa-mbv2:widths=proxyless,width=1.3,last_block=elastic`. Nothing in the file is executed. Raises `InputError`
    where it is no such checkpoint.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint at {path}") from error
    except Exception as error:
        raise InputError(
            f"{path}: not a readable PyTorch checkpoint of tensors alone ({type(error).__name__}); it is damaged, or "
            "holds code, which is not run"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path}: holds no state dict of tensors")
    return renamed(state, len(space.slots), str(path))


def renamed(state: Mapping[str, Tensor], slots: int, where: str) -> dict[str, Tensor]:
    """The tensors of Once-for-All's super-networks under the names of an `ElasticNetwork` with so many slots."""
    weights = {}
    blocks = 1 + max((int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    for published, tensor in state.items():
        if not published.endswith("num_batches_tracked"):
            weights[_name(published, blocks, slots, where)] = tensor
    return weights


def _name(published: str, blocks: int, slots: int, where: str) -> str:
    name = published.removeprefix("module.")
    for wrapped, plain in WRAPPERS.items():
        name = name.replace(wrapped, plain)
    heads = {
        "first_conv": 0,
        "final_expand_layer": 1 + blocks,
        "feature_mix_layer": slots - 2 if slots > blocks + 4 else 1 + blocks,
        "classifier": slots - 1,
    }
    first, _, rest = name.partition(".")
    if first in heads:
        return f"blocks.{heads[first]}.{rest}"
    match = re.fullmatch(r"blocks\.(\d+)\.conv\.(.+)\.(\w+)", name)
    if match and match[2] in OPERATIONS:
        slot, operation = int(match[1]) + 1, OPERATIONS[match[2]]
        if match[3].endswith("_matrix"):
            return f"blocks.{slot}.transforms.{operation}_{match[3].removesuffix('_matrix')}"
        return f"blocks.{slot}.{operation}.{match[3]}"
    raise InputError(f"{where}: {published} is no tensor of Once-for-All's MobileNetV3 or ProxylessNAS super-networks")
