"""Stages of training a super-network: which choices are open, for how long, and at what learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hwnas.core.arrays import Population
from hwnas.spaces import SearchSpace
from hwnas.spaces.base import GENE_TYPE
from hwnas.train.config import SupernetConfig

Rule = Literal["largest", "random", "sandwich"]
RESOLUTION = "r"
LARGEST_LR = 0.08


@dataclass(frozen=True)
class Stage:
    """One part of the training.

    Attributes:
        opened: field of the architecture's text -> values that may be sampled; fields that are absent stay largest.
            The sandwich rule samples all.
        epochs, warmup: passes over the images, of which the first `warmup` raise the learning rate from 0.
        lr: peak learning rate for 64 images a step.
        subnets: sub-networks a step.
        sort_above: expansions in use so far; before the stage, channels are sorted by importance between them.
        bounds_every: the sandwich rule trains the largest and the smallest network in one of that many steps.
    """

    name: str
    rule: Rule
    epochs: float
    lr: float
    opened: Mapping[str, tuple[int, ...]] | None = None
    warmup: float = 0.0
    subnets: int = 1
    sort_above: tuple[int, ...] | None = None
    bounds_every: int = 1

    def choices(self, space: SearchSpace) -> list[np.ndarray]:
        """Gene indices open in this stage, one array a gene; every resolution always is."""
        opened = self.opened or {}
        result = []
        for gene in space.genes:
            field = gene.field
            everything = self.rule == "sandwich" or field == RESOLUTION
            values = gene.choices if everything else opened.get(field, gene.choices[-1:])
            result.append(np.array([i for i, value in enumerate(gene.choices) if value in values]))
        return result


ALL = {"ks": (3, 5, 7), "e": (3, 4, 6), "d": (2, 3, 4)}

PROGRESSIVE = (
    Stage("largest", "largest", 180, LARGEST_LR),
    Stage("kernel", "random", 125, 0.03, {"ks": (3, 5, 7)}, warmup=5),
    Stage("depth 3", "random", 25, 0.0025, {"ks": (3, 5, 7), "d": (3, 4)}, subnets=2),
    Stage("depth 2", "random", 125, 0.0075, {"ks": (3, 5, 7), "d": (2, 3, 4)}, warmup=5, subnets=2),
    Stage("expansion 4", "random", 25, 0.0025, {**ALL, "e": (4, 6)}, subnets=4, sort_above=()),
    Stage("expansion 3", "random", 125, 0.0075, ALL, warmup=5, subnets=4, sort_above=(4,)),
)
"""Once-for-All (ICLR 2020), section 4.1 and its code: progressive shrinking, learning rates for 64 images."""


def stages(config: SupernetConfig) -> tuple[Stage, ...]:
    """The stages of `config`, in order, their epochs scaled so that they add up to `config.epochs`."""
    plan = PROGRESSIVE if config.rule == "progressive" else _sandwich(config)
    scale = config.epochs / sum(stage.epochs for stage in plan)
    lr = config.learning_rate / LARGEST_LR if config.learning_rate else 1.0
    return tuple(replace(s, epochs=s.epochs * scale, warmup=s.warmup * scale, lr=s.lr * lr) for s in plan)


def _sandwich(config: SupernetConfig) -> tuple[Stage, ...]:
    alone = config.teacher_fraction
    together = Stage(
        "sandwich",
        "sandwich",
        1 - alone,
        LARGEST_LR,
        warmup=0.02,
        subnets=config.subnets,
        sort_above=() if alone else None,
        bounds_every=config.bounds_every,
    )
    return (Stage("largest", "largest", alone, LARGEST_LR, warmup=0.02), together) if alone else (together,)


def sample(choices: list[np.ndarray], n: int, rng: np.random.Generator) -> Population:
    """`n` genotypes whose genes are drawn uniformly from `choices`; shape (n, genes)."""
    columns = [rng.choice(values, n) for values in choices]
    return np.stack(columns, axis=1).astype(GENE_TYPE)


def cosine(step: int, steps: int, warmup: int, peak: float) -> float:
    """Learning rate of `step` out of `steps`: linear from 0 over `warmup` steps, then half a cosine down to 0."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
