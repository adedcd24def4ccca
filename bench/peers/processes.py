"""Processes that a comparison starts, and what it does to them from outside.

Every process runs in a group of its own, so that what it started ends with it, and dies with this
one. Nothing else is ever signalled.
"""

import ctypes
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time

PR_SET_PDEATHSIG = 1
CHUNK = 32 << 20  # Of a search through memory.


class Failure(Exception):
    """A store or its driver did not do what a comparison needs; the text says what and why."""


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def tail(path, lines=6, width=300):
    """The end of a log, for a message."""
    try:
        text = pathlib.Path(path).read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(line[:width] for line in text.strip().splitlines()[-lines:])


def free_port():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


class Process:
    """A server: its output goes to a log."""

    def __init__(self, command, log, environment=None):
        self.command = [str(word) for word in command]
        self.log = pathlib.Path(log)
        try:
            with open(self.log, "ab") as out:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    env={**os.environ, **(environment or {})}, start_new_session=True,
                    preexec_fn=_die_with_parent)
        except OSError as error:
            raise Failure(f"{self.command[0]}: {error.strerror}") from error

    @property
    def pid(self):
        return self._process.pid

    def running(self):
        return self._process.poll() is None

    def wait_until(self, ready, seconds, what):
        """Returns when ready() is true; raises Failure with the end of the log otherwise."""
        end = time.monotonic() + seconds
        while not ready():
            if not self.running():
                raise Failure(f"{what} ended with {self._process.returncode}: {tail(self.log)}")
            if time.monotonic() > end:
                raise Failure(f"{what} is not ready after {seconds} s: {tail(self.log)}")
            time.sleep(0.02)

    def kill(self):
        """SIGKILL to it and to all that it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, seconds=10):
        if self.running():
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        self.kill()  # Also what outlived its parent.

    def _signal(self, number):
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass


class Driver:
    """A client of a store that does what it is told; see bench/peers_kvd.cc for the commands."""

    def __init__(self, command, log, environment=None, start_seconds=120):
        self.log = pathlib.Path(log)
        self._errors = open(self.log, "ab")
        self._process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, env={**os.environ, **(environment or {})},
            start_new_session=True, preexec_fn=_die_with_parent)
        self._buffer = b""
        try:
            self._answer("its start", start_seconds)
        except Failure:
            self.close()
            raise

    @property
    def pid(self):
        return self._process.pid

    def ask(self, *words, seconds=120):
        """The answer to a command. Failure when it has an error, or none within `seconds`."""
        line = " ".join(str(word) for word in words)
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Failure(f"the driver has ended before `{line}`: {tail(self.log)}") from error
        return self._answer(f"`{line}`", seconds)

    def _answer(self, what, seconds):
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise Failure(f"the driver said nothing to {what} for {seconds} s")
            some = os.read(self._process.stdout.fileno(), 1 << 20)
            if not some:
                raise Failure(f"the driver ended at {what}: {tail(self.log)}")
            self._buffer += some
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer

    def close(self):
        try:
            self._process.stdin.write(b"quit\n")
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def _writable_maps(pid):
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, rights = line.split()[:2]
        if rights.startswith("rw"):
            yield tuple(int(end, 16) for end in place.split("-"))


def flip_in_memory(pid, pattern):
    """Flips one bit wherever `pattern` stands in the memory of a process of ours.

    Returns how many places there were. The kernel lets us where it lets a debugger: a process of
    the same user that has not asked to be left alone, or any process for root.
    """
    flipped = 0
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    except OSError as error:
        raise Failure(f"cannot reach into process {pid}: {error.strerror}; run as root") from error
    try:
        for start, end in _writable_maps(pid):
            at = start
            while at < end:
                try:
                    piece = os.pread(memory, min(CHUNK + len(pattern), end - at), at)
                except OSError:
                    break  # A mapping without memory behind it.
                place = piece.find(pattern)
                while place >= 0 and place < CHUNK:
                    address = at + place + len(pattern) // 2
                    byte = os.pread(memory, 1, address)[0] ^ 0x10
                    if os.pwrite(memory, bytes([byte]), address) != 1:
                        raise Failure(f"cannot write to the memory of process {pid}")
                    flipped += 1
                    place = piece.find(pattern, place + 1)
                at += CHUNK
    finally:
        os.close(memory)
    return flipped


def cpu_seconds(pid):
    """Of a process; what it started and waited for included. 0 when it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def busy_seconds(cpus):
    """CPU time that anybody spent on these CPUs."""
    busy = 0
    for line in pathlib.Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            numbers = [int(tick) for tick in ticks[:8]]
            busy += sum(numbers) - numbers[3] - numbers[4]
    return busy / os.sysconf("SC_CLK_TCK")
