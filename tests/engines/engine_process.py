"""An engine in a process of its own, which is told by lines of JSON and answers with such lines."""

import contextlib
import json
import os
import random
import subprocess
import threading

PATIENCE = 600  # Seconds of an engine's life.


def prompts(count, seed, tokens):
    """Lists of token ids of the models of models.py."""
    numbers = random.Random(seed)
    return [[numbers.randrange(512) for _ in range(tokens)] for _ in range(count)]


class EngineProcess:
    def __init__(self, python, script, environment, folder):
        """`folder` takes the log, whose end is part of what a failure says."""
        self._log = open(folder / f"engine-{os.getpid()}.log", "a+", errors="replace")
        self._process = subprocess.Popen([python, "-B", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._log, text=True, env={**os.environ, **environment})
        self._watchdog = threading.Timer(PATIENCE, self._process.kill)
        self._watchdog.start()

    def say(self, message):
        with contextlib.suppress(BrokenPipeError):  # It has ended: answer() says why.
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def answer(self):
        line = self._process.stdout.readline()
        if not line:
            status = self.end()
            raise AssertionError(f"the engine ended with {status}: {self.tail()}")
        return json.loads(line)

    def tail(self):
        with open(self._log.name, errors="replace") as log:
            return "".join(log.readlines()[-40:])

    def end(self):
        """Waits for it, so that the last saves are done. Returns the exit status."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        status = self._process.wait(timeout=PATIENCE)
        self._process.stdout.close()
        self._watchdog.cancel()
        self._log.close()
        return status
