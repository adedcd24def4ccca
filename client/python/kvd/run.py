"""kvd-run: an engine and a daemon of its own, in one line.

    kvd-run vllm serve MODEL
    kvd-run python -m sglang.launch_server --model-path MODEL

Starts a daemon with bounded memory, adds to the engine's flags what makes it use the daemon, and ends the daemon
when the engine has ended, or when this program has, however. The exit status is the engine's.
"""

import argparse
import ctypes
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import List, Optional, Sequence

MOST_DRAM, SHARE_OF_FREE = 4 << 30, 4  # Bytes; a fourth of what is free.
PATIENCE = 60  # Seconds that a daemon has to start and to end.


class Refused(Exception):
    """Nothing was started; the text says what to change."""


def engine_flags(command: Sequence[str], endpoint: str) -> List[str]:
    """What is to be added to the command line of an engine. Raises Refused."""
    words = [pathlib.PurePath(word).name for word in command]

    def follows(first: str, second: str) -> bool:
        return any(pair == (first, second) for pair in zip(words, words[1:]))
    if follows("vllm", "serve") or "vllm.entrypoints.openai.api_server" in words:
        _must_not_have(command, "--kv-transfer-config")
        return ["--kv-transfer-config", json.dumps({
            "kv_connector": "KvdConnector", "kv_connector_module_path": "kvd.vllm", "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"endpoint": endpoint}})]
    if follows("sglang", "serve") or "sglang.launch_server" in words:
        _must_not_have(command, "--hicache-storage-backend")
        flags = ["--enable-hierarchical-cache", "--hicache-storage-backend", "dynamic",
                 "--hicache-storage-backend-extra-config", json.dumps({
                     "backend_name": "kvd", "module_path": "kvd.sglang", "class_name": "KvdStorage",
                     "interface_v1": 1, "hicache_storage_pass_prefix_keys": True, "allocator": "shm",
                     "endpoint": endpoint})]
        # Of one token by default, which makes a block of each.
        return flags if _has(command, "--page-size") else [*flags, "--page-size", "64"]
    raise Refused("the command is neither `vllm serve ...` nor `python -m sglang.launch_server ...`")


def _has(command: Sequence[str], flag: str) -> bool:
    return any(word == flag or word.startswith(flag + "=") for word in command)


def _must_not_have(command: Sequence[str], flag: str) -> None:
    if _has(command, flag):
        raise Refused(f"the command has {flag} already; take it out, or start kvd and the engine by hand")


def default_dram() -> int:
    """Bytes."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min(MOST_DRAM, free // SHARE_OF_FREE), 64 << 20)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def start_daemon(endpoint: str, dram: str, data: Optional[str]) -> subprocess.Popen:
    """Returns when it serves. Raises Refused."""
    program = os.environ.get("KVD_DAEMON") or shutil.which("kvd")
    if program is None:
        raise Refused("there is no program kvd: install the package of kvd, or name the program in KVD_DAEMON, or a "
                      "daemon that runs with --endpoint")
    arguments = [program, "--listen", endpoint, "--dram", dram, "--log-level", "warn"]
    # Of its own process group, so that Ctrl-C ends the engine first.
    daemon = subprocess.Popen(arguments + (["--data", data] if data else []), stdout=subprocess.PIPE, text=True,
                              start_new_session=True, preexec_fn=_die_with_parent)
    ready = daemon.stdout.readline()
    if not ready.startswith("kvd ready"):
        raise Refused(f"the daemon did not start: exit status {daemon.wait(PATIENCE)}")
    return daemon


def run_engine(command: Sequence[str]) -> int:
    """Its exit status. Signals that would end us end it."""
    try:
        engine = subprocess.Popen(command)
    except OSError as error:
        raise Refused(f"cannot run {command[0]}: {error.strerror}") from None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: engine.send_signal(received))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The terminal sends it to the engine too.
    status = engine.wait()
    return status if status >= 0 else 128 - status


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="kvd-run", usage="kvd-run [--dram SIZE] [--data DIR | --endpoint unix:PATH] COMMAND...",
        description="Runs `vllm serve ...` or `python -m sglang.launch_server ...` with kvd.")
    parser.add_argument("--dram", help="memory of the daemon (a fourth of what is free, at most 4GiB)")
    parser.add_argument("--data", help="folder of what outlives the daemon (none)")
    parser.add_argument("--endpoint", help="of a daemon that runs already; none is started")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    try:
        if not command:
            raise Refused("which engine? See --help")
        if given.endpoint:
            if given.dram or given.data:
                raise Refused("--dram and --data are of a daemon that is started, --endpoint is of one that runs")
            return run_engine(_with_flags(command, given.endpoint))
        with tempfile.TemporaryDirectory(prefix="kvd-run-") as folder:
            endpoint = f"unix:{folder}/kvd.sock"
            whole = _with_flags(command, endpoint)
            daemon = start_daemon(endpoint, given.dram or str(default_dram()), given.data)
            try:
                return run_engine(whole)
            finally:
                daemon.terminate()
                daemon.wait(PATIENCE)
                daemon.stdout.close()
    except Refused as refused:
        print(f"kvd-run: {refused}", file=sys.stderr)
        return 2


def _with_flags(command: Sequence[str], endpoint: str) -> List[str]:
    whole = [*command, *engine_flags(command, endpoint)]
    print(f"kvd-run: {shlex.join(whole)}", file=sys.stderr, flush=True)
    return whole


if __name__ == "__main__":
    sys.exit(main())
