"""How log readers take damage: logs of every format, mutated at random, must give a table or a `ParseError`.

    python benchmarks/parser_robustness.py [--n 10000] [--format NAME ...] [--seed 0]

A mutation cuts a file short, drops, doubles or swaps lines, flips bytes, encodes it otherwise, swaps columns or changes
a unit or a number's magnitude; one to three of them at once, in one file of the log. Printed a format: how many were
refused, how many read with the same costs, how many with fewer records (a file so damaged that no reader knows it,
which the report lists as not read), how many with other costs (damage that nothing in the log contradicts), and every
other exception, of which there must be none (exit code 1).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hwnas.core.errors import ParseError
from hwnas.parse import ColumnMapping, parse

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
FORMATS = {
    "onnxruntime": GOLDEN / "runtimes" / "onnxruntime",
    "tvm": GOLDEN / "runtimes" / "tvm",
    "trtexec": GOLDEN / "runtimes" / "trtexec",
    "tflite": GOLDEN / "runtimes" / "tflite",
    "openvino": GOLDEN / "runtimes" / "openvino",
    "ofa-lookup": GOLDEN / "runtimes" / "ofa",
    "hwnas-device": GOLDEN / "runtimes" / "device",
    "csv": GOLDEN / "runtimes" / "csv",
    "vaitrace": GOLDEN / "logs" / "vaitrace",
    "vaitrace-text": GOLDEN / "logs" / "vaitrace.txt",
    "xdputil-benchmark": GOLDEN / "logs" / "benchmark.log",
    "multi-dpu-power": GOLDEN / "logs" / "power",
    "hwnas-power": GOLDEN / "logs" / "power.jsonl",
    "kria-platformstats": GOLDEN / "logs" / "kria.log",
}
MAPPING = ColumnMapping(subject="block", metrics={"latency_ms": "time"}, device="board")
UNITS = [
    (b" ms", b" us"),
    (b" ms", b" s"),
    (b" s", b" ms"),
    (b"Ms", b"Us"),
    (b"(us)", b"(ms)"),
    (b" us", b" ms"),
    (b"%", b""),
]
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "cp037", "utf-8-sig", "latin-1")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to three mutations."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(MUTATIONS)(data, rng)
    return data


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _lines(data: bytes, rng: random.Random) -> bytes:
    """Drop, double or swap some neighbouring lines."""
    lines = data.split(b"\n")
    first = rng.randrange(len(lines))
    last = min(len(lines), first + rng.choice((1, 1, 2, 5)))
    taken = rng.choice(([], lines[first:last] * 2, lines[first:last][::-1]))
    return b"\n".join([*lines[:first], *taken, *lines[last:]])


def _flip(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if flipped else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _encode(data: bytes, rng: random.Random) -> bytes:
    return data.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")


def _columns(data: bytes, rng: random.Random) -> bytes:
    """Swap two cells, of one line or of every line."""
    separator = rng.choice((b",", b";", b"\t", b" ", b"|"))
    lines = [line.split(separator) for line in data.split(b"\n")]
    widest = max(map(len, lines))
    i, j, only = rng.randrange(widest), rng.randrange(widest), rng.choice((None, rng.randrange(len(lines))))
    for n, cells in enumerate(lines):
        if only in (None, n) and max(i, j) < len(cells):
            cells[i], cells[j] = cells[j], cells[i]
    return b"\n".join(separator.join(cells) for cells in lines)


def _unit(data: bytes, rng: random.Random) -> bytes:
    before, after = rng.choice(UNITS)
    return data.replace(before, after, rng.choice((1, -1)))


def _number(data: bytes, rng: random.Random) -> bytes:
    """Give one number another magnitude, sign or form."""
    found = list(re.finditer(rb"\d+(?:\.\d+)?", data))
    if not found:
        return data
    match = rng.choice(found)
    other = rng.choice((b"-1", b"nan", b"inf", b"1e400", b"", b"0", b"9" * 5000, match[0] + b"000", b"0.00" + match[0]))
    return data[: match.start()] + other + data[match.end() :]


MUTATIONS = (_cut, _lines, _flip, _encode, _columns, _unit, _number)


def costs(report: Any) -> dict[str, Any]:
    return {e.record.subject: {m: round(c.value, 12) for m, c in e.record.costs.items()} for e in report.entries}


def _compare(found: dict[str, Any], whole: dict[str, Any]) -> str:
    if found == whole:
        return "same"
    return "fewer" if all(whole.get(subject) == cost for subject, cost in found.items()) else "other"


def run(name: str, n: int, seed: int = 0) -> dict[str, Any]:
    """Outcomes of `n` mutated logs of a format: counts of refused, same, other, and the other exceptions' texts."""
    rng = random.Random(f"{name} {seed}")
    source = FORMATS[name]
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    began = time.monotonic()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        log = Path(folder) / source.name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, log)
        files = sorted(p for p in (log.rglob("*") if log.is_dir() else [log]) if p.is_file())
        mapping = MAPPING if name == "csv" else None
        whole = costs(parse([log], mapping=mapping))
        for _ in range(n):
            victim = rng.choice(files)
            original = victim.read_bytes()
            mutated = mutate(original, rng)
            victim.write_bytes(mutated)
            try:
                outcomes[_compare(costs(parse([log], mapping=mapping)), whole)] += 1
            except ParseError:
                outcomes["refused"] += 1
            except Exception as error:  # what this program is here to find
                outcomes["failed"] += 1
                failures.append(f"{victim.name}: {type(error).__name__}: {error}")
            victim.write_bytes(original)
    counts = {key: outcomes[key] for key in ("refused", "same", "fewer", "other", "failed")}
    return {"format": name, "n": n, **counts, "seconds": time.monotonic() - began, "failures": sorted(set(failures))}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--format", nargs="*", choices=sorted(FORMATS), default=sorted(FORMATS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    for name in options.format:
        result = run(name, options.n, options.seed)
        failed += result["failed"]
        print(json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
