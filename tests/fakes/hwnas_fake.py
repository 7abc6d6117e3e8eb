"""A backend with a simulated clock, installed as a package of a third party would be: by an entry point.

What a subject does is in its name: `ok 0.5` takes about 0.5 ms of simulated time; `crash`, `hang`, `eat`, `raise` and
`exit` do so when compiled, with `-run` when run; `later` crashes only while other subjects are loaded too.
"""

import itertools
import os
import time
import zlib

from hwnas.profile.backends import Backend

PATTERN = (0, 3, -2, 1, -1, 2, -3)
REAL_S = float(os.environ.get("HWNAS_FAKE_REAL_S", "0"))


class Fake(Backend):
    distributions = ("hwnas-fake",)
    loaded = 0
    steps = itertools.cycle(PATTERN)

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
            return int(1e6 * model[1] * (1 + 0.001 * next(Fake.steps)))

        return once

    def sentinel(self):
        def once():
            Fake.steps = itertools.cycle(PATTERN)
            return 10_000

        return once


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
