"""The bundle's models in PyTorch, built from `models.json`; runs inside the Vitis AI container, without hwnas."""

import json
import os

import torch
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))


class Join(nn.Module):
    """Sum or product of tensors, as the quantiser traces them best."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, first, *others):
        for other in others:
            first = torch.add(first, other) if self.kind == "add" else torch.mul(first, other)
        return first


def make(op):
    """One operation of the description as a module."""
    kind = op["op"]
    if kind == "conv":
        return nn.Conv2d(
            op["in"], op["out"], op["kernel"], op["stride"], op["kernel"] // 2, groups=op["groups"], bias=op["bias"]
        )
    if kind == "batch_norm":
        return nn.BatchNorm2d(op["channels"], eps=op["eps"])
    if kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(op["in"], op["out"], bias=op["bias"]))
    if kind == "avg_pool":
        return nn.AvgPool2d(op["kernel"], op["stride"], op["padding"], count_include_pad=False)
    simple = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "h_swish": nn.Hardswish,
        "h_sigmoid": nn.Hardsigmoid,
        "global_avg_pool": lambda: nn.AdaptiveAvgPool2d(1),
        "add": lambda: Join("add"),
        "mul": lambda: Join("mul"),
    }
    return simple[kind]()


class Model(nn.Module):
    """A model of the bundle with random weights: what it costs does not depend on them."""

    def __init__(self, description):
        super().__init__()
        self.steps = description["ops"]
        self.parts = nn.ModuleList([make(op) for op in self.steps])

    def forward(self, *inputs):
        values = {"in%d" % index: value for index, value in enumerate(inputs)}
        for op, part in zip(self.steps, self.parts):
            values[op["name"]] = part(*[values[name] for name in op["inputs"]])
        return values[self.steps[-1]["name"]]


def load(name):
    """The model called `name` and a batch of one for each of its inputs."""
    with open(os.path.join(HERE, "models.json")) as handle:
        description = json.load(handle)[name]
    torch.manual_seed(0)
    return Model(description).eval(), [torch.randn([1] + shape) for shape in description["shapes"]]
