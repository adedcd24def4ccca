"""The daemon as a connector of an engine sees it: there, or away; a namespace that is registered when it
can be; and one log line for each change, not for each call."""

import logging
import threading
from typing import Any, Optional, Tuple

import kvd

Memory = Tuple[int, Any]  # As of `Client.adopt_memory`.


class Daemon:
    """A client and the namespace of this engine. Threads: everything is safe from any thread."""

    RETRY_SECONDS = 1.0

    def __init__(self, endpoint: Optional[str], side: str, logger: logging.Logger):
        """`side` is who speaks, for the log."""
        self.client = kvd.Client(endpoint)
        self._side = side
        self._logger = logger
        self._memory: Optional[Memory] = None
        self._descriptor: Optional[kvd.Descriptor] = None
        self._mu = threading.Lock()
        self._namespace: Optional[kvd.Namespace] = None  # Set once.
        self._away = False  # As last logged.
        self._stopped = threading.Event()

    @property
    def namespace(self) -> Optional[kvd.Namespace]:
        """None as long as the daemon never was there. Does not wait."""
        return self._namespace

    def register(self, descriptor: kvd.Descriptor, memory: Optional[Memory] = None) -> None:
        """Tries at once, and goes on in the background while the daemon is away. Raises
        kvd.InvalidArgument where the descriptor will not do, which no retry would mend. `memory` is
        adopted first; where the daemon cannot, puts are copied, and the log says why."""
        self._descriptor, self._memory = descriptor, memory
        if not self._try():
            threading.Thread(target=self._keep_trying, name="kvd-register", daemon=True).start()

    def note(self, error: Optional[Exception]) -> None:
        """How a call ended."""
        if (error is not None) == self._away:  # The usual case, and a race costs a line.
            return
        with self._mu:
            if (error is not None) == self._away:
                return
            self._away = error is not None
        if error is not None:
            self._logger.warning("kvd: %s: misses from now on: %s", self._side, error)
        else:
            self._logger.info("kvd: %s: the daemon answers again", self._side)

    def stop(self) -> None:
        self._stopped.set()

    def _try(self) -> bool:
        try:
            namespace = self.client.register(self._descriptor, timeout=self.RETRY_SECONDS)
            self._adopt()
            self._namespace = namespace
        except kvd.InvalidArgument:
            raise
        except kvd.KvdError as error:
            self.note(error)
            return False
        self.note(None)
        return True

    def _adopt(self) -> None:
        """Raises what another try may mend."""
        if self._memory is None:
            return
        try:
            self.client.adopt_memory(*self._memory, timeout=self.RETRY_SECONDS)
        except (kvd.Unavailable, kvd.DeadlineExceeded):
            raise
        except kvd.KvdError as error:
            self._logger.warning("kvd: %s: what is stored is copied once more: %s", self._side, error)
        self._memory = None

    def _keep_trying(self) -> None:
        while not self._stopped.wait(self.RETRY_SECONDS):
            try:
                if self._try():
                    return
            except kvd.InvalidArgument as error:
                self._logger.error("kvd: %s: nothing is stored or found: %s", self._side, error)
                return
