"""What stands in the folders that hwnas writes: their files, and the JSON documents that say what each of them is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas import __version__
from hwnas.core.errors import InputError
from hwnas.core.files import read_json, write_json

TABLE_FILE = "table.csv"
"""A run's cost table, its manifest beside it."""
NETWORKS_FILE = "networks.parquet"
"""The whole networks that a run measured."""
SAMPLES_FILE = "samples.sqlite"
"""The sample store."""


def records_file(table: Path) -> Path:
    """The file beside a cost table made of logs that holds every record of them, networks too."""
    return table.with_name(f"{table.stem}.records.csv")


@dataclass(frozen=True)
class Document:
    """A kind of JSON document: how its files say what they are, and are told from others.

    Attributes:
        kind: what a file says of itself.
        what: the same in words, for messages.
        file: its usual name in a folder; empty where the user names it.
        schema: the version of its fields.
        mend: what to do where one is damaged.
    """

    kind: str
    what: str
    file: str = ""
    schema: int = 1
    mend: str = "make it again"

    def write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write `content` under the document's kind and schema; the file is whole or not there."""
        write_json(path, {**self.head(), **content, **self.head()})

    def head(self) -> dict[str, Any]:
        """What every document of this kind begins with."""
        return {"kind": self.kind, "schema": self.schema}

    def read(self, path: Path) -> dict[str, Any]:
        """The document at `path`; raises `InputError` where it is missing, broken, another kind, or another schema."""
        try:
            found = read_json(path, self.what)
        except InputError as error:
            raise (InputError(f"{error}; {self.mend}") if path.is_file() else error) from error
        kind, schema = found.get("kind"), found.get("schema")
        if (kind, schema) != (self.kind, self.schema):
            raise InputError(f"{path}: not a {self.what} of schema {self.schema} (kind {kind!r}, schema {schema!r})")
        return found


TRAIN_AGAIN = "delete the folder to train anew, or choose another --out"
RUN = Document("profile_run", "profiling run", "run.json", mend="delete it, repeat the command; the samples are kept")
SIMULATED_RUN = Document("simulated_run", "simulated run", RUN.file)
COST_TABLE = Document("cost_table", "cost table manifest")
PREDICTOR = Document("predictor", "saved predictor", "model.json", mend="fit it again")
SEARCH = Document("search", "search", "search.json", mend="search again")
CERTIFICATES = Document("certificates", "list of certificates", "certificates.json", mend="verify again")
SUPERNET = Document("supernet", "super-network", "supernet.json", mend=TRAIN_AGAIN)
SUBNETS = Document("sub_network_accuracies", "list of sub-network accuracies", "accuracies.json")
JOURNAL = Document("search_journal", "journal of a search", "journal.json")
NETWORK = Document("network", "trained network", "network.json", mend=TRAIN_AGAIN)
DPU_MODEL = Document("dpu_model", "DPU model")
BUNDLE = Document("hwnas_bundle", "bundle's manifest", "hwnas_bundle.json")


def now() -> str:
    """The date and time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def stamp() -> dict[str, Any]:
    """By which version of hwnas something was made, and when."""
    return {"hwnas": __version__, "date": now()}
