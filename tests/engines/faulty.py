"""A connector over a client that does one wrong thing, as `KVD_FAULT` says; a test names this module where it
would name `kvd.vllm` or `kvd.sglang`.

  flip       flips the lowest bit of one byte of what the first get brought, after it was verified; of one byte of each
             place, where it was told places: a single one may lie where the model hardly looks
  flip:each  flips one of each block
  kill:PID   kills the daemon before the second get of the process
  freeze:PID stops the daemon before the second get: it is there, and does not answer

Gets of one block are not counted: connectors try themselves with such.
"""

import ctypes
import os
import signal

import kvd

_fault, _, _pid = os.environ["KVD_FAULT"].partition(":")


class FaultyClient(kvd.Client):
    _gets = 0

    def get(self, namespace, keys, targets, **options):
        if len(keys) == (1 if isinstance(keys, list) else namespace.hash_bytes):
            return super().get(namespace, keys, targets, **options)
        FaultyClient._gets += 1
        if FaultyClient._gets == 2 and _fault in ("kill", "freeze"):
            os.kill(int(_pid), signal.SIGKILL if _fault == "kill" else signal.SIGSTOP)
        got = super().get(namespace, keys, targets, **options)
        if FaultyClient._gets == 1 and _fault == "flip":
            # Of the third of a number's four bytes: what is lower is lost in sums.
            if isinstance(targets, list):
                for place in targets:
                    ctypes.c_ubyte.from_address(place.address + 2).value ^= 1
            elif _pid == "each":
                block = sum(namespace.part_bytes)
                for at in range(0, len(targets), block):
                    targets[at + block // 12 * 4 + 2] ^= 1
            else:
                targets[len(targets) // 12 * 4 + 2] ^= 1
        return got


kvd.Client = FaultyClient  # Before the connectors are imported, which go by it.


def __getattr__(name):
    if name == "KvdConnector":
        from kvd.vllm import KvdConnector
        return KvdConnector
    if name == "KvdStorage":
        from kvd.sglang import KvdStorage
        return KvdStorage
    raise AttributeError(name)
