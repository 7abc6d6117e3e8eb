"""From the name that a log gives to what ran, to the primitive it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwnas.core.bundle import read_manifest
from hwnas.core.errors import HwnasError, InputError, ParseError
from hwnas.parse.base import Record
from hwnas.parse.family import base_name
from hwnas.spaces import Primitive, SearchSpace
from hwnas.spaces.mobile import conv, div8, linear, mbconv, pool

_FIELD = re.compile(
    r"(?:^|[-_ ])(in|out|k|e|s|act|use_se|se)[-_=]?"
    r"([0-9]{1,9}(?:x[0-9]{1,9})*|True|False|h_swish|h_sigmoid|relu6|relu|swish|none)"
    r"(?=[-_ ]|$|\[|\.)"
)


class Subjects:
    """Finds the primitive of a record.

    A bundle's manifest ties the models it holds to their primitives; a primitive's key says it itself; and a name in
    the notation of the Once-For-All latency data set, such as
    `ResidualBlock-in_136x14x14-out_136-k_7-e_3-s_1-act_h_swish-use_se_True`, describes the block in words.
    """

    def __init__(self, space: SearchSpace | None, manifests: list[Path]) -> None:
        self._space, self._keys = space, {p.key for p in space.primitives()} if space is not None else set()
        self._bundles = [(path.resolve().parent, read_manifest(path)) for path in manifests]

    def completed(self, record: Record) -> Record:
        """`record` with the batch of the bundle whose model ran, and its name where only the file has it.

        Raises `ParseError` where the log tells another batch, or lies in the file of another of the bundle's models.
        """
        named, where, bundle = base_name(record.source), record.source, self._bundle(record)
        models = bundle.get("models", {})
        if named in models and record.subject not in models:
            record = replace(record, subject=named)
        elif named in models and named != record.subject:
            raise ParseError(where, f"is of {record.subject} by its text, of the bundle's {named} by its name")
        batch = bundle.get("batch") if record.subject in models else None
        if batch is None or record.batch == batch:
            return record
        if record.batch is not None:
            raise ParseError(where, f"has batch {record.batch}, the bundle's {record.subject} was made for {batch}")
        return replace(record, batch=batch)

    def _bundle(self, record: Record) -> Mapping[str, Any]:
        """The manifest that knows the record's name: of the bundle that the log lies in, else the only one; or none.

        Raises `ParseError` where several others do.
        """
        names, folders = {record.subject, base_name(record.source)}, record.source.resolve().parents
        known = [(folder, manifest) for folder, manifest in self._bundles if names & manifest["models"].keys()]
        around = [pair for pair in known if pair[0] in folders]
        if around:
            return max(around, key=lambda pair: len(pair[0].parts))[1]
        if any(manifest != known[0][1] for _, manifest in known):
            bundles = " and ".join(str(folder) for folder, _ in known)
            raise ParseError(record.source, f"may be of {bundles}: leave logs inside their bundle, or parse them apart")
        return known[0][1] if known else {}

    def _model(self, record: Record) -> Mapping[str, Any] | None:
        model: Mapping[str, Any] | None = self._bundle(record).get("models", {}).get(record.subject)
        return model

    def find(self, record: Record) -> Primitive | None:
        """The primitive that ran, or None where it is none (of the space, where one is given).

        Raises `ParseError` where the model that ran is not the one of the manifest.
        """
        model = self._model(record)
        if model is not None:
            if record.md5 and model.get("md5") and record.md5 != model["md5"]:
                raise ParseError(
                    record.source, f"ran a model of MD5 {record.md5}, the manifest's {record.subject} is {model['md5']}"
                )
            candidates = [Primitive.from_key(model["primitive"])] if "primitive" in model else []
        else:
            candidates = _described(record.subject)
        if self._space is not None:
            return next((p for p in candidates if p.key in self._keys), None)
        return candidates[0] if candidates else None

    def architecture(self, record: Record) -> str | None:
        """The architecture's notation, where a whole network ran (of the space, if one is given): by the bundle's
        manifest, or where the log names it by its notation."""
        model, spec = self._model(record), self._space.spec if self._space is not None else None
        if model is not None:
            arch, of = model.get("arch"), self._bundle(record).get("space", spec)
            return str(arch) if arch is not None and spec in (None, of) else None
        try:
            return record.subject if self._space is not None and self._space.parse_many([record.subject]).size else None
        except HwnasError:
            return None


def _described(name: str) -> list[Primitive]:
    """The primitives that a name may mean, the likelier first."""
    if ":" in name:
        try:
            return [Primitive.from_key(name)]
        except InputError:
            return []
    fields = dict(_FIELD.findall(name))
    kind = re.match(r"[A-Za-z]*", name)
    shape = tuple(int(side) for side in fields.get("in", "").split("x") if side.isdigit())
    try:
        return _build(kind[0].lower() if kind else "", shape, fields)
    except (KeyError, ValueError, InputError):
        return []


def _build(kind: str, shape: tuple[int, ...], fields: dict[str, str]) -> list[Primitive]:
    if kind.startswith(("globalavgpool", "adaptiveavgpool", "avgpool", "pool")) and len(shape) == 3:
        return [pool(shape)]
    out = int(fields["out"])
    if kind.startswith(("linear", "gemm", "dense")) and len(shape) in (1, 3):
        return [linear(shape if len(shape) == 3 else (*shape, 1, 1), out), linear(shape, out)]
    if len(shape) != 3:
        return []
    act, kernel = fields["act"], int(fields["k"])
    if kind.startswith("conv"):
        image = shape[0] == 3 and kernel > 1
        stride = [int(fields["s"])] if "s" in fields else [2, 1] if image else [1, 2]
        return [conv(shape, out, kernel, s, act, bn) for s in stride for bn in (1, 0)]
    if kind.startswith(("residualblock", "mbconv", "mbinvertedconv", "dynamicmbconv")):
        expansion = int(fields["e"])
        wide = div8(shape[0] * expansion)
        squeezed = div8(wide / 4) if fields.get("use_se", fields.get("se")) in ("True", "1") else 0
        block = (kernel, int(fields["s"]), wide if expansion > 1 else 0)
        return [mbconv(shape, out, *block, act, squeezed)]
    return []
