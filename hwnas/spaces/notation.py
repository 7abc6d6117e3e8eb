"""The JSON notation that several communities share: an object of lists, one entry a gene."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hwnas.spaces.base import SearchSpace, bad_architecture

Layout = Mapping[str, list[int] | int]
"""JSON field -> the genes it holds: a list of gene numbers, or one number where the field is a scalar."""


def read_json_row(
    space: SearchSpace, layout: Layout, text: str, defaults: Mapping[str, Any] | None = None
) -> list[int]:
    """Gene indices of `text`; an entry whose gene cannot matter may hold anything. Raises `InputError`."""
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise bad_architecture(space, text, f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise bad_architecture(space, text, f"an object with {', '.join(layout)} is expected")
    values = {**(defaults or {}), **values}
    if set(values) != set(layout):
        raise bad_architecture(space, text, f"its keys must be {', '.join(layout)}")
    row = [-1] * len(space.genes)
    for field, genes in layout.items():
        entries = values[field] if isinstance(genes, list) else [values[field]]
        numbers = genes if isinstance(genes, list) else [genes]
        if not isinstance(entries, list) or len(entries) != len(numbers):
            raise bad_architecture(space, text, f"{field} must be a list of {len(numbers)}")
        for number, entry in zip(numbers, entries, strict=True):
            row[number] = _index(space.genes[number].choices, entry)
    for index, gene in enumerate(space.genes):
        if row[index] < 0:
            if gene.active is None or row[gene.active[0]] >= gene.active[1]:
                raise bad_architecture(space, text, f"{gene.name} must be one of {', '.join(map(str, gene.choices))}")
            row[index] = 0
    return row


def _index(choices: tuple[Any, ...], entry: object) -> int:
    if isinstance(entry, bool) or not isinstance(entry, int | str):
        return -1
    return choices.index(entry) if entry in choices else -1


def write_json_row(space: SearchSpace, layout: Layout, row: ArrayLike) -> str:
    """The compact JSON text of one genotype, keys in the order of `layout`."""
    values = [gene.choices[i] for gene, i in zip(space.genes, np.asarray(row), strict=True)]
    fields = {
        field: [values[g] for g in genes] if isinstance(genes, list) else values[genes]
        for field, genes in layout.items()
    }
    return json.dumps(fields, separators=(",", ":"))
