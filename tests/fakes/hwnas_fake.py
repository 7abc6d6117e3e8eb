"""A backend with a simulated clock, installed as a package of a third party would be: by an entry point.

What a subject does is in its name: `ok 0.5` takes about 0.5 ms of simulated time; `crash`, `hang`, `eat`, `raise` and
`exit` do so when compiled, with `-run` when run; `later` crashes only while other subjects are loaded too. The clock is
held down in every second sample block of `throttle`, which then takes three times as long, and in each of `hot`.
"""

import itertools
import os
import time
import zlib

from hwnas.profile.backends import Backend
from hwnas.profile.meters import Meter

PATTERN = (0, 3, -2, 1, -1, 2, -3)
STEP_S = 0.02
REAL_S = float(os.environ.get("HWNAS_FAKE_REAL_S", "0"))


class Fake(Backend):
    distributions = ("hwnas-fake",)
    loaded = 0
    steps = itertools.cycle(PATTERN)
    running, blocks = "", 0

    def __init__(self, settings):
        super().__init__(settings)
        if os.environ.get("HWNAS_FAKE_BROKEN"):
            raise ImportError("libfake.so: cannot open shared object file")

    def compile(self, subject):
        Fake.loaded += 1
        word, _, rest = subject.name.partition(" ")
        act(word)
        return word, float(rest) if word == "ok" and rest else 0.2 + zlib.crc32(subject.name.encode()) % 100 / 100

    def run(self, model):
        act(model[0].removesuffix("-run"))
        if model[0] == "later" and Fake.loaded > 1:
            os.abort()
        return []

    def close(self, model):
        Fake.loaded -= 1

    def stopwatch(self, model):
        def once():
            self.run(model)
            time.sleep(REAL_S)
            Fake.running = model[0]
            slower = 3 if model[0] == "throttle" and Fake.blocks % 2 else 1
            return int(1e6 * model[1] * slower * (1 + 0.001 * next(Fake.steps)))

        return once

    def conditions(self):
        word, Fake.running = Fake.running, ""
        Fake.blocks += word == "throttle"
        held = word == "hot" or (word == "throttle" and Fake.blocks % 2 == 0)
        return {"clock_mhz": 600, "throttled": "power cap"} if held else {"clock_mhz": 1200} if word else {}

    def sentinel(self):
        def once():
            Fake.steps = itertools.cycle(PATTERN)
            return 10_000

        return once


class FakeMeter(Meter):
    """Counts a constant power, in steps."""

    @classmethod
    def unavailable(cls, settings):
        return None if "HWNAS_FAKE_WATTS" in os.environ else "it is switched off"

    def joules(self):
        return float(os.environ["HWNAS_FAKE_WATTS"]) * STEP_S * (time.perf_counter() // STEP_S)


def act(word):
    if word == "crash":
        os.abort()
    if word == "exit":
        os._exit(3)
    if word == "hang":
        time.sleep(3600)
    if word == "raise":
        raise ValueError("cannot be compiled:\nno such operator")
    if word == "eat":
        hoard = []
        while True:
            hoard.append(bytearray(1 << 26))
