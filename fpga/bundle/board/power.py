"""Samples a board's supply rails from hwmon into a JSON-lines file. Python 3.8, standard library alone.

Lines: a header with the rails, samples {"t": seconds, "mw": [...]} on the monotonic clock, marks of when a model ran,
and {"end": number of samples}, without which a reader must take the file for cut short.
"""

import json
import os
import threading
import time

# Designators of the INA226 monitors on the ZCU102 (UG1182, table "power system devices"); other names stay as they are.
ZCU102 = {
    "u76": "VCCPSINTFP", "u77": "VCCPSINTLP", "u78": "VCCPSAUX", "u87": "VCCPSPLL", "u85": "MGTRAVCC",
    "u86": "MGTRAVTT", "u93": "VCCPSDDR", "u88": "VCCOPS", "u15": "VCCOPS3", "u92": "VCCPSDDRPLL",
    "u79": "VCCINT", "u81": "VCCBRAM", "u80": "VCCAUX", "u84": "VCC1V2", "u16": "VCC3V3",
    "u65": "VADJ_FMC", "u74": "MGTAVCC", "u75": "MGTAVTT",
}  # fmt: skip
MISSES = 50
MONITORS = ("ina226", "ina260", "ina2")


def read(path):
    """The text of a small file, or None where it cannot be read or holds nothing."""
    try:
        with open(path) as handle:
            return handle.read().strip() or None
    except OSError:
        return None


def find_rails(hwmon="/sys/class/hwmon"):
    """Rail name -> folder, for every power monitor; found by name, since the numbers change from boot to boot."""
    rails = {}
    for entry in sorted(os.listdir(hwmon)) if os.path.isdir(hwmon) else []:
        folder = os.path.join(hwmon, entry)
        name = read(os.path.join(folder, "name"))
        if name is None or not name.startswith(MONITORS) or rail_mw(folder) is None:
            continue
        rail = ZCU102.get(name.rpartition("_")[2], name)
        if rail in rails:
            raise RuntimeError("two power monitors are called %s: %s and %s" % (rail, rails[rail], folder))
        rails[rail] = folder
    return rails


def rail_mw(folder):
    """Power of one rail in milliwatts: bus voltage (mV) times current (mA), else the monitor's own (microwatts)."""
    volts, amps = (read(os.path.join(folder, name)) for name in ("in2_input", "curr1_input"))
    if volts is not None and amps is not None:
        return max(int(volts) * int(amps) / 1e3, 0.0)
    power = read(os.path.join(folder, "power1_input"))
    return None if power is None else max(int(power) / 1e3, 0.0)


class Sampler:
    """Writes samples of `rails` to `path` from `start` to `stop`, every `period` seconds, in a thread of its own."""

    def __init__(self, path, rails, period=0.02):
        self.path, self.rails, self.period = path, rails, period
        self.count, self.error = 0, None
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._handle = open(self.path + ".part", "w")
        header = {"format": "hwnas-power", "version": 1, "clock": "monotonic", "rails": list(self.rails)}
        self._write(header)
        self._thread.start()

    def mark(self, what, model, seconds, **more):
        """Say that `model` starts or stops at `seconds` of the monotonic clock."""
        self._write(dict({"mark": what, "model": model, "t": seconds}, **more))

    def stop(self):
        """End the file and put it in its place; raises what went wrong in the thread."""
        self._done.set()
        self._thread.join()
        self._write({"end": self.count})
        self._handle.close()
        if self.error is not None:
            raise self.error
        os.replace(self.path + ".part", self.path)

    def _write(self, entry):
        with self._lock:
            self._handle.write(json.dumps(entry) + "\n")

    def _run(self):
        due, missed = time.monotonic(), 0
        try:
            while not self._done.is_set():
                before = time.monotonic()
                values = [rail_mw(folder) for folder in self.rails.values()]
                missed = missed + 1 if None in values else 0
                if missed > MISSES:
                    raise RuntimeError("a power monitor stopped answering")
                if not missed:
                    self._write({"t": (before + time.monotonic()) / 2, "mw": values})
                    self.count += 1
                due = max(due + self.period, time.monotonic())
                self._done.wait(max(due - time.monotonic(), 0))
        except Exception as error:
            self.error = error
