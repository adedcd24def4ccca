"""A kvd of its own for a test: a real process on a socket in a folder that goes with the test."""

import os
import pathlib
import signal
import subprocess
import tempfile

PATIENCE = 60  # Seconds: the end of every wait.


class Daemon:
    """`with Daemon(KVD) as daemon:`, or start() and stop(). `folder` is where the socket lies; a daemon
    that is started again there is found by clients of the first."""

    def __init__(self, program, *arguments, dram="64MiB"):
        self._program, self._arguments, self._dram = program, arguments, dram
        self._folder = tempfile.TemporaryDirectory(prefix="kvd-test-")
        self.folder = pathlib.Path(self._folder.name)
        self.endpoint = f"unix:{self.folder}/kvd.sock"
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()
        self._folder.cleanup()

    def start(self):
        self._process = subprocess.Popen(
            [self._program, "--listen", self.endpoint, "--dram", self._dram, "--log-level", "warn",
             *self._arguments], stdout=subprocess.PIPE, text=True)
        ready = self._process.stdout.readline()
        if not ready.startswith("kvd ready"):
            self.stop()
            raise RuntimeError(f"the daemon said {ready!r}")
        self.ready = dict(word.split("=", 1) for word in ready.split()[2:])  # Where it listens.

    def kill(self):
        """At once, as the kernel does it."""
        self._end(signal.SIGKILL)

    def stop(self):
        """In good order."""
        self._end(signal.SIGTERM)

    @property
    def pid(self):
        return self._process.pid

    def freeze(self):
        """It is there, and answers nothing until thaw()."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self):
        os.kill(self._process.pid, signal.SIGCONT)

    def _end(self, with_signal):
        if self._process is None:
            return
        self.thaw()
        self._process.send_signal(with_signal)
        self._process.wait(timeout=PATIENCE)
        self._process.stdout.close()
        self._process = None
