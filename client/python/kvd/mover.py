"""A thread that moves bytes for an engine that must not wait."""

import logging
import queue
import threading
from typing import Any, Callable


class Mover(threading.Thread):
    """Runs jobs one after another until stop(), which lets those run that were added before. Threads:
    everything is safe from any thread."""

    def __init__(self, name: str, run: Callable[[Any], None], logger: logging.Logger,
                 prepare: Callable[[], None] = lambda: None):
        """`prepare` is run first, on the new thread."""
        super().__init__(name=name, daemon=True)
        self._run, self._logger, self._prepare = run, logger, prepare
        self._jobs: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._waiting = 0
        self.start()

    def add(self, job: Any) -> None:
        """Not None."""
        with self._idle:
            self._waiting += 1
        self._jobs.put(job)

    @property
    def busy(self) -> bool:
        return self._waiting > 0

    def wait(self) -> None:
        """Until everything that was added has run."""
        with self._idle:
            self._idle.wait_for(lambda: self._waiting == 0)

    def stop(self) -> None:
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        self._prepare()
        for job in iter(self._jobs.get, None):
            try:
                self._run(job)
            except Exception:  # A thread that ends would be a hang of everything after it.
                self._logger.exception("kvd: %s: a job failed", self.name)
            with self._idle:
                self._waiting -= 1
                self._idle.notify_all()
