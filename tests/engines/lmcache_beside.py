"""LMCache as something to compare with: its server, and the configuration of its connector in vLLM.

Imported in the engine's process (`modules` of vllm_run.py) this also mends what keeps vLLM 0.32 from starting there:
vLLM reads the `__dict__` of whatever a module holds, and llvmlite's library, which LMCache brings, makes a
foreign function of every name.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

CHUNK = 256  # Tokens; its own default.
PATIENCE = 120  # Seconds.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "LMCACHE_TRACK_USAGE": "false"}


def _mend():
    try:
        from llvmlite.binding import ffi
    except ImportError:
        return
    wrapper = type(ffi.lib)
    plain = wrapper.__getattr__

    def no_special_names(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return plain(self, name)
    wrapper.__getattr__ = no_special_names


_mend()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(python, gib):
    """Runs its server with `gib` GiB of memory; gives the connector's configuration for vLLM."""
    port, http = _free_port(), _free_port()
    memory = f"kvd_bench_{os.getpid()}"
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [python.parent / "lmcache", "server", "--host", "127.0.0.1", "--port", str(port), "--http-host", "127.0.0.1",
             "--http-port", str(http), "--chunk-size", str(CHUNK), "--l1-size-gb", str(gib), "--no-l1-use-lazy",
             "--eviction-policy", "LRU", "--supported-transfer-mode", "auto", "--shm-name", memory],
            env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log)
        try:
            end = time.monotonic() + PATIENCE
            while not _healthy(f"http://127.0.0.1:{http}/healthcheck"):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"LMCache's server did not start: {log.read()[-2000:]}")
            yield {"kv_connector": "LMCacheMPConnector", "kv_connector_module_path": None, "kv_connector_extra_config": {
                "lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}}
        finally:
            process.terminate()
            process.wait()
            for left in os.listdir("/dev/shm"):  # It leaves its pool behind.
                if memory in left:
                    os.unlink(f"/dev/shm/{left}")


def _healthy(address):
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False
