"""Bundles for devices that return files: a folder of models, scripts, and a manifest that says which model is what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas import __version__
from hwnas.core.documents import BUNDLE
from hwnas.core.errors import InputError, ParseError
from hwnas.core.files import read_json, write_json

MANIFEST = BUNDLE.file
BEGUN = "emission.json"


@dataclass(frozen=True)
class BundleReport:
    """What is in a bundle: its folder, models by kind, and the primitives left out with the reason."""

    out: Path
    primitives: int
    networks: int
    left_out: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "out": str(self.out)}


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Take an empty folder, or one that an interrupted emission of the same bundle left behind."""
    started = folder / BEGUN
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds a finished bundle; choose another --emit")
    if started.exists():
        if read_json(started, "emission's record") != identity:
            raise InputError(f"{folder} holds the beginning of another bundle; choose another --emit")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; choose another --emit")
    write_json(started, identity)


def finish(
    folder: Path, identity: dict[str, Any], models: dict[str, dict[str, Any]], left_out: dict[str, str]
) -> BundleReport:
    """Write the manifest of a bundle whose models are all there; from now on it is a finished one."""
    manifest = {
        "made_by": f"hwnas {__version__}",
        **identity,
        "left_out": left_out,
        "models": models,
    }
    BUNDLE.write(folder / MANIFEST, manifest)
    (folder / BEGUN).unlink(missing_ok=True)
    whole = sum("arch" in entry for entry in models.values())
    return BundleReport(folder, len(models) - whole, whole, left_out)


def read_manifest(path: Path) -> Mapping[str, Any]:
    """A bundle's manifest; raises `ParseError`.

    `models` says of each, by its name, what it is: `primitive` or `arch`, and `md5`. `space` and `batch` are of all.
    """
    manifest = read_json(path, BUNDLE.what)
    if manifest.get("kind") != BUNDLE.kind or not isinstance(manifest.get("models"), dict):
        raise ParseError(path, "not the manifest of a bundle that hwnas wrote")
    for name, entry in manifest["models"].items():
        named = [entry[key] for key in ("primitive", "arch") if key in entry] if isinstance(entry, dict) else []
        if len(named) != 1 or not isinstance(named[0], str):
            raise ParseError(path, f"the model {name!r} is neither a primitive nor a network")
    if manifest.get("schema", BUNDLE.schema) != BUNDLE.schema:
        raise ParseError(path, f"of schema {manifest['schema']!r}; this hwnas reads schema {BUNDLE.schema}")
    return manifest
