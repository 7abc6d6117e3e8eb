"""PyTorch: a primitive as a module, a network as its primitives in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from hwnas.spaces.graph import Graph
    from hwnas.spaces.primitive import Primitive


class PrimitiveModule(nn.Module):
    """A primitive's body in PyTorch; children are called as the operations are."""

    def __init__(self, primitive: Primitive) -> None:
        super().__init__()
        self.primitive = primitive
        for node in primitive.body:
            self.add_module(node.name, node.op.module(*node.shapes))

    def forward(self, *inputs: Tensor) -> Tensor:
        values = {f"in{index}": value for index, value in enumerate(inputs)}
        for node in self.primitive.body:
            values[node.name] = self._modules[node.name](*(values[name] for name in node.inputs))  # type: ignore[misc]
        return values[node.name]

    def load_arrays(self, arrays: dict[str, NDArray[np.float32]]) -> None:
        """Copy in the tensors that `arrays` names; a BatchNorm's batch counter is left as it is."""
        state = self.state_dict()
        with torch.no_grad():
            for name, array in arrays.items():
                state[name].copy_(torch.from_numpy(array.copy()))

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Every floating-point tensor of the block by name."""
        return {
            name: value.detach().float().cpu().numpy()
            for name, value in self.state_dict().items()
            if value.is_floating_point()
        }


class Network(nn.Module):
    """A whole network: `blocks[i]` computes node i of `topology`.

    (Not `graph`: PyTorch's TorchScript exporter takes a module's attribute of that name for a graph of its own.)
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.topology = graph
        self.blocks = nn.ModuleList(node.primitive.build() for node in graph.nodes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = graph.bn_eps

    def forward(self, *inputs: Tensor) -> Tensor:
        values: list[Tensor] = []
        for node, block in zip(self.topology.nodes, self.blocks, strict=True):
            values.append(block(*(inputs[-1 - i] if i < 0 else values[i] for i in node.inputs)))
        return values[-1]

    def to_onnx(self, batch: int | None = 1) -> bytes:
        """The network with its present weights as a serialised ONNX model; `batch=None` leaves the batch open."""
        return self.topology.to_onnx(batch, [block.arrays() for block in self.blocks])  # type: ignore[operator]


def channels_last(module: nn.Module) -> None:
    """Reorder the weights of convolutions in place, as channels-last images want them."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
