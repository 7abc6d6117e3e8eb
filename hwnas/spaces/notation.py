"""The JSON notation that several communities share: an object of lists, one entry a gene."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hwnas.core.files import distinct
from hwnas.spaces.base import SearchSpace, bad_architecture

Layout = Mapping[str, list[int] | int]
"""JSON field -> the genes it holds: a list of gene numbers, or one number where the field is a scalar."""


class JsonSpace(SearchSpace):
    """A space whose architectures are written as JSON; the entry of a gene that cannot matter may hold anything."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The fields of an architecture's text, in order."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Values of the fields that may be left out."""
        return {}

    def parse_row(self, text: str) -> Sequence[int]:
        """Gene indices of `text`; raises `InputError`."""
        row = [-1] * len(self.genes)
        for field, entry in self._fields(text).items():
            genes = self.layout[field]
            numbers, entries = (genes, entry) if isinstance(genes, list) else ([genes], [entry])
            if not isinstance(entries, list) or len(entries) != len(numbers):
                raise bad_architecture(self, text, f"{field} must be a list of {len(numbers)}")
            for number, value in zip(numbers, entries, strict=True):
                row[number] = _index(self.genes[number].choices, value)
        for index, gene in enumerate(self.genes):
            if row[index] < 0:
                if gene.active is None or row[gene.active[0]] >= gene.active[1]:
                    choices = ", ".join(map(str, gene.choices))
                    raise bad_architecture(self, text, f"{gene.name} must be one of {choices}")
                row[index] = 0
        return row

    def _fields(self, text: str) -> dict[str, Any]:
        try:
            values = json.loads(text, object_pairs_hook=distinct)
        except (ValueError, RecursionError) as error:
            raise bad_architecture(self, text, f"not JSON ({error})") from error
        if not isinstance(values, dict):
            raise bad_architecture(self, text, f"an object with {', '.join(self.layout)} is expected")
        values = {**self.defaults, **values}
        if set(values) != set(self.layout):
            raise bad_architecture(self, text, f"its keys must be {', '.join(self.layout)}")
        return values

    def format(self, row: ArrayLike) -> str:
        """The compact JSON text of one genotype, keys in the order of `layout`."""
        values = [gene.choices[i] for gene, i in zip(self.genes, np.asarray(row), strict=True)]
        fields = {
            field: [values[g] for g in genes] if isinstance(genes, list) else values[genes]
            for field, genes in self.layout.items()
        }
        return json.dumps(fields, separators=(",", ":"))


def _index(choices: tuple[Any, ...], entry: object) -> int:
    if isinstance(entry, bool) or not isinstance(entry, int | str):
        return -1
    return choices.index(entry) if entry in choices else -1
