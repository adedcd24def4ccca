"""What a driver does whatever its store, for stores whose best client is in Python.

It speaks the protocol of `kvd-bench peer-driver` (bench/peers_kvd.cc says what each command means)
over standard input and output, and keeps the same rules: payload is written before the clock starts
and compared after it stopped, and only the call of the store's own client lies between.

Runs in the virtual environment of the store, so it needs nothing but numpy. Standard output belongs
to the protocol: what a library prints there goes to standard error instead.
"""

import json
import os
import sys
import time

import numpy as np

BUFFER_BYTES = 128 << 20  # Far more than a core's own caches; as that of the native driver.
SEED_CHAINS = 8
PATTERN_BYTES = 64


class Payload:
    """Bytes as a function of a block's number: random words, each shifted by the number's own."""

    def __init__(self, largest):
        self._base = np.random.default_rng(20261121).integers(
            0, 2**64, size=largest // 8, dtype=np.uint64)

    def words(self, number, count):
        mix = (number * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64
        return self._base[:count] + np.uint64(mix)

    def fill(self, number, target):
        target.view(np.uint64)[:] = self.words(number, target.size // 8)

    def right(self, number, target):
        return bool(np.array_equal(target.view(np.uint64), self.words(number, target.size // 8)))

    def pattern(self, number, offset):
        words = self.words(number, offset // 8 + PATTERN_BYTES // 8)
        return words[offset // 8:].tobytes()


class Store:
    """What a store's own file implements. A block is a number within its size.

    `buffer` is the memory of sources and targets, a numpy array of bytes that the store allocates
    as its client wants it. `prepare(bytes, numbers, place)` names a call before the clock starts; what
    it returns is given to `put` (how many blocks the store said it took) and `get` (for each block
    whether the store said that its bytes are in the target).
    """

    buffer = None

    def use(self, size):
        """Blocks of `size` bytes come next; the buffer may change."""

    def prepare(self, size, numbers, place):
        raise NotImplementedError

    def put(self, call):
        raise NotImplementedError

    def get(self, call):
        raise NotImplementedError

    def check(self, call):
        """(the store says that the block is there, get() of it says so)"""
        raise NotImplementedError

    def seed(self, count):
        raise NotImplementedError

    def exists(self, chain, count):
        """How many of the first `count` keys of a seeded chain there are."""
        raise NotImplementedError

    def before_exists(self, count, times):
        """So many calls of exists() come next; what they need may be made ready."""

    def after_exists(self):
        """The calls are over."""

    def forget(self, size, first, count):
        """These blocks will be put anew."""
        raise NotImplementedError


class Driver:
    def __init__(self, store, largest):
        self._store = store
        self._payload = Payload(largest)

    def _place(self, index, size):
        return self._store.buffer[index * size:(index + 1) * size]

    def _batches(self, size, batch, first, count, limit, before, call, after):
        self._store.use(size)
        end_of_time = time.monotonic() + limit
        room = self._store.buffer.size // size // batch * batch
        why = ""
        for done in range(0, count, room):
            some = min(room, count - done)
            calls = []
            for at in range(0, some, batch):
                start = first + done + at
                numbers = range(start, start + min(batch, some - at))
                calls.append((numbers, at, self._store.prepare(size, numbers, at)))
            before(first + done, some)
            for numbers, place, prepared in calls:
                if time.monotonic() > end_of_time:
                    break
                try:
                    call(numbers, place, prepared)
                except Exception as error:  # Whatever a client throws is an answer of its store.
                    why = why or f"{type(error).__name__}: {error}"
            after(first + done, some)
            if time.monotonic() > end_of_time:
                break
        return why

    def put(self, size, batch, first, count, limit):
        times, acked = [], [0]

        def fill(start, some):
            for i in range(some):
                self._payload.fill(start + i, self._place(i, size))

        def call(numbers, place, prepared):
            start = time.perf_counter_ns()
            try:
                acked[0] += self._store.put(prepared)
            finally:
                times.append(time.perf_counter_ns() - start)

        why = self._batches(size, batch, first, count, limit, fill, call, lambda *_: None)
        return {"ns": times, "acked": acked[0], "why": why}

    def get(self, size, batch, first, count, limit):
        times, got = [], ["-"] * count

        def poison(_start, some):
            self._store.buffer[:some * size] = 0xA5

        def call(numbers, place, prepared):
            found = [False] * len(numbers)
            start = time.perf_counter_ns()
            try:
                found = self._store.get(prepared)
            finally:
                times.append(time.perf_counter_ns() - start)
                for number, there in zip(numbers, found):
                    got[number - first] = "1" if there else "0"

        def compare(start, some):
            for i in range(some):
                at = start - first + i
                if got[at] == "1" and not self._payload.right(start + i, self._place(i, size)):
                    got[at] = "x"

        why = self._batches(size, batch, first, count, limit, poison, call, compare)
        return {"ns": times, "got": "".join(got), "why": why}

    def check(self, size, first, count, limit):
        got, exists, slowest = ["-"] * count, [0], [0.0]

        def call(numbers, place, prepared):
            number, target = numbers[0], self._place(place, size)
            target[:] = 0xA5
            got[number - first] = "0"
            start = time.perf_counter()
            try:
                there, said = self._store.check(prepared)
            finally:
                slowest[0] = max(slowest[0], time.perf_counter() - start)
            exists[0] += bool(there)
            if said:
                got[number - first] = "1" if self._payload.right(number, target) else "x"

        nothing = lambda *_: None
        why = self._batches(size, 1, first, count, limit, nothing, call, nothing)
        return {"exists": exists[0], "got": "".join(got), "slowest_ms": slowest[0] * 1e3,
                "why": why}

    def seed(self, count):
        self._store.seed(count)
        return {}

    def exists(self, count, times):
        taken, found = [], 0
        self._store.before_exists(count, times)
        for i in range(times):
            start = time.perf_counter_ns()
            there = self._store.exists(i % SEED_CHAINS, count)
            taken.append(time.perf_counter_ns() - start)
            found += there
        self._store.after_exists()
        return {"ns": taken, "found": found}

    def forget(self, size, first, count):
        self._store.forget(size, first, count)
        return {}

    def scrub(self):
        self._store.buffer[:] = 0
        return {}

    def pattern(self, size, number):
        offset = size // 2
        return {"offset": offset, "hex": self._payload.pattern(number, offset).hex()}


def serve(make_store, largest):
    """Answers commands until `quit` or the end of input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries that greet on standard output.

    def answer(value):
        out.write(json.dumps(value) + "\n")
        out.flush()

    try:
        driver = Driver(make_store(), largest)
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    verbs = {name: getattr(driver, name)
             for name in ("put", "get", "check", "seed", "exists", "forget", "scrub", "pattern")}
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ["quit"]:
            break
        try:
            answer(verbs[words[0]](*(int(word) for word in words[1:])))
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
    # A store's library may crash while it is torn down, which says nothing about what was measured.
    out.close()
    os._exit(0)
