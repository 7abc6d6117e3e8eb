"""The sample store: every raw time ever taken, in SQLite, append-only, one transaction a sample block.

Several processes may use one store at once: SQLite's write-ahead log serialises the blocks, and a claim on each subject
keeps two processes from measuring the same one. A claim ends with its lease, or with the process that holds it.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from hwnas.core.errors import StoreError
from hwnas.core.target import Target
from hwnas.profile.block import Block

SCHEMA_VERSION = 2
APPLICATION_ID = 0x68774E53
BUSY_S = 60.0
RETRY_S = 0.02
LEASE_S, RENEW_S = 120.0, 10.0

_SCHEMA = """
CREATE TABLE target (id INTEGER PRIMARY KEY, json TEXT NOT NULL UNIQUE);
CREATE TABLE environment (id INTEGER PRIMARY KEY, json TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE item (
    id INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,
    target INTEGER NOT NULL REFERENCES target,
    series INTEGER NOT NULL,
    UNIQUE (target, series, subject)
);
CREATE TABLE block (
    id INTEGER PRIMARY KEY,
    item INTEGER NOT NULL REFERENCES item,
    environment INTEGER NOT NULL REFERENCES environment,
    session INTEGER NOT NULL,
    round INTEGER NOT NULL,
    started REAL NOT NULL,
    times_ns BLOB NOT NULL,
    sentinel_ns BLOB NOT NULL,
    conditions TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX block_of_item ON block (item);
CREATE TABLE reading (
    id INTEGER PRIMARY KEY,
    item INTEGER NOT NULL REFERENCES item,
    environment INTEGER NOT NULL REFERENCES environment,
    metric TEXT NOT NULL,
    value REAL NOT NULL,
    started REAL NOT NULL,
    details TEXT NOT NULL
);
CREATE INDEX reading_of_item ON reading (item);
CREATE TABLE compilation (
    id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item, seconds REAL NOT NULL, started REAL NOT NULL
);
CREATE TABLE failure (
    id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item, reason TEXT NOT NULL, at REAL NOT NULL
);
CREATE TABLE claim (
    item INTEGER PRIMARY KEY REFERENCES item,
    holder TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, born REAL NOT NULL, expires REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Reading:
    """A value of a metric other than latency, for one inference and in the metric's unit.

    Attributes:
        started: Unix time at which the window of runs began, the name of that window among those of one subject.
        details: what the value was worked out from.
    """

    metric: str
    value: float
    started: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A sample block as it is stored: raw times and the sentinel's in nanoseconds, and the device's conditions."""

    session: int
    round: int
    started: float
    times_ns: Sequence[int]
    sentinel_ns: Sequence[int]
    conditions: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """An open sample store; a context manager. Every failure of the file or disk is a `StoreError` of one line."""

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path = Path(path)
        self.holder = uuid.uuid4().hex
        self._renewed = 0.0
        with self._errors():
            self._db = self._connect(read_only)
        try:
            with self._errors():
                self._prepare(read_only)
        except BaseException:
            self._db.close()
            raise

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        if not read_only:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        elif not self.path.is_file():
            raise StoreError(f"no sample store at {self.path}")
        elif not os.access(self.path.parent, os.W_OK):
            return sqlite3.connect(f"{self.path.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None)
        return sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)

    def _prepare(self, read_only: bool) -> None:
        if read_only:
            self._db.execute("PRAGMA query_only = ON")
        if not read_only:
            self._use_wal()
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            with self._transaction():
                if not self._pragma("user_version") and not self._all("SELECT 1 FROM sqlite_master"):
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                elif self._pragma("application_id") == APPLICATION_ID and self._pragma("user_version") == 1:
                    self._upgrade()
        if self._pragma("application_id") != APPLICATION_ID:
            raise StoreError(f"{self.path} is a database of something else, not a sample store; choose another path")
        self._version = self._pragma("user_version")
        if self._version not in (1, SCHEMA_VERSION):
            raise StoreError(
                f"{self.path} is a sample store of version {self._version}; this hwnas reads versions up "
                f"to {SCHEMA_VERSION}; measure into a new file, or use the hwnas that made it"
            )
        self._conditions = "conditions" if self._version == SCHEMA_VERSION else "'{}'"

    def _upgrade(self) -> None:
        """Version 1 had neither conditions nor readings."""
        self._db.execute("ALTER TABLE block ADD COLUMN conditions TEXT NOT NULL DEFAULT '{}'")
        for statement in _SCHEMA.split(";"):
            if " reading" in statement:
                self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _use_wal(self) -> None:
        """Switch to the write-ahead log; SQLite does not wait for another process that does the same to a new file."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    # writing

    def target(self, target: Target) -> int:
        """The number of `target` in this store."""
        text = json.dumps(target.to_json(), sort_keys=True)
        known = [
            n
            for n, kept in self._read("SELECT id, json FROM target ORDER BY id")
            if Target.from_json(json.loads(kept), str(self.path)) == target
        ]
        if known:
            return int(known[0])
        with self._errors(), self._transaction():
            self._db.execute("INSERT OR IGNORE INTO target (json) VALUES (?)", (text,))
            return int(self._all("SELECT id FROM target WHERE json = ?", text)[0][0])

    def environment(self, environment: dict[str, Any]) -> int:
        """Record the circumstances of a worker's session; returns their number."""
        with self._errors(), self._transaction():
            cursor = self._db.execute(
                "INSERT INTO environment (json, created) VALUES (?, ?)",
                (json.dumps(environment, sort_keys=True), time.time()),
            )
            return int(cursor.lastrowid or 0)

    def ask(self, target: int, series: int, subjects: Iterable[str]) -> dict[str, int]:
        """The numbers of subjects on a target in one series of measurements, made where they are new."""
        wanted = list(dict.fromkeys(subjects))
        with self._errors(), self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO item (subject, target, series) VALUES (?, ?, ?)",
                [(subject, target, series) for subject in wanted],
            )
        known = self.items(target, series)
        return {subject: known[subject] for subject in wanted}

    def next_series(self, target: Target, subjects: Iterable[str]) -> int:
        """A series in which none of `subjects` has been measured on `target` yet."""
        number = self.target(target)
        taken = dict(self._read("SELECT subject, MAX(series) FROM item WHERE target = ? GROUP BY subject", number))
        return 1 + max((taken.get(subject, -1) for subject in subjects), default=-1)

    def add(self, item: int, environment: int, sample: Sample) -> None:
        """Append one sample block."""
        times, sentinel = (np.asarray(t, dtype="<i8").tobytes() for t in (sample.times_ns, sample.sentinel_ns))
        with self._errors(), self._transaction():
            self._db.execute(
                "INSERT INTO block (item, environment, session, round, started, times_ns, sentinel_ns, conditions) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    item,
                    environment,
                    sample.session,
                    sample.round,
                    sample.started,
                    times,
                    sentinel,
                    json.dumps(dict(sample.conditions)),
                ),
            )

    def read(self, item: int, environment: int, readings: Iterable[Reading]) -> None:
        """Append readings of other metrics than latency, all or none."""
        with self._errors(), self._transaction():
            self._db.executemany(
                "INSERT INTO reading (item, environment, metric, value, started, details) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        item,
                        environment,
                        reading.metric,
                        reading.value,
                        reading.started,
                        json.dumps(dict(reading.details)),
                    )
                    for reading in readings
                ],
            )

    def compiled(self, item: int, seconds: float) -> None:
        with self._errors(), self._transaction():
            self._db.execute(
                "INSERT INTO compilation (item, seconds, started) VALUES (?, ?, ?)", (item, seconds, time.time())
            )

    def fail(self, item: int, reason: str) -> None:
        """Mark an item as failed, until it is forgiven."""
        with self._errors(), self._transaction():
            self._db.execute("INSERT INTO failure (item, reason, at) VALUES (?, ?, ?)", (item, reason, time.time()))

    def forgive(self, target: Target, subjects: Iterable[str]) -> None:
        """Forget that subjects failed on a target, so that they are measured again."""
        number = self.target(target)
        with self._errors(), self._transaction():
            self._db.executemany(
                "DELETE FROM failure WHERE item IN (SELECT id FROM item WHERE target = ? AND subject = ?)",
                [(number, subject) for subject in subjects],
            )

    # claims

    def claim(self, items: Sequence[int], most: int) -> list[int]:
        """Take up to `most` of `items` that no living process holds, for `LEASE_S`; returns those taken."""
        host, born, now = socket.gethostname(), psutil.Process().create_time(), time.time()
        with self._errors(), self._transaction():
            claims = self._all("SELECT item, host, pid, born FROM claim WHERE expires >= ?", now)
            held = {item for item, where, pid, since in claims if where != host or _lives(pid, since)}
            free = [item for item in items if item not in held][:most]
            self._db.executemany(
                "INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?)",
                [(item, self.holder, host, os.getpid(), born, now + LEASE_S) for item in free],
            )
        return free

    def renew(self) -> None:
        """Extend the lease of every claim of this process, unless that was done a moment ago."""
        now = time.time()
        if now - self._renewed < RENEW_S:
            return
        self._renewed = now
        with self._errors(), self._transaction():
            self._db.execute("UPDATE claim SET expires = ? WHERE holder = ?", (now + LEASE_S, self.holder))

    def release(self) -> None:
        """Give up every claim of this process."""
        with self._errors(), self._transaction():
            self._db.execute("DELETE FROM claim WHERE holder = ?", (self.holder,))

    # reading

    def items(self, target: int, series: int) -> dict[str, int]:
        """The numbers of all subjects known on a target in one series."""
        return dict(self._read("SELECT subject, id FROM item WHERE target = ? AND series = ?", target, series))

    def subjects(self, target: int) -> dict[int, str]:
        """What was asked for on a target, in whatever series: the subject of each item."""
        return dict(self._read("SELECT id, subject FROM item WHERE target = ?", target))

    def samples(self, item: int) -> list[Sample]:
        """The blocks of an item, oldest first."""
        rows = self._read(
            f"SELECT session, round, started, times_ns, sentinel_ns, {self._conditions} FROM block "
            "WHERE item = ? ORDER BY id",
            item,
        )
        with self._errors():
            return [
                Sample(session, number, started, _times(times).tolist(), _times(sentinel).tolist(), json.loads(kept))
                for session, number, started, times, sentinel, kept in rows
            ]

    def blocks(self, target: int, after: int = 0) -> Iterator[tuple[int, int, Block]]:
        """(number, item, block) of a target's blocks numbered above `after`, oldest first."""
        rows = self._read(
            f"SELECT block.id, item, session, times_ns, sentinel_ns, {self._conditions} FROM block "
            "JOIN item ON item.id = block.item WHERE target = ? AND block.id > ? ORDER BY block.id",
            target,
            after,
        )
        for number, item, session, times, sentinel, conditions in rows:
            with self._errors():
                throttled = json.loads(conditions).get("throttled", "")
                block = Block.of(session, _times(times), _times(sentinel), throttled)
            yield number, item, block

    def readings(self, target: int, after: int = 0) -> list[tuple[int, int, int, Reading]]:
        """(number, item, environment, reading) of a target's readings numbered above `after`, oldest first."""
        if self._version < SCHEMA_VERSION:
            return []
        rows = self._read(
            "SELECT reading.id, item, environment, metric, value, started, details FROM reading "
            "JOIN item ON item.id = reading.item WHERE target = ? AND reading.id > ? ORDER BY reading.id",
            target,
            after,
        )
        with self._errors():
            return [
                (number, item, environment, Reading(metric, value, started, json.loads(details)))
                for number, item, environment, metric, value, started, details in rows
            ]

    def failures(self, target: int) -> dict[int, str]:
        """Failed items of a target, with the reason."""
        return dict(
            self._read(
                "SELECT item, reason FROM failure JOIN item ON item.id = failure.item WHERE target = ? "
                "ORDER BY failure.id",
                target,
            )
        )

    def compile_seconds(self, target: int) -> dict[int, float]:
        """Seconds that one compilation of each item took, the mean where there were several."""
        return dict(
            self._read(
                "SELECT item, AVG(seconds) FROM compilation JOIN item ON item.id = compilation.item "
                "WHERE target = ? GROUP BY item",
                target,
            )
        )

    def environments(self, target: int) -> list[dict[str, Any]]:
        """The circumstances of the sessions in which a target was measured, oldest first."""
        rows = self._read(
            "SELECT json FROM environment WHERE id IN (SELECT environment FROM block "
            "JOIN item ON item.id = block.item WHERE target = ?) ORDER BY id",
            target,
        )
        with self._errors():
            return [json.loads(text) for (text,) in rows]

    # the rest

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._all(query, *values)

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._db.execute(query, values).fetchall()

    def _pragma(self, name: str) -> int:
        return int(self._all(f"PRAGMA {name}")[0][0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite and the disk say into one line."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"sample store {self.path}: {_advice(str(error))}") from error
        except (ValueError, TypeError) as error:
            raise StoreError(f"sample store {self.path}: {_advice(f'malformed: {error}')}") from error


def _times(blob: bytes) -> NDArray[np.int64]:
    return np.frombuffer(blob, dtype="<i8")


def _advice(message: str) -> str:
    text = message.lower()
    if "not a database" in text or "malformed" in text:
        return f"the file is damaged ({message}); move it away, a new one is made by the same command"
    if "full" in text or "no space" in text:
        return "the disk is full; free some space and run the same command to go on"
    if "readonly" in text or "read-only" in text or "unable to open" in text or "permission" in text:
        return f"cannot be opened for writing ({message}); choose a folder that can be written"
    if "locked" in text:
        return f"another process has held it for {BUSY_S:g} s; wait for it, or use a store of its own"
    return message


def _lives(pid: int, born: float) -> bool:
    """Whether the process that made a claim on this host still runs."""
    try:
        return abs(psutil.Process(pid).create_time() - born) < 1.0
    except psutil.Error:
        return False
