"""KvdConnector over a client that does one wrong thing, as `KVD_FAULT` says; a test loads it by
`"kv_connector_module_path": "faulty"`.

  flip       flips the lowest bit of one byte of what the first get brought, after it was verified
  kill:PID   kills the daemon before the second get of the process
  freeze:PID stops the daemon before the second get: it is there, and does not answer
"""

import os
import signal

import kvd

_fault, _, _pid = os.environ["KVD_FAULT"].partition(":")


class FaultyClient(kvd.Client):
    _gets = 0

    def get(self, namespace, keys, targets, **options):
        FaultyClient._gets += 1
        if FaultyClient._gets == 2 and _fault in ("kill", "freeze"):
            os.kill(int(_pid), signal.SIGKILL if _fault == "kill" else signal.SIGSTOP)
        got = super().get(namespace, keys, targets, **options)
        if FaultyClient._gets == 1 and _fault == "flip":
            targets[len(targets) // 3] ^= 1
        return got


kvd.Client = FaultyClient

from kvd.vllm import KvdConnector  # noqa: E402, F401  After the change, which it goes by.
