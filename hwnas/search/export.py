"""An architecture as an ONNX model whose outputs were compared with PyTorch's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.arrays import Population
from hwnas.core.documents import NETWORK, SUPERNET
from hwnas.core.errors import ClaimFailedError, InputError
from hwnas.core.files import write_bytes
from hwnas.search.source import translation
from hwnas.spaces import SearchSpace, get_space

if TYPE_CHECKING:
    from hwnas.spaces.modules import Network

TOLERANCE = 1e-3
SEED = 0
OPEN_BATCH = 2
COMPARED = 32
INPUT = (
    "upright RGB in [0, 1], what is transparent on white, channels first; each channel minus hwnas.mean, divided by "
    "hwnas.std; the shorter side resized to the input's (bicubic, or bilinear with a low-pass filter), the centre cut "
    "out; output i is the score of hwnas.classes[i]"
)


@dataclass(frozen=True)
class Exported:
    """A checked model.

    Attributes:
        model: the serialised ONNX model.
        difference: the largest absolute difference from PyTorch's output, relative to the largest output.
    """

    arch: str
    model: bytes
    difference: float


def export(
    arch: str,
    space: str | SearchSpace,
    out: str | Path | None = None,
    *,
    batch: int | None = 1,
    supernet: str | Path | None = None,
) -> Exported:
    """Export one architecture to ONNX and compare what ONNX Runtime computes with what PyTorch does.

    The model's metadata say which space and architecture it is and, with trained weights, how images are prepared for
    it (`hwnas.input`, `hwnas.mean`, `hwnas.std`) and what its outputs stand for (`hwnas.classes`).

    Args:
        arch: the architecture in the space's notation.
        out: the file to write; None: none is written.
        batch: images in one inference; None leaves it open. Of more than `COMPARED`, the same model of so many images
            is compared.
        supernet: the folder of a trained super-network, or of the network trained alone (`hwnas train`), to take the
            weights from; without it they are untrained.

    Raises `ClaimFailedError` where the outputs differ by more than 0.1 % of the largest.
    """
    space = get_space(space) if isinstance(space, str) else space
    network = build_network(space, space.parse(arch), supernet)
    model = _described(network.to_onnx(batch), {"space": space.spec, "arch": arch, **_input_of(supernet)})
    few = min(batch or OPEN_BATCH, COMPARED)
    difference = compare(network, model if batch in (None, few) else network.to_onnx(few), few)
    if not difference <= TOLERANCE:
        raise ClaimFailedError(
            f"the ONNX model of {arch} computes something else than PyTorch: the outputs differ by {difference:.2g} "
            f"of the largest, {TOLERANCE:g} is allowed"
        )
    if out is not None:
        write_bytes(out, model)
    return Exported(arch, model, difference)


def _input_of(folder: str | Path | None) -> dict[str, str]:
    """What a network with the weights of `folder` expects and answers, as texts; nothing for untrained weights."""
    if folder is None:
        return {}
    from hwnas.train import checkpoint

    document = NETWORK if (Path(folder) / NETWORK.file).is_file() else SUPERNET
    about = checkpoint.read(folder, document).get("data_set") or {}
    kept = {key: json.dumps(about[key]) for key in ("mean", "std", "classes") if key in about}
    return {"input": INPUT, **kept} if kept else {}


def _described(model: bytes, properties: dict[str, str]) -> bytes:
    """The ONNX model with `properties` in its metadata, under names that begin with `hwnas.`."""
    import onnx

    proto = onnx.load_from_string(model)
    onnx.helper.set_model_props(proto, {f"hwnas.{key}": value for key, value in properties.items()})
    return bytes(proto.SerializeToString())


def build_network(space: SearchSpace, row: Population, supernet: str | Path | None) -> Network:
    """A network in PyTorch with the weights of a super-network or of its own training; untrained where `None`.

    Raises `InputError` where the folder holds another network's weights.
    """
    if supernet is None:
        return space.build(row).eval()
    from hwnas.train import load_network, load_supernet

    if (Path(supernet) / NETWORK.file).is_file():
        trained = load_network(supernet, "cpu")
        if trained.topology != space.graph(row):
            raise InputError(f"{supernet} holds the weights of another network than {space.format(row)}")
        return trained
    opened = load_supernet(supernet)
    network = opened.extract(translation(space, opened.space, str(supernet))(row[None])[0])
    return network.cpu().eval()


def compare(network: Network, model: bytes, batch: int) -> float:
    """Largest absolute difference of the outputs of ONNX Runtime and PyTorch, relative to the largest output."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(SEED)
    shapes = [(batch, *shape) for shape in network.topology.inputs]
    images = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    names = [value.name for value in session.get_inputs()]
    found: NDArray[Any] = session.run(None, dict(zip(names, images, strict=True)))[0]
    with torch.inference_mode():
        wanted = network.eval()(*map(torch.from_numpy, images)).numpy()
    scale = float(np.abs(wanted).max()) or 1.0
    return float(np.abs(found.reshape(wanted.shape) - wanted).max()) / scale
