"""Several processes of one training, as torchrun starts them: they share each batch and average their gradients."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hwnas.core.errors import InputError


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls, device: torch.device) -> Group:
        """The group that torchrun describes in the environment; this process alone where it did not start it."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the processes, which have all trained the same sub-networks."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def average(self, tensor: Tensor) -> Tensor:
        """`tensor`, in place, as the mean over the processes."""
        if self.world > 1:
            dist.all_reduce(tensor)
            tensor /= self.world
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the BatchNorm statistics of the first, as a resumed run would have them."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


def pick_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU; raises `InputError` where `cuda` has none."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"device is {name}, but PyTorch {torch.__version__} finds no GPU; set device: auto")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
