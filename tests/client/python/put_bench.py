#!/usr/bin/env python3
"""Puts of 2 MiB pages from Python beside the same from C++, a few of each by turns, to one daemon:
put_bench.py KVD PUT_CLIENT SOURCE_ROOT. Exit status 1: Python takes more than a tenth longer."""

import itertools
import pathlib
import re
import statistics
import subprocess
import sys
import time

KVD, PUT_CLIENT, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
sys.path.insert(0, str(ROOT / "client/python"))

import kvd  # noqa: E402
from daemon import Daemon  # noqa: E402

PAGE_BYTES = 2 << 20
TURNS, PUTS = 21, 50  # Of each, of which the first turn does not count.


def from_cxx(process):
    process.stdin.write(f"{PUTS}\n")
    process.stdin.flush()
    return [int(word) for word in process.stdout.readline().split()]


def from_python(client, model, page, numbers):
    took = []
    for number, _ in zip(numbers, range(PUTS)):
        keys = [b"python" + number.to_bytes(26, "little")]
        begin = time.perf_counter_ns()
        put = client.put(model, keys, [page])
        took.append(time.perf_counter_ns() - begin)
        assert put.stored == 1, put
    return took


def main():
    with Daemon(KVD, dram="1GiB") as daemon:
        # One loop for both, as two processes may calibrate to two.
        loop = re.search(r"memory: .*>=1MiB (\S+)", kvd.Client(daemon.endpoint).copy_loops)[1]
        cxx = subprocess.Popen([PUT_CLIENT, daemon.endpoint, loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
        client = kvd.Client(daemon.endpoint, copy_loop=loop)
        model = client.register(kvd.Descriptor("bench/put", hash_algorithm="count",
                                               groups=[kvd.Group(16, PAGE_BYTES)]))
        page, numbers = bytearray(b"*" * PAGE_BYTES), itertools.count(1)
        turns = [(from_cxx(cxx), from_python(client, model, page, numbers)) for _ in range(TURNS)][1:]
        cxx.stdin.close()
        status = cxx.wait()
    medians = [statistics.median(took for turn in turns for took in turn[which]) / 1e3 for which in (0, 1)]
    ratio = medians[1] / medians[0]
    print(f"put of a 2 MiB page, median of {len(turns) * PUTS}: C++ {medians[0]:.0f} us, Python {medians[1]:.0f} us "
          f"({ratio:.3f}x)")
    return 0 if status == 0 and ratio <= 1.10 else 1


if __name__ == "__main__":
    sys.exit(main())
