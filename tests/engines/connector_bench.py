#!/usr/bin/env python3
"""What the vLLM connector takes of an engine's own time: connector_bench.py KVD ROOT lookup|import, with vLLM's
environment.

  lookup  the scheduler thread's time for a lookup of 512 blocks: the call that starts it, one that asks for the answer
          too early, and the one that gets it
  import  of kvd.vllm, from a package with its byte code as pip installs it, in a process that has imported what an
          engine has

Times are what passed, in brackets what the thread computed meanwhile: where others want the CPUs too, a thread that
wakes another may wait for its own turn. Exit status 1: more passed than is meant to.
"""

import compileall
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

KVD, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
sys.path[:0] = [str(ROOT / "client/python"), str(ROOT / "tests/client/python")]

BLOCKS, BLOCK = 512, 16
REQUESTS = 1000

IMPORT = """
import time
from vllm import LLM
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
begin = time.perf_counter(), time.thread_time()
from kvd.vllm import KvdConnector
print(1e3 * (time.perf_counter() - begin[0]), 1e3 * (time.thread_time() - begin[1]))
"""


def lookup():
    import kvd
    from daemon import PATIENCE, Daemon
    from kvd.vllm import layout
    from kvd.vllm.messages import GroupLayout, WorkerLayout
    from kvd.vllm.options import Options
    from kvd.vllm.scheduler import SchedulerSide
    from vllm_fakes import Request, cache_config, config, hashes

    with Daemon(KVD) as daemon:
        vllm = config(endpoint=daemon.endpoint, extra={"lookup_timeout_ms": 20000})
        scheduler = SchedulerSide(vllm, cache_config(("FullAttentionSpec", BLOCK, 0)), Options.of(vllm))
        worker = WorkerLayout((GroupLayout("full", 0, False, 1, 4096, "a"),), "bench")
        scheduler.set_layouts([worker])
        client = kvd.Client(daemon.endpoint, timeout=PATIENCE)
        client.put(client.register(layout.descriptor(vllm, worker, BLOCK)), hashes(BLOCKS), bytes(BLOCKS * 4096))

        steps = {"start": [], "ask": [], "answer": []}
        for number in range(REQUESTS):
            request = Request(str(number), BLOCKS * BLOCK + 1)
            steps["start"].append(_microseconds(lambda: scheduler.on_new_request(request))[0])
            asked = []
            while not asked or asked[-1][1] == (None, False):
                asked.append(_microseconds(lambda: scheduler.matched(request, 0)))
            assert asked[-1][1] == (BLOCKS * BLOCK, True), asked[-1]
            steps["ask"] += [took for took, _ in asked[:-1]] or [(0, 0)]
            steps["answer"].append(asked[-1][0])
            scheduler.finished(request)
        scheduler.shutdown()
    medians = {step: [statistics.median(one) for one in zip(*took)] for step, took in steps.items()}
    print(f"a lookup of {BLOCKS} blocks on the scheduler's thread, medians of {REQUESTS}: "
          + ", ".join(f"{step} {passed:.1f} us ({computed:.1f})" for step, (passed, computed) in medians.items()))
    return sum(passed for passed, _ in medians.values()) <= 50


def _microseconds(call):
    """What passed and what it computed, and its result."""
    begin = time.perf_counter_ns(), time.thread_time_ns()
    result = call()
    return ((time.perf_counter_ns() - begin[0]) / 1e3, (time.thread_time_ns() - begin[1]) / 1e3), result


def import_time():
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "client/python/kvd", pathlib.Path(folder, "kvd"))
        compileall.compile_dir(folder, quiet=1)
        told = [subprocess.run([sys.executable, "-c", IMPORT], stdout=subprocess.PIPE, text=True, check=True,
                               env={**os.environ, "PYTHONPATH": folder}).stdout for _ in range(5)]
    passed, computed = (statistics.median(float(line.split()[which]) for line in told) for which in (-2, -1))
    print(f"import of kvd.vllm beyond vLLM, median of {len(told)}: {passed:.1f} ms ({computed:.1f})")
    return passed <= 50


if __name__ == "__main__":
    sys.exit(0 if {"lookup": lookup, "import": import_time}[sys.argv[3]]() else 1)
