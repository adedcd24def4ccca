"""Of SGLang what the storage backend touches: the real classes where SGLang is installed, and else as little as
stands in for them, so that the order of calls can be tested where no engine is."""

import ctypes
import dataclasses
import mmap
import os
from types import SimpleNamespace
from typing import Any, Optional

from stand_in import is_installed, module

ARGS = SimpleNamespace(model_path="test/tiny", revision=None, dtype="float32", kv_cache_dtype="auto",
                       quantization=None, speculative_algorithm=None, speculative_draft_model_path=None)


def install():
    """Before `kvd.sglang` is imported. True where they are fakes."""
    if is_installed("sglang"):
        from sglang.srt import runtime_context
        runtime_context.get_server_args = lambda: ARGS
        return False

    class HiCacheStorage:
        def register_mem_pool_host(self, mem_pool_host):
            self.mem_pool_host = mem_pool_host

        def register_mem_host_pool_v2(self, host_pool, host_pool_name):
            pass

        def on_host_pools_registered(self):
            pass

    @dataclasses.dataclass
    class PoolTransferResult:
        kv_hit_pages: int
        extra_pool_hit_pages: dict
        restorable_prefix_pages: Optional[list] = None

    for name in ("sglang.srt", "sglang.srt.mem_cache"):
        module(name)
    module("sglang", __version__="0.0.0")
    module("sglang.srt.mem_cache.hicache_storage", HiCacheStorage=HiCacheStorage,
           PoolTransferResult=PoolTransferResult)
    module("sglang.srt.runtime_context", get_server_args=lambda: ARGS)
    return True


def config(extra=None, **changes):
    """As much of a HiCacheStorageConfig as is looked at."""
    given = {"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1,
             "is_mla_model": False, "should_split_heads": False, "dcp_size": 1, **changes}
    return SimpleNamespace(extra_config={"interface_v1": 1, **(extra or {})}, **given)


class Indices(list):
    """Stands for a tensor of them."""

    def tolist(self):
        return list(self)

    def __getitem__(self, at):
        return Indices(super().__getitem__(at)) if isinstance(at, slice) else super().__getitem__(at)


class Page:
    """A flat page, as a tensor of bytes."""

    def __init__(self, data):
        self._data = ctypes.create_string_buffer(data, len(data))
        self._size = len(data)

    def data_ptr(self):
        return ctypes.addressof(self._data)

    def numel(self):
        return self._size

    def element_size(self):
        return 1


class Buffer:
    """The memory of a pool, as a tensor."""
    device = SimpleNamespace(type="cpu")

    def __init__(self, memory):
        self.memory = memory
        self.nbytes = len(memory)

    def data_ptr(self):
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def is_contiguous(self):
        return True

    def numel(self):
        return self.nbytes

    def element_size(self):
        return 1


class HostPool:
    """Pages of `pieces` pieces of `piece_bytes`; those of all pages at one place stand together."""
    layout, dtype = "page_first", "torch.float32"

    def __init__(self, pages=64, page_size=4, pieces=2, piece_bytes=4096, sealed=None):
        self.page_size, self.pages, self.pieces, self.piece_bytes = page_size, pages, pieces, piece_bytes
        size = pages * pieces * piece_bytes
        if sealed is None:
            self.memory = mmap.mmap(-1, size)
        else:
            self.fd = os.memfd_create("pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING * sealed)
            os.ftruncate(self.fd, size)
            if sealed:
                import fcntl
                fcntl.fcntl(self.fd, 1033, 2)  # F_ADD_SEALS, F_SEAL_SHRINK
            self.memory = mmap.mmap(self.fd, size)
        self.kv_buffer = Buffer(self.memory)
        self.free_pages = list(range(pages))

    def alloc(self, need):
        count = need // self.page_size
        if count > len(self.free_pages):
            return None
        taken, self.free_pages = self.free_pages[:count], self.free_pages[count:]
        return Indices(page * self.page_size + slot for page in taken for slot in range(self.page_size))

    def free(self, indices):
        self.free_pages += [index // self.page_size for index in indices[::self.page_size]]

    def _offsets(self, index):
        page = index // self.page_size
        return [(piece * self.pages + page) * self.piece_bytes for piece in range(self.pieces)]

    def get_page_buffer_meta(self, indices):
        assert len(indices) % self.page_size == 0
        offsets = [offset for index in indices.tolist()[::self.page_size] for offset in self._offsets(index)]
        base = self.kv_buffer.data_ptr()
        return [base + offset for offset in offsets], [self.piece_bytes] * len(offsets)

    def get_data_page(self, index, flat=True):
        return Page(self.page(index))

    def page(self, index):
        return b"".join(self.memory[offset:offset + self.piece_bytes] for offset in self._offsets(index))

    def fill(self, indices, seed):
        """Other bytes in every page of `indices`."""
        for number, index in enumerate(indices[::self.page_size]):
            for piece, offset in enumerate(self._offsets(index)):
                self.memory[offset:offset + self.piece_bytes] = bytes([seed, number, piece, 7]) * (
                    self.piece_bytes // 4)

    def contents(self, indices):
        return [self.page(index) for index in indices[::self.page_size]]


@dataclasses.dataclass
class Transfer:
    """A PoolTransfer."""
    name: str
    host_indices: Any = None
    keys: Optional[list] = None


def info(prefix):
    """An ExtraInfo with the keys before those of the call."""
    return SimpleNamespace(prefix_keys=prefix)
