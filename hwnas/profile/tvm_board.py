"""Boards at a TVM RPC tracker: what they are, and what a worker does on one.

    python -m hwnas.profile.tvm_board HOST:PORT KEY DEVICE      # one line of JSON: device, boards; or error

TVM's RPC moves bytes and calls functions; it has none that tells the board's model. Compiled code is sent there in any
case, so a function that reads the files in which Linux keeps the model is sent first.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from typing import Any

import tvm
from tvm import rpc
from tvm.script import tirx as T
from tvm.target import Target

from hwnas.core.files import scratch
from hwnas.profile.backends import Settings
from hwnas.profile.processor import CPU_INFO, processor_name
from hwnas.profile.timer import Stopwatch

WAIT_S = 20.0
RETRY_S = 0.5
REPLY_S = 10.0
DEVICE_TREE = "/proc/device-tree/model"
BYTES = 4096
SIDE = 64
NS_PER_S = 1e9


class BoardError(Exception):
    """A tracker or a board that does not answer, in one line."""


class Tracker:
    """A connection to the tracker at `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connect()

    def _connect(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not (host and port.isascii() and port.isdigit()):
            raise BoardError(f"--remote {self.address}: write HOST:PORT of an RPC tracker, such as localhost:9190")
        try:
            socket.create_connection((host, int(port)), timeout=REPLY_S).close()
            self.connection = rpc.connect_tracker(host, int(port))
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            raise BoardError(
                f"no RPC tracker answers at {self.address} ({error}); start one with `python -m tvm.exec.rpc_tracker`"
            ) from error
        self.connection._sock.settimeout(REPLY_S)

    def count(self, key: str) -> int:
        """How many boards have registered under `key`; raises `BoardError` where none has."""
        servers = [each["key"] for each in self.connection.summary()["server_info"]]
        if found := servers.count(f"server:{key}"):
            return found
        known = sorted({name.partition(":")[2] for name in servers})
        raise BoardError(
            f"no board is registered as {key!r} at the tracker {self.address}; it has {', '.join(known) or 'none'}"
        )

    def request(self, key: str) -> Any:
        """A session on a board that is free now, or in a while; one that was just in use has to register again."""
        deadline = time.monotonic() + WAIT_S
        while True:
            if self.connection.summary()["queue_info"].get(key, {}).get("free", 0):
                try:
                    return self.connection.request(key, max_retry=1)
                except (RuntimeError, OSError) as error:
                    reason = f"the board does not answer: {str(error).splitlines()[0][:200]}"
                    self._connect()
            else:
                reason = "all are in use, or do not answer"
            if time.monotonic() > deadline:
                self.count(key)
                raise BoardError(f"no board {key!r} is free at the tracker {self.address}: {reason}")
            time.sleep(RETRY_S)


class Board:
    """A session on one board, which ends with this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.session = Tracker(settings.remote).request(settings.key)
        self.triple, cpu = self._compiler_names()
        self.host = {"kind": "llvm", "mtriple": self.triple, "mcpu": cpu, "num-cores": settings.threads}
        self.target = Target(self.host)
        if settings.device == "gpu":
            arch = f"sm_{self.session.cuda().compute_version.replace('.', '')}"
            self.target = Target({"kind": "cuda", "arch": arch}, host=self.host)
        else:
            self.session.get_function("runtime.config_threadpool")(1, settings.threads)
        self.numbered = 0

    def _compiler_names(self) -> tuple[str, str]:
        """The board's LLVM triple and processor, which it tells where its TVM has a compiler."""
        try:
            return tuple(self.session.get_function(f"target.llvm_get_system_{name}")() for name in ("triple", "cpu"))
        except Exception as error:
            raise BoardError(
                "the board's TVM has no compiler to tell what its processor is; start its server from a "
                "full installation of TVM"
            ) from error

    def load(self, executable: Any) -> Any:
        """Send what was compiled, linked here where this machine's linker can, and load it there."""
        alike = self.triple.partition("-")[0] == tvm.target.codegen.llvm_get_system_triple().partition("-")[0]
        self.numbered += 1
        with scratch() as folder:
            path = folder / f"{self.numbered}.{'so' if alike else 'tar'}"
            executable.export_library(str(path))
            self.session.upload(str(path))
            return self.session.load_module(path.name)

    def name(self) -> str:
        """What the board says it is; its key where it does not."""
        if self.settings.device == "gpu":
            return str(self.session.cuda().device_name)
        board = " ".join(self.read(DEVICE_TREE).split("\0")[0].split())
        return board or processor_name(self.read(CPU_INFO)) or self.settings.key

    def read(self, path: str) -> str:
        """The first bytes of a file there; empty where there is none."""
        device = self.session.cpu()
        data = tvm.runtime.empty((BYTES,), "uint8", device)
        data.copyfrom(bytearray(BYTES))
        self.load(tvm.compile(_reader(path), target=Target(self.host)))["read"](data)
        return bytes(data.numpy()).rstrip(b"\0").decode(errors="replace")

    def sentinel(self) -> Stopwatch:
        """A product of two small matrices there."""
        device = self.session.cpu()
        product = self.load(tvm.compile(_product(), target=Target(self.host)))
        matrices = [tvm.runtime.empty((SIDE, SIDE), "float32", device) for _ in range(3)]
        evaluator = product.time_evaluator("product", device, number=1)
        return lambda: int(evaluator(*matrices).mean * NS_PER_S)

    def measure(self, path: str, shapes: list[Any]) -> list[float]:
        """Seconds of a candidate's runs there (see `tvm_tuning.Measure`)."""
        from hwnas.profile import tvm_tuning

        kernel = self.load(tvm_tuning.build(path, self.target))
        device = self.session.cuda() if self.settings.device == "gpu" else self.session.cpu()
        return tvm_tuning.timed(kernel, device, shapes, self.session.get_function)

    def lost(self) -> bool:
        """Whether the board no longer answers."""
        try:
            self.session.get_function("runtime.NumThreads")()
        except Exception:
            return True
        return False


def _reader(path: str) -> Any:
    """A function that fills its argument from a file, with the C library's own calls."""

    @T.prim_func  # type: ignore[untyped-decorator, unused-ignore]
    def read(out: T.Buffer((BYTES,), "uint8")) -> None:  # type: ignore[valid-type]
        T.func_attr({"global_symbol": "read"})
        file = T.call_extern("int32", "open", path, 0)
        T.evaluate(T.call_extern("int64", "read", file, out.data, T.int64(BYTES)))
        T.evaluate(T.call_extern("int32", "close", file))

    return tvm.IRModule({"read": read})


def _product() -> Any:
    """A product of matrices whose inner loop is vectorised."""
    from tvm import te
    from tvm.s_tir import Schedule

    left, right = te.placeholder((SIDE, SIDE), "float32"), te.placeholder((SIDE, SIDE), "float32")
    k = te.reduce_axis((0, SIDE))
    out = te.compute((SIDE, SIDE), lambda i, j: te.sum(left[i, k] * right[k, j], axis=k), name="out")
    function = te.create_prim_func([left, right, out]).with_attr("global_symbol", "product")
    schedule = Schedule(tvm.IRModule({"product": function}))
    block = schedule.get_sblock("out", "product")
    row, column, inner = schedule.get_loops(block)
    schedule.reorder(row, inner, column)
    schedule.vectorize(column)
    schedule.decompose_reduction(block, inner)
    return schedule.mod


def main(address: str, key: str, device: str) -> None:
    """Say what the boards are."""
    try:
        boards = Tracker(address).count(key)
        answer = {"device": Board(Settings(device=device, remote=address, key=key)).name(), "boards": boards}
    except BoardError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
