"""Checkpoints: a folder whose JSON file names the safetensors files that belong to it.

The JSON file is renamed into place last, so a checkpoint is either the new one or the one before it, never a mixture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.core.documents import TRAIN_AGAIN, Document, stamp
from hwnas.core.errors import InputError
from hwnas.core.files import replacing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.train.config import RunConfig

STEP = "[0-9]" * 8


def provenance(config: RunConfig) -> dict[str, Any]:
    """What a checkpoint says of itself beside its weights."""
    import torch

    return {
        **stamp(),
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
    }


def save(
    folder: Path, document: Document, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: dict[str, Any]
) -> None:
    """Write one safetensors file for each group of `tensors` into `folder` and the document that names them, then drop
    those of earlier steps. `folder` is the caller's alone.

    Raises `InputError` where the folder cannot be written; the checkpoint before stays whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    files: dict[str, dict[str, str]] = {}
    for group, values in tensors.items():
        path = folder / f"{group}-{step:08d}.safetensors"
        with replacing(path) as temporary:
            try:
                save_file({key: tensor.detach().contiguous().cpu() for key, tensor in values.items()}, temporary)
            except SafetensorError as error:
                raise InputError(f"cannot write {path}: {error}; choose another --out or free some space") from error
        files[group] = {"file": path.name, "sha256": _digest(path)}
    document.write(folder / document.file, {**about, "step": step, "files": files})
    kept = {entry["file"] for entry in files.values()}
    for path in (path for group in files for path in folder.glob(f"{group}-{STEP}.safetensors")):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def read(folder: str | Path, document: Document) -> dict[str, Any]:
    """What the document in `folder` says; raises `InputError` where it is no checkpoint of this kind and version."""
    path = Path(folder) / document.file
    about = document.read(path)
    if not isinstance(about.get("config"), dict):
        raise InputError(f"{path}: a damaged {document.what}: it lacks its configuration; {document.mend}")
    if not _describes_data(about.get("data_set")):
        raise InputError(f"{path}: a damaged {document.what}: it does not say what it was trained on; {document.mend}")
    return about


def _describes_data(found: Any) -> bool:
    """Whether that could be what `data.describe` gives, or nothing."""
    if found is None:
        return True
    kinds = {"classes": (str,), "mean": (int, float), "std": (int, float)}
    lists = {key: found[key] for key in kinds if key in found} if isinstance(found, dict) else {"": None}
    return all(
        isinstance(values, list) and all(isinstance(value, kinds[key]) for value in values)
        for key, values in lists.items()
    )


def tensors(folder: str | Path, about: Mapping[str, Any], group: str) -> dict[str, Tensor]:
    """One group of tensors; raises `InputError` where its file is missing or is not what was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        entry = about["files"][group]
        path = Path(folder) / Path(entry["file"]).name
        if _digest(path) != entry["sha256"]:
            raise InputError(f"{path}: the checkpoint is damaged (its content is not what was written); {TRAIN_AGAIN}")
        loaded: dict[str, Tensor] = load_file(path)
        return loaded
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}: the checkpoint lacks its {group}; {TRAIN_AGAIN}") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot read the checkpoint's {group} ({error}); {TRAIN_AGAIN}") from error


def put_weights(network: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load `weights` into `network`; raises `InputError` naming the first tensor that does not fit."""
    own = network.state_dict()
    for name in sorted({*own, *weights}):
        found, expected = (tuple(t[name].shape) if name in t else None for t in (weights, own))
        if found != expected:
            raise InputError(f"{where}: {name} has shape {found}, the space needs {expected}: weights of another space")
    network.load_state_dict(weights)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
