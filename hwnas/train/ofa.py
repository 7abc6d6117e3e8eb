"""Training a super-network as Once-for-All does (Cai et al., ICLR 2020), or by BigNAS's sandwich rule (ECCV 2020)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hwnas.core.arrays import Population
from hwnas.core.errors import InputError
from hwnas.spaces.base import GENE_TYPE
from hwnas.train.algorithms import algorithms
from hwnas.train.batches import Batches
from hwnas.train.config import SupernetConfig
from hwnas.train.elastic import ElasticNetwork
from hwnas.train.evaluate import Evaluator
from hwnas.train.loop import Losses, Phase, Run, fixed_shape
from hwnas.train.schedule import ALL, RESOLUTION, Stage, sample, stages
from hwnas.train.supernet import resolution_of

TEACHER = "teacher"


@algorithms.register("ofa")
def once_for_all(run: Run, network: ElasticNetwork, config: SupernetConfig, evaluator: Evaluator) -> list[Phase]:
    """The phases of `config.rule`; the teacher is the largest network as it was at the end of its own phase.

    As published, it takes BatchNorm's statistics from each batch, so that they are those of the batch's resolution.
    """
    plan, fields = stages(config), {gene.field for gene in network.space.genes}
    if config.rule == "progressive" and not ALL.keys() <= fields:
        raise InputError(
            f"progressive shrinking is made for ofa-mbv3 and ofa-mbv2: use rule: sandwich for {config.space}"
        )
    if config.rule == "progressive":
        run.others[TEACHER] = network.extract(network.space.choices - 1).requires_grad_(False).train()
    return [ElasticPhase(stage, run, network, config, evaluator) for stage in plan]


class ElasticPhase(Phase):
    """One `Stage`: sampled sub-networks learn from the labels and from the largest network."""

    def __init__(
        self, stage: Stage, run: Run, network: ElasticNetwork, config: SupernetConfig, evaluator: Evaluator
    ) -> None:
        self.stage, self.network, self.config = stage, network, config
        self.name, self.lr = stage.name, stage.lr
        self.steps, self.warmup = _steps(stage, run.batches)
        self._run, self._evaluator = run, evaluator
        self._teacher = fixed_shape(run.others[TEACHER], config.compile) if TEACHER in run.others else None
        self._choices = stage.choices(network.space)
        names = [gene.name for gene in network.space.genes]
        self._resolution = names.index(RESOLUTION) if RESOLUTION in names else None

    def start(self) -> None:
        if self.stage.sort_above is not None:
            self.network.sort_channels(self.stage.sort_above)

    def rows(self, step: int) -> list[tuple[str, Population]]:
        """The sub-networks of `step` and their names, the largest first; one resolution for all of them."""
        rng = np.random.default_rng([self.config.seed, 3, step])
        bounds = {"largest": self._bound(-1), "smallest": self._bound(0)}
        names = {"largest": ["largest"], "sandwich": ["largest", "smallest"]}.get(self.stage.rule, [])
        drawn = sample(self._choices, max(0, self.stage.subnets - len(names)), rng)
        if len(drawn) and step % self.stage.bounds_every:
            names = []
        rows = [*(bounds[name] for name in names), *drawn]
        if self._resolution is not None:
            chosen = rng.choice(self._choices[self._resolution])
            for row in rows:
                row[self._resolution] = chosen
        return list(zip([*names, *map(self.network.space.format, drawn)], rows, strict=True))

    def _bound(self, end: int) -> Population:
        return np.array([values[end] for values in self._choices], dtype=GENE_TYPE)

    def resolution(self, step: int) -> int:
        space, row = self.network.space, self.rows(step)[0][1]
        first: int = space.primitives()[space.blocks(row)[0, 0]].inputs[0][-1]
        return first

    def losses(self, step: int, images: Tensor, labels: Tensor) -> Losses:
        targets = None
        if self._teacher is not None and self.stage.rule != "largest":
            with torch.no_grad():
                targets = self._teacher(images).float().softmax(1)
        for name, row in self.rows(step):
            logits = self.network(images, row).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
            if targets is not None and self.config.distill:
                loss = loss + self.config.distill * F.cross_entropy(logits, targets)
            if name == "largest" and targets is None:
                targets = logits.detach().softmax(1)
            yield name, loss

    def finish(self) -> dict[str, float]:
        if self.stage.rule == "largest" and TEACHER in self._run.others:
            largest = self.network.extract(self.network.space.choices - 1)
            self._run.others[TEACHER].load_state_dict(largest.state_dict())
        return {f"accuracy of the {name}": self._accuracy(end) for name, end in (("largest", -1), ("smallest", 0))}

    def _accuracy(self, end: int) -> float:
        network = self.network.extract(self._bound(end))
        side = resolution_of(network)
        self._evaluator.recalibrate(network, side)
        return self._evaluator.accuracy(network, side)


def _steps(stage: Stage, batches: Batches) -> tuple[int, int]:
    """Steps of a stage, and those of its warm-up."""
    epoch = batches.steps_per_epoch
    return max(1, round(stage.epochs * epoch)), round(stage.warmup * epoch)
