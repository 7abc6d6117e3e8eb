"""What a block asks of each engine of a DPU: cycles, bytes and operations, from its body alone.

Convolution engine: kernel^2 * ceil(IC / CP) * ceil(OC / CP) * H * ceil(W / PP) cycles, with CP channels and PP pixels
in parallel; depthwise: kernel^2 * ceil(C / CP) * H * ceil(W / 4). What follows from the on-chip memory of
PP * CP * bank_depth bytes: a tensor that fits stays there; a larger one is written to DDR once and read once by each
operation that uses it, except a convolution's output that only a depthwise convolution or a shortcut reads (the two
run as one). Element-wise functions are operations of their own: h-swish is a hard sigmoid and a product. This rule
reproduces the bytes that vaitrace states for single blocks (see `benchmarks/fpga_latency.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwnas.core.errors import InputError
from hwnas.fpga.targets import DpuTarget
from hwnas.spaces import Primitive, SearchSpace
from hwnas.spaces.ops import (
    Activation,
    Add,
    AvgPool,
    BatchNorm,
    ChannelShuffle,
    Conv,
    GlobalAvgPool,
    Linear,
    Op,
    Shape,
    Zeros,
)

TERMS = (
    "conv_cycles",
    "depthwise_cycles",
    "gate_cycles",
    "pool_cycles",
    "spilled_pool_cycles",
    "eltwise_rows",
    "vector_groups",
    "weight_bytes",
    "boundary_bytes",
    "spilled_bytes",
    "macs",
)
"""`gate_cycles`: hard sigmoids, a cycle a channel group and pixel; `spilled_pool_cycles`: pool cycles of tensors in DDR
times the thousands of pixels of one channel; `eltwise_rows`: rows of channel groups that element-wise operations
read; `vector_groups`: channel groups of operations on single pixels (squeeze-excite, classifiers); `macs` serve the
energy, not the latency."""

DEPTHWISE_PIXELS = 4
_INDEX = {term: position for position, term in enumerate(TERMS)}


@dataclass(frozen=True)
class _Step:
    """One operation as the DPU runs it: engine, the tensors it reads and writes, their shapes."""

    name: str
    engine: str
    op: Op
    inputs: tuple[str, ...]
    shape: Shape
    output: Shape


def _steps(primitive: Primitive) -> list[_Step]:
    """The body with BatchNorm and ReLU folded away and h-swish in its two parts.

    A BatchNorm with no layer before it to fold into is a depthwise convolution of 1 x 1.
    """
    alias: dict[str, str] = {}
    steps: list[_Step] = []
    for node in primitive.body:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        function = node.op.function if isinstance(node.op, Activation) else ""
        if isinstance(node.op, ChannelShuffle | Zeros) or function in ("swish", "sigmoid"):
            what = function or type(node.op).__name__
            raise InputError(f"no engine of a DPU runs {what}, in {primitive.key!r}; leave such blocks out")
        before = next((step.op for step in steps if step.name == inputs[0]), None)
        if isinstance(node.op, BatchNorm) and not isinstance(before, Conv | Linear):
            scaling = Conv(node.output[0], groups=node.output[0])
            steps.append(_Step(node.name, "depthwise", scaling, inputs, node.shapes[0], node.output))
        elif isinstance(node.op, BatchNorm) or function in ("relu", "relu6"):
            alias[node.name] = inputs[0]
        elif function == "h_swish":
            gate = f"{node.name}.gate"
            steps.append(_Step(gate, "gate", node.op, inputs, node.shapes[0], node.output))
            steps.append(_Step(node.name, "eltwise", node.op, (*inputs, gate), node.shapes[0], node.output))
        else:
            steps.append(_Step(node.name, _engine(node.op), node.op, inputs, node.shapes[0], node.output))
    if not steps:
        raise InputError(f"no engine of a DPU runs {primitive.key!r} by itself: it belongs to the layer before it")
    return steps


def _engine(op: Op) -> str:
    if isinstance(op, Conv):
        return "depthwise" if op.groups > 1 else "conv"
    if isinstance(op, Linear):
        return "conv"
    if isinstance(op, GlobalAvgPool | AvgPool):
        return "pool"
    return "gate" if isinstance(op, Activation) else "eltwise"


@lru_cache(maxsize=1 << 17)
def _demand(primitive: Primitive, pixels: int, channels: int, on_chip: int, alone: bool) -> tuple[float, ...]:
    steps = _steps(primitive)
    sizes = {f"in{index}": prod(shape) for index, shape in enumerate(primitive.inputs)}
    readers: dict[str, list[_Step]] = {}
    for step in steps:
        sizes[step.name] = prod(step.output)
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
    total = np.zeros(len(TERMS))
    for step in steps:
        _compute(total, step, pixels, channels)
        if step.engine == "pool" and sizes[step.inputs[0]] > on_chip:
            groups, area = -(-step.shape[0] // channels), prod(step.shape[1:])
            total[_INDEX["spilled_pool_cycles"]] += groups * area * area / 1e3
        if step is not steps[-1]:
            total[_INDEX["spilled_bytes"]] += _spilled(step, readers.get(step.name, []), sizes[step.name], on_chip)
    _boundary(total, primitive, steps, readers, sizes, on_chip, alone)
    total[_INDEX["macs"]] = primitive.macs
    return tuple(total)


def _compute(total: NDArray[np.float64], step: _Step, pixels: int, channels: int) -> None:
    """Add the engine's cycles and the weights' bytes of one operation."""
    height, width = step.output[1:] if len(step.output) == 3 else (1, 1)
    groups = -(-step.output[0] // channels)
    if height * width == 1 and step.engine != "pool":
        total[_INDEX["vector_groups"]] += groups
    if isinstance(step.op, Conv | Linear):
        cycles, weights = _convolution(step, pixels, channels)
        total[_INDEX[f"{step.engine}_cycles"]] += cycles
        total[_INDEX["weight_bytes"]] += weights
    elif step.engine == "pool":
        total[_INDEX["pool_cycles"]] += -(-step.shape[0] // channels) * prod(step.shape[1:])
    elif height * width > 1:
        total[_INDEX["eltwise_rows"]] += groups * height
        total[_INDEX["gate_cycles"]] += groups * height * width * (step.engine == "gate")


def _convolution(step: _Step, pixels: int, channels: int) -> tuple[int, int]:
    """Cycles and bytes of weights; a fully connected layer is a convolution of one pixel."""
    out, groups = step.output[0], -(-step.output[0] // channels)
    if not isinstance(step.op, Conv):
        features = prod(step.shape)
        return -(-features // channels) * groups, features * out
    kernel, fan_in = step.op.kernel**2, step.shape[0] // step.op.groups
    if step.engine == "depthwise" and fan_in > 1:
        raise InputError(f"no engine of a DPU runs a convolution of {step.op.groups} groups; leave such blocks out")
    _, height, width = step.output
    if step.engine == "depthwise":
        return kernel * groups * height * -(-width // DEPTHWISE_PIXELS), kernel * out
    return kernel * -(-fan_in // channels) * groups * height * -(-width // pixels), kernel * fan_in * out


def _spilled(step: _Step, readers: list[_Step], size: int, on_chip: int) -> int:
    """Bytes that an intermediate tensor moves to and from DDR.

    A strided depthwise convolution leaves half the memory to its input, as the stated bytes of the h-swish blocks show.
    """
    alone = len(readers) == 1
    if step.engine == "conv" and alone and (readers[0].engine == "depthwise" or isinstance(readers[0].op, Add)):
        return 0
    strided = any(isinstance(r.op, Conv) and r.engine == "depthwise" and r.op.stride > 1 for r in readers)
    return size * (1 + len(readers)) if size > (on_chip // 2 if strided else on_chip) else 0


def _boundary(
    total: NDArray[np.float64],
    primitive: Primitive,
    steps: list[_Step],
    readers: dict[str, list[_Step]],
    sizes: dict[str, int],
    on_chip: int,
    alone: bool,
) -> None:
    """Bytes of the block's inputs and output: through DDR where it runs alone, else only where they do not fit."""
    output = sizes[steps[-1].name]
    moved = output if alone else 2 * output * (output > on_chip)
    for index in range(len(primitive.inputs)):
        size, uses = sizes[f"in{index}"], len(readers.get(f"in{index}", []))
        moved += size * uses if alone else size * max(uses - 1, 0) * (size > on_chip)
    total[_INDEX["boundary_bytes"]] += moved


def block_demand(primitives: Iterable[Primitive], target: DpuTarget, alone: bool = True) -> NDArray[np.float64]:
    """Demand of each primitive, shape (P, terms); `alone` as a model of its own, else as a part of a network.

    Raises `InputError` for a block with an operation that the DPU has no engine for.
    """
    size = (target.pixel_parallel, target.channel_parallel, target.on_chip_bytes, alone)
    rows = [_demand(primitive, *size) for primitive in primitives]
    return np.array(rows).reshape(len(rows), len(TERMS))


def network_demand(space: SearchSpace, population: ArrayLike, target: DpuTarget) -> NDArray[np.float64]:
    """Demand of whole networks, shape (n, terms): features pass from block to block on the chip where they fit."""
    blocks = space.blocks(population)
    used = np.unique(blocks[blocks >= 0])
    primitives = space.primitives()
    per_block = np.zeros((len(primitives) + 1, len(TERMS)))
    per_block[used] = block_demand([primitives[i] for i in used], target, alone=False)
    total = np.zeros((len(blocks), len(TERMS)))
    for slot in blocks.T:
        total += per_block[slot]
    return total


def column(demand: NDArray[np.float64], terms: Sequence[str]) -> NDArray[np.float64]:
    """The columns of `terms`, shape (n, len(terms))."""
    return demand[:, [_INDEX[term] for term in terms]]
