"""A bundle for a device that only returns files: models, a manifest, and scripts that run them with the device's tools.

OUT/hwnas_bundle.json    which model is which primitive or architecture
OUT/onnx/ID.onnx         each as a model of its own, untrained: what it costs does not depend on its weights
OUT/run_onnxruntime.sh   onnxruntime_perf_test
OUT/run_trtexec.sh       trtexec
OUT/run_tflite.sh        benchmark_model, after converting the models with onnx2tf
OUT/logs/RUNTIME/        what the scripts write and `parse` reads
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from hwnas.core.arrays import Population
from hwnas.core.bundle import BundleReport, claim, finish
from hwnas.core.errors import InputError
from hwnas.core.files import write_bytes
from hwnas.core.progress import progress
from hwnas.profile.choosers import random_networks
from hwnas.profile.subject import Subject
from hwnas.spaces import SearchSpace

SCRIPTS = ("common.sh", "run_onnxruntime.sh", "run_tflite.sh", "run_trtexec.sh")


def emit_files(
    space: SearchSpace,
    out: str | Path,
    networks: int = 0,
    batch: int = 1,
    seed: int = 0,
    chosen: Population | None = None,
) -> BundleReport:
    """Write the bundle of a space.

    An interrupted emission goes on where it stood, since models that are there are not made again.

    Args:
        networks: distinct random architectures to add as whole models.
        batch: images in one inference.
        chosen: these architectures (networks, genes) instead of random ones.

    Raises `InputError` where `out` is not empty and no bundle of the same space, networks, batch and seed.
    """
    if batch < 1 or networks < 0:
        raise InputError(f"batch {batch} must be at least 1, networks {networks} at least 0")
    folder = Path(out)
    identity: dict[str, Any] = {"space": space.spec, "networks": networks, "batch": batch, "seed": seed}
    if chosen is None:
        chosen = random_networks(space, networks, seed) if networks else space.sample(0)
    else:
        identity["chosen"] = [space.format(row) for row in chosen]
    claim(folder, identity)
    subjects, models = _subjects(space, chosen)
    with progress("models", len(subjects)) as task:
        for name, subject in subjects.items():
            path = folder / "onnx" / f"{name}.onnx"
            if not path.exists():
                write_bytes(path, subject.to_onnx(batch))
            task.advance(note=name)
    for script in SCRIPTS:
        write_bytes(folder / script, files("hwnas.profile").joinpath("scripts", script).read_bytes())
        (folder / script).chmod(0o755)
    return finish(folder, identity, models, {})


def _subjects(space: SearchSpace, chosen: Population) -> tuple[dict[str, Subject], dict[str, dict[str, Any]]]:
    """What each model is, by its name: as a subject, and as the manifest's entry."""
    subjects = {f"p{index:05d}": Subject.primitive(p) for index, p in enumerate(space.primitives())}
    models: dict[str, dict[str, Any]] = {name: {"primitive": subject.name} for name, subject in subjects.items()}
    for index, row in enumerate(chosen):
        name = f"n{index:05d}"
        subjects[name] = Subject.network(space, row)
        models[name] = {"arch": subjects[name].name}
    return subjects, models
