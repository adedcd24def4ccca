"""Lets the daemon read SGLang's host pool where it lies: entry point "kvd" of `sglang.srt.plugins`.

With `"allocator": "shm"` SGLang makes its host pool of a memfd that nobody can seal, and the daemon maps no
memory that could shrink under it. So the pool is made here, of one that is sealed against that and is in all else
the same. Without this plugin pages are copied once more on their way to the daemon.
"""

import fcntl
import math
import mmap
import os
from typing import Any, Tuple

_F_ADD_SEALS, _F_SEAL_SHRINK = 1033, 2  # fcntl has the names since Python 3.9, where libc has them.


def install() -> None:
    """Run by SGLang in each of its processes, before pools are made."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    HookRegistry.register("sglang.srt.mem_cache.storage.mmap.alloc_shm", alloc_shm, HookType.REPLACE)


def alloc_shm(dims: Tuple[int, ...], dtype: Any) -> Tuple[Any, int, mmap.mmap]:
    """(tensor, fd, mapping) of zeros, as SGLang's own; the memory is there before it returns."""
    import torch
    count = math.prod(dims)
    size = -(-count * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.memfd_create("sglang_host_pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK)
        mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0x8000))
    except OSError:
        os.close(fd)
        raise
    return torch.frombuffer(mapping, dtype=dtype, count=count).reshape(dims), fd, mapping
