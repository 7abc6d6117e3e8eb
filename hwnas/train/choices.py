"""How probable each choice of each layer is: logits that an optimiser of their own moves, beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor, nn

BETAS = (0.5, 0.999)


class Choices(nn.Module):
    """Logits (layers, most choices) and Adam's state for them.

    All of it are buffers, so that the optimiser of the weights leaves them alone and a checkpoint holds them. Rows of
    layers with fewer choices than the most are padded; padding has probability 0.
    """

    logits: Tensor
    closed: Tensor
    moment: Tensor
    square: Tensor
    updates: Tensor

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = tuple(counts)
        shape = (len(counts), max(counts))
        for name in ("logits", "moment", "square"):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("updates", torch.zeros(()))
        closed = torch.arange(shape[1])[None] >= torch.tensor(counts)[:, None]
        self.register_buffer("closed", closed, persistent=False)

    def probabilities(self, logits: Tensor | None = None) -> Tensor:
        """Softmax of the logits, or of others of their shape, a layer a row."""
        used = self.logits if logits is None else logits
        return used.masked_fill(self.closed, -torch.inf).softmax(1)

    def gumbel_softmax(self, logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """A relaxed draw (Jang et al., Maddison et al., ICLR 2017): softmax((logits + Gumbel noise) / temperature)."""
        uniform = torch.rand(logits.shape, generator=generator).clamp_(1e-20, 1 - 1e-7)
        noise = -torch.log(-torch.log(uniform)).to(logits.device)
        return self.probabilities((logits.masked_fill(self.closed, -torch.inf).log_softmax(1) + noise) / temperature)

    def entropy(self) -> Tensor:
        """Entropy of each layer as a part of the most it can have, shape (layers,): 1 is chance, 0 is decided."""
        p = self.probabilities()
        most = torch.tensor([log(count) if count > 1 else 1.0 for count in self.counts], device=p.device)
        relative: Tensor = torch.special.entr(p).sum(1) / most
        return relative

    def update(self, gradient: Tensor, lr: float, weight_decay: float) -> None:
        """One step of Adam (Kingma and Ba, ICLR 2015) with L2 decay on the logits.

        Its first beta is 0.5, as in DARTS (Liu et al., ICLR 2019): with 0.9 the choices overshoot a target.
        """
        adam = torch.optim.Adam([self.logits], lr=lr, betas=BETAS, weight_decay=weight_decay, foreach=False)
        adam.state[self.logits] = {"step": self.updates, "exp_avg": self.moment, "exp_avg_sq": self.square}
        self.logits.grad = gradient
        adam.step()
        self.logits.grad = None
