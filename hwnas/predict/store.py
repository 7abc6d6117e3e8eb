"""Saved predictors: a folder of `model.json` and the safetensors file that it names. Nothing in it can run code.

The JSON file is renamed into place last, so a folder holds either the new predictor or the one before it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.core.documents import PREDICTOR, stamp
from hwnas.core.errors import InputError, MissingCostError
from hwnas.core.files import check_folder, write_bytes
from hwnas.core.target import Target
from hwnas.core.units import quantity_of
from hwnas.predict.base import Predictor, predictors
from hwnas.predict.scaling import Scaling
from hwnas.spaces import get_space

MODEL, ARRAYS = PREDICTOR.file, "arrays*.safetensors"
FIRST_ARRAYS = "arrays.safetensors"
"""What the file was called before `model.json` named it."""
FIELDS = ("space", "predictor", "options", "metric", "quantity", "unit", "scale", "domain", "arrays_sha256")


def save_predictor(model: Predictor, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a fitted model, with its intervals' calibration, to `folder`; a predictor that stood there is replaced.

    Args:
        provenance: what else to keep in `model.json` (target, seed, data, scores).

    Raises `InputError` where `folder` holds something else, or cannot be written; what stood there before stays.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    check_vacant(folder)

    content = save({name: np.ascontiguousarray(array) for name, array in model.to_arrays().items()})
    digest = hashlib.sha256(content).hexdigest()
    document: dict[str, Any] = {
        **stamp(),
        "space": model.space.spec,
        "predictor": model.name,
        "options": model.options,
        "metric": model.metric,
        "quantity": model.quantity.name,
        "unit": model.quantity.unit,
        "scale": model.scaling.size,
        "domain": {
            gene.name: gene.choices[value]
            for gene, value in zip(model.space.genes, model.fixed, strict=True)
            if value >= 0
        },
        "arrays": ARRAYS.replace("*", f"-{digest[:12]}"),
        "arrays_sha256": digest,
        **(provenance or {}),
    }
    write_bytes(folder / document["arrays"], content)
    PREDICTOR.write(folder / MODEL, document)
    for path in folder.glob(ARRAYS):
        if path.name != document["arrays"]:
            path.unlink(missing_ok=True)


def check_vacant(folder: Path) -> None:
    """Raise `InputError` where `folder` cannot take a predictor, since it holds something else."""
    check_folder(folder)
    if folder.is_dir() and not (folder / MODEL).is_file():
        left = {path for path in folder.iterdir() if not path.name.startswith((".arrays", f".{MODEL}"))}
        if left - set(folder.glob(ARRAYS)):
            raise InputError(f"{folder} exists and is no saved predictor; choose another --out")


def load_predictor(folder: str | Path) -> Predictor:
    """Read a saved predictor; raises `InputError` where the folder is no model, is damaged, or of another version."""
    folder = Path(folder)
    document = read_document(folder)
    space = get_space(document["space"])
    if space.spec != document["space"]:  # its genes may have stood in another order
        raise InputError(f"{folder} is of {document['space']}, which is {space.spec} now; fit it again")
    kind = predictors.get(document["predictor"])
    name = Path(str(document.get("arrays", FIRST_ARRAYS))).name
    arrays = _read_arrays(folder / name, document["arrays_sha256"])
    try:
        model = kind.from_arrays(space, document["metric"], document["options"], arrays)
        model.scaling = Scaling(model.quantity, float(document["scale"]))
        for index, gene in enumerate(space.genes):
            if gene.name in document["domain"]:
                model.fixed[index] = gene.choices.index(document["domain"][gene.name])
        with suppress(MissingCostError):
            model.predict(space.sample(1, 0), extrapolate=True)
    except Exception as error:
        raise InputError(f"{folder}: a damaged predictor ({type(error).__name__}: {error}); fit it again") from error
    return model


def read_document(folder: Path) -> dict[str, Any]:
    """`model.json`, checked to be a predictor of this schema with all fields."""
    document = PREDICTOR.read(folder / MODEL)
    missing = [field for field in FIELDS if field not in document]
    if missing:
        raise InputError(f"{folder / MODEL}: a damaged predictor: {', '.join(missing)} missing; fit it again")
    if fault := _fault(document):
        raise InputError(f"{folder / MODEL}: a damaged predictor: {fault}; fit it again")
    if document.get("target") is not None:
        Target.from_json(document["target"], str(folder / MODEL))
    return document


def _fault(document: Mapping[str, Any]) -> str:
    """What in `model.json` cannot be; empty where nothing is."""
    for field in ("space", "predictor", "metric", "arrays_sha256"):
        if not isinstance(document[field], str):
            return f"{field} is {document[field]!r}"
    scale, quantity = document["scale"], quantity_of(document["metric"])
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not (math.isfinite(scale) and scale > 0):
        return f"scale is {scale!r}"
    if (document["quantity"], document["unit"]) != (quantity.name, quantity.unit):
        return f"quantity {document['quantity']!r} in {document['unit']!r} is not that of {document['metric']}"
    return ""


def _read_arrays(path: Path, digest: str) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("its checksum is not the one in model.json")
        arrays: dict[str, NDArray[Any]] = load(data)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error}); fit the predictor again") from error
    return arrays
