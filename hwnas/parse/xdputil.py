"""`xdputil query` (what the board holds) and `xdputil benchmark` (frames a second of one model)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hwnas.core.errors import ParseError
from hwnas.core.table import Cost
from hwnas.parse.base import Reader, Reading, Record, parsers, read_lines
from hwnas.parse.where import Where

_RESULT = re.compile(r"FPS\s*=\s*(\S+)\s+number_of_frames\s*=\s*(\S+)\s+time\s*=\s*(\S+)\s*seconds")
_THREAD = re.compile(r"thread-\d+ processes (\d{1,18}) frames")
_MODEL = re.compile(r"([\w.\-]+)\.xmodel")


@parsers.register("xdputil-query")
class XdputilQuery(Reader):
    """The JSON of `xdputil query`, with or without the shell's prompts around it."""

    def matches(self, path: Path, head: bytes) -> bool:
        return b'"DPU IP Spec"' in head

    def read(self, path: Path) -> Reading:
        text = "\n".join(read_lines(path))
        try:
            value, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
            cores = [core for core in value["kernels"] if int(core.get("fingerprint", "0"), 16)]
            names = tuple(str(core["DPU Arch"]) for core in cores)
            clocks = [Where(path, 1).number(core["DPU Frequency (MHz)"], "DPU Frequency (MHz)") for core in cores]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ParseError(path, f"not the whole answer of `xdputil query` ({error})") from error
        if not names:
            raise ParseError(path, "lists no DPU core with a fingerprint: the overlay is not loaded")
        stated = {str(core["DPU Arch"]).rpartition("_")[2]: int(core["fingerprint"], 16) for core in cores}
        if any(int(name, 16) != fingerprint for name, fingerprint in stated.items() if _is_hex(name)):
            raise ParseError(path, f"fingerprint {fingerprint_text(stated)} contradicts the DPU's name {names[0]}")
        environment: dict[str, Any] = {"dpu_cores": list(names), "dpu_clock_mhz": clocks}
        runner = re.search(r"Version: (\d+\.\d+)", str(value.get("VAI Version", {}).get("libvart-runner.so", "")))
        if runner:
            environment["runtime_version"] = runner[1]
        return Reading((), path, environment, names)


def _is_hex(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-fA-F]{8,}", text))


def fingerprint_text(stated: dict[str, int]) -> str:
    return ", ".join(f"{value:#x}" for value in stated.values())


@parsers.register("xdputil-benchmark")
class XdputilBenchmark(Reader):
    """`FPS= X number_of_frames= N time= T seconds.`; the three must agree, and so must the threads' shares of N."""

    def matches(self, path: Path, head: bytes) -> bool:
        return b"number_of_frames=" in head or b"xdputil benchmark" in head

    def read(self, path: Path) -> Reading:
        lines = read_lines(path)
        found = [(n, match) for n, line in enumerate(lines, 1) if (match := _RESULT.search(line))]
        if len(found) != 1:
            what = "no result line: the run was cut short" if not found else "several results: one run a file, please"
            raise ParseError(path, what, len(lines))
        where, match = Where(path, found[0][0]), found[0][1]
        fps, frames, seconds = (
            where.number(text.rstrip(".,"), what)
            for text, what in zip(match.groups(), ("FPS", "number_of_frames", "time"), strict=True)
        )
        if not frames or not seconds or abs(frames / seconds / fps - 1 if fps else 1) > 0.01:
            where.refuse(f"{frames:g} frames in {seconds:g} seconds are not the stated {fps:g} FPS")
        shares = [int(m[1]) for line in lines if (m := _THREAD.search(line))]
        if shares and sum(shares) != frames:
            where.refuse(f"the threads processed {sum(shares)} frames, {frames:g} are stated")
        model = next((m[1] for line in lines if (m := _MODEL.search(line))), path.stem)
        record = Record(
            subject=model,
            source=path,
            costs={"throughput_ips": Cost(fps, n=int(frames))},
            runtime="vart",
            precision="int8",
            threads=len(shares) or None,
            details={"frames": int(frames), "seconds": seconds},
        )
        return Reading((record,), path)
