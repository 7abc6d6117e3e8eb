"""What Once-for-All (Cai et al., ICLR 2020) published: its ImageNet accuracy predictor and Note 10 latency tables."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Population
from hwnas.core.errors import InputError
from hwnas.parse.ofa_lookup import METRIC, read_note10
from hwnas.search.additive import Additive, Factor
from hwnas.spaces import SearchSpace, get_space
from hwnas.spaces.ofa import DEPTHS, EXPANSIONS, KERNELS, SLOTS, STAGES

PREDICTED = "ofa-mbv3:width=1.2"
BLOCKS = STAGES * SLOTS
PREDICTOR_RESOLUTIONS = tuple(range(112, 225, 16))
LAYERS = ("0", "2", "4", "6")
CHUNK = 512


class OfaAccuracy:
    """Once-for-All's published accuracy predictor: 128 one-hot inputs, three hidden layers of 400, accuracy a fraction.

    Inputs: kernel of each of 20 blocks (3, 5, 7), expansion of each (3, 4, 6), both all zero where the block does not
    run, and the resolution (112 to 224 by 16).
    """

    def __init__(self, path: str | Path, space: SearchSpace) -> None:
        own = get_space(PREDICTED).options | {"resolution": space.options.get("resolution")}
        if space.name != "ofa-mbv3" or space.options != own:
            raise InputError(f"ofa:{path} predicts networks of {PREDICTED} on ImageNet, not of {space.spec}")
        resolutions = space.genes[-1].choices
        unknown = [r for r in resolutions if r not in PREDICTOR_RESOLUTIONS]
        if unknown:
            known = "/".join(map(str, PREDICTOR_RESOLUTIONS))
            raise InputError(
                f"ofa:{path} knows the resolutions {known}, not {unknown[0]}; "
                f"search ofa-mbv3:resolution={known} or some of them"
            )
        self.weights, self.biases = _read_layers(Path(path))
        self._resolution = np.array([PREDICTOR_RESOLUTIONS.index(r) for r in resolutions])
        self._slots = np.arange(BLOCKS) % SLOTS

    def __call__(self, population: Population) -> NDArray[np.float64]:
        """Accuracy of a population (n, genes) as a fraction, shape (n,)."""
        result = np.empty(len(population))
        for start in range(0, len(population), CHUNK):
            x = self.inputs(population[start : start + CHUNK])
            for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
                x = x @ weight
                x += bias
                np.maximum(x, 0, out=x)
            result[start : start + CHUNK] = (x @ self.weights[-1] + self.biases[-1])[:, 0]
        return result

    def inputs(self, population: Population) -> NDArray[np.float32]:
        """The one-hot inputs, shape (n, 128)."""
        n = len(population)
        depth = np.take(np.array(DEPTHS), population[:, 2 * BLOCKS : 2 * BLOCKS + STAGES])
        runs = self._slots < np.repeat(depth, SLOTS, axis=1)
        genes = population[:, : 2 * BLOCKS].reshape(n, 2, BLOCKS)
        chosen = np.where(runs[:, None], genes, -1)
        x = np.zeros((n, 2 * BLOCKS * len(KERNELS) + len(PREDICTOR_RESOLUTIONS)), dtype=np.float32)
        blocks = x[:, : 2 * BLOCKS * len(EXPANSIONS)].reshape(n, 2, BLOCKS, len(KERNELS))
        np.equal(chosen[..., None], np.arange(len(KERNELS)), out=blocks, casting="unsafe")
        x[np.arange(n), 2 * BLOCKS * len(KERNELS) + self._resolution[population[:, -1]]] = 1
        return x


def _read_layers(path: Path) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        layers = [(state[f"{layer}.weight"], state[f"{layer}.bias"]) for layer in LAYERS]
        weights = [np.ascontiguousarray(weight.numpy().T, dtype=np.float32) for weight, _ in layers]
        biases = [bias.numpy().astype(np.float32) for _, bias in layers]
    except FileNotFoundError as error:
        raise InputError(f"no accuracy predictor at {path}") from error
    except Exception as error:  # torch raises errors of many unrelated types for a file that is none of its own
        raise InputError(f"{path}: not Once-for-All's accuracy predictor ({type(error).__name__})") from error
    widths = [2 * BLOCKS * len(KERNELS) + len(PREDICTOR_RESOLUTIONS), *(len(bias) for bias in biases)]
    shapes = list(pairwise(widths))
    if [weight.shape for weight in weights] != shapes or widths[-1] != 1:
        raise InputError(f"{path}: not Once-for-All's accuracy predictor (layers {[w.shape for w in weights]})")
    if not all(np.isfinite(array).all() for array in (*weights, *biases)):
        raise InputError(f"{path}: the accuracy predictor holds weights that are not finite")
    return weights, biases


def note10_latency(folder: str | Path, space: SearchSpace) -> Additive:
    """Latency in ms of networks of `space` from the tables in `folder`, one file a resolution.

    Raises `InputError` where a resolution has no file, `MissingCostError` where a block has no row.
    """
    if space.name != "ofa-mbv3":
        raise InputError(f"note10:{folder} holds blocks of ofa-mbv3:width=1.2, none of {space.spec}")
    r = len(space.genes) - 1
    tables = list(zip(space.slots, space.tables, strict=True))
    costs = np.full((len(space.genes[r].choices), len(space.primitives()) + 1), np.nan)
    costs[:, -1] = 0.0
    for index, resolution in enumerate(space.genes[r].choices):
        used = np.unique(np.concatenate([_at(slot.genes, table, r, index) for slot, table in tables]))
        used = used[used >= 0]
        primitives = [space.primitives()[i] for i in used]
        costs[index, used] = read_note10(folder, resolution, primitives).costs(primitives, METRIC)
    return Additive(_factor(slot.genes, table, r, costs) for slot, table in tables)


def _at(genes: tuple[int, ...], table: NDArray[np.int32], gene: int, choice: int) -> NDArray[np.int32]:
    return table.take(choice, axis=genes.index(gene)).ravel() if gene in genes else table.ravel()


def _factor(genes: tuple[int, ...], table: NDArray[np.int32], gene: int, costs: NDArray[np.float64]) -> Factor:
    """A slot's factor where a block's cost depends on the choice of `gene` too; `costs` is (choices, primitives)."""
    if gene not in genes:
        return Factor.of((gene, *genes), costs[:, table])
    axis = genes.index(gene)
    moved = np.moveaxis(table, axis, 0)
    rows = np.arange(len(costs)).reshape(-1, *[1] * (moved.ndim - 1))
    return Factor.of(genes, np.moveaxis(costs[rows, moved], 0, axis))
