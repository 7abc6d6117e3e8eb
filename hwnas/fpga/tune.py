"""Fine-tuning for INT8: weights and biases moved so that the rounded network gives what the float network gave.

The float network is its own teacher, so that images without labels are enough (distillation of the outputs). Rounding
is passed by the straight-through estimator: its gradient is 1 within the range of the integers and 0 beyond (Bengio et
al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013; Jacob et al., CVPR 2018, section 3).
Positions stay as they are, and with them every limit of the DPU.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from hwnas.core.errors import InputError
from hwnas.core.progress import progress
from hwnas.fpga.positions import HIGH, LOW
from hwnas.fpga.replay import Replay

BATCH = 32
LR = 0.15
SHIFTED = 16


class _Rounded(torch.autograd.Function):
    """`x` rounded to int8 at a scale of 2**-position."""

    @staticmethod
    def forward(ctx, x: Tensor, position: int) -> Tensor:  # type: ignore[no-untyped-def]
        steps = x * 2.0**position
        ctx.save_for_backward((steps >= LOW) & (steps <= HIGH))
        return steps.round().clamp(LOW, HIGH) * 2.0**-position

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradient * ctx.saved_tensors[0], None


def tune(
    model: onnx.ModelProto, positions: dict[str, int], images: NDArray[np.float32], steps: int, seed: int = 0
) -> onnx.ModelProto:
    """`model` with weights and biases for rounding at `positions`.

    Args:
        model: float, BatchNorm folded, of operations that a DPU runs.
        positions: of every tensor that is rounded; see `hwnas.fpga.quantize.choose_positions`.
        images: (n, C, H, W), preprocessed; some hundreds, or what is gained on them does not hold for others.
        steps: of Adam, 32 images each, under a cosine.

    Raises `InputError` where the model holds an operation that cannot be replayed.
    """
    replay = Replay(model)
    weights = {
        name: value for name, value in replay.constants.items() if name in positions and value.is_floating_point()
    }
    for weight in weights.values():
        weight.requires_grad_(True)

    def rounded(name: str, value: Tensor) -> Tensor:
        result: Tensor = _Rounded.apply(value, positions[name]) if name in positions else value  # type: ignore[no-untyped-call]
        return result

    teacher = Replay(model)
    groups = [{"params": [weight], "lr": LR * 2.0 ** -positions[name]} for name, weight in weights.items()]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    generator = torch.Generator().manual_seed(seed)
    with progress("tuning", steps) as task:
        for _ in range(steps):
            x = _varied(images, generator)
            with torch.no_grad():
                wanted = teacher(x)
            loss = (replay(x, rounded) - wanted).square().sum() / wanted.square().sum()
            if not torch.isfinite(loss):
                raise InputError("tuning diverged; leave it out with --tune 0")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            task.advance(1, f"{-10 * math.log10(max(loss.item(), 1e-12)):.1f} dB")
    return _with_constants(model, {name: weight.detach().numpy() for name, weight in weights.items()})


def _varied(images: NDArray[np.float32], generator: torch.Generator) -> Tensor:
    """A batch, shifted a little and half of it mixed in pairs, so that a few images are not learnt by heart."""
    x = torch.from_numpy(images[torch.randperm(len(images), generator=generator)[:BATCH].numpy()])
    most = x.shape[-1] // SHIFTED
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    x = F.pad(x, [most] * 4, mode="replicate")[:, :, down : down + x.shape[2], right : right + x.shape[3]]
    share = torch.rand(len(x) // 2, 1, 1, 1, generator=generator)
    mixed = share * x[: len(share)] + (1 - share) * x[: len(share)].flip(0)
    return torch.cat([mixed, x[len(share) :]])


def _with_constants(model: onnx.ModelProto, values: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return result
