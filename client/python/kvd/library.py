"""libkvd.so.0 by ctypes: the structures and functions of kvd.h, and where the library is found.

Nothing here is for users of the package. ctypes lets go of the GIL in every call that may wait, and the library
keeps the text of an error by system thread, so `check()` reads it before anything else can run.
"""

import ctypes
import os
import pathlib
from ctypes import (POINTER, Structure, c_char_p, c_int32, c_size_t, c_uint8, c_uint32, c_uint64,
                    c_void_p)
from typing import Any, Dict

from . import errors

SONAME = "libkvd.so.0"


class Buffer(Structure):
    """kvd_buffer and kvd_const_buffer."""
    _fields_ = [("data", c_void_p), ("size", c_size_t)]


class Part(Structure):
    _fields_ = [("group", c_uint8), ("shard", c_uint8)]


class Group(Structure):
    _fields_ = [("kind", c_uint32), ("window_tokens", c_uint32), ("shards", c_uint32),
                ("block_tokens", c_uint32), ("part_bytes", c_uint32)]


class Extra(Structure):
    _fields_ = [("name", c_char_p), ("value", c_char_p)]


class Growing(Structure):
    """A structure that begins with its size, which the library goes by: made by `new()`."""

    @classmethod
    def new(cls) -> Any:
        """All zero but for its size. A copy of the first one, which is several times as quick as a new one."""
        blank = _blanks.get(cls)
        if blank is None:
            blank = cls()
            blank.struct_size = ctypes.sizeof(cls)
            _blanks[cls] = blank
        return cls.from_buffer_copy(blank)


_blanks: Dict[type, Any] = {}


class ClientOptions(Growing):
    _fields_ = [("struct_size", c_size_t), ("endpoint", c_char_p), ("timeout_us", c_uint64),
                ("reconnect_interval_us", c_uint64), ("staging_bytes", c_uint64),
                ("copy_loop", c_char_p), ("tls_certificate", c_char_p), ("tls_key", c_char_p),
                ("tls_authority", c_char_p), ("tls_server_name", c_char_p), ("spin_us", c_uint64)]


class Stats(Growing):
    _fields_ = [("struct_size", c_size_t), ("calls", c_uint64), ("failed_calls", c_uint64),
                ("reconnects", c_uint64), ("damaged_parts", c_uint64), ("bad_extents", c_uint64),
                ("dropped_releases", c_uint64)]


class NamespaceDescriptor(Growing):
    _fields_ = [("struct_size", c_size_t), ("model", c_char_p), ("weights_revision", c_char_p),
                ("kv_dtype", c_char_p), ("quantization", c_char_p), ("page_layout", c_char_p),
                ("engine_family", c_char_p), ("draft_model", c_char_p),
                ("hash_algorithm", c_char_p), ("hash_seed", c_char_p), ("hash_bytes", c_uint32),
                ("tensor_parallel", c_uint32), ("pipeline_parallel", c_uint32),
                ("context_parallel", c_uint32), ("groups", POINTER(Group)),
                ("group_count", c_size_t), ("extra", POINTER(Extra)), ("extra_count", c_size_t)]


class LookupOptions(Growing):
    _fields_ = [("struct_size", c_size_t), ("timeout_us", c_uint64), ("lease_us", c_uint64),
                ("parent", c_char_p)]


class LookupResult(Growing):
    _fields_ = [("struct_size", c_size_t), ("hit_blocks", c_uint32), ("reserved", c_uint32),
                ("lease_id", c_uint64), ("load_time_us", c_uint64), ("tier_blocks", c_uint32 * 8)]


class GetOptions(Growing):
    _fields_ = [("struct_size", c_size_t), ("timeout_us", c_uint64), ("lease_us", c_uint64),
                ("parent", c_char_p), ("parts", POINTER(Part)), ("part_count", c_size_t),
                ("max_blocks", c_uint32), ("reserved", c_uint32)]


class GetResult(Growing):
    _fields_ = [("struct_size", c_size_t), ("hit_blocks", c_uint32), ("blocks", c_uint32),
                ("damaged", c_uint32), ("reserved", c_uint32), ("lease_id", c_uint64)]


class LoadOptions(Growing):
    _fields_ = [("struct_size", c_size_t), ("timeout_us", c_uint64), ("parts", POINTER(Part)),
                ("part_count", c_size_t), ("range_offset", c_uint32), ("range_bytes", c_uint32)]


class PutOptions(Growing):
    _fields_ = [("struct_size", c_size_t), ("timeout_us", c_uint64), ("wait_us", c_uint64),
                ("parent", c_char_p), ("parts", POINTER(Part)), ("part_count", c_size_t),
                ("announce", POINTER(Buffer)), ("announce_count", c_size_t)]


class PutResult(Growing):
    _fields_ = [("struct_size", c_size_t), ("stored", c_uint32), ("present", c_uint32),
                ("block_states", c_void_p), ("state_capacity", c_size_t),
                ("state_count", c_size_t)]


class PinOptions(Growing):
    _fields_ = [("struct_size", c_size_t), ("timeout_us", c_uint64), ("owner", c_char_p),
                ("budget_bytes", c_uint64), ("ttl_us", c_uint64)]


class PinResult(Growing):
    _fields_ = [("struct_size", c_size_t), ("pin_id", c_uint64), ("bytes", c_uint64),
                ("blocks", c_uint32), ("reserved", c_uint32)]


_HANDLE = c_void_p
_STATUS = c_int32
# Name -> result and arguments, as in kvd.h. Structures go by reference.
_FUNCTIONS = {
    "kvd_error_message": (c_char_p, []),
    "kvd_status_name": (c_char_p, [_STATUS]),
    "kvd_version": (c_char_p, []),
    "kvd_client_create": (_STATUS, [POINTER(ClientOptions), POINTER(_HANDLE)]),
    "kvd_client_destroy": (None, [_HANDLE]),
    "kvd_client_stats": (_STATUS, [_HANDLE, POINTER(Stats)]),
    "kvd_client_copy_loops": (c_char_p, [_HANDLE]),
    "kvd_client_connect": (_STATUS, [_HANDLE, c_uint64]),
    "kvd_flush": (_STATUS, [_HANDLE, c_uint64]),
    "kvd_namespace_register": (_STATUS, [_HANDLE, POINTER(NamespaceDescriptor), c_uint64,
                                         POINTER(_HANDLE)]),
    "kvd_namespace_destroy": (None, [_HANDLE]),
    "kvd_namespace_hash_bytes": (c_uint32, [_HANDLE]),
    "kvd_namespace_parts": (c_uint32, [_HANDLE]),
    "kvd_namespace_part": (c_uint32, [_HANDLE, c_uint32, POINTER(Part)]),
    "kvd_lookup": (_STATUS, [_HANDLE, _HANDLE, c_char_p, c_size_t, POINTER(LookupOptions),
                             POINTER(LookupResult)]),
    "kvd_lookup_start": (_STATUS, [_HANDLE, _HANDLE, c_char_p, c_size_t, POINTER(LookupOptions),
                                   POINTER(_HANDLE)]),
    "kvd_lookup_poll": (_STATUS, [_HANDLE, POINTER(c_int32), POINTER(LookupResult)]),
    "kvd_pending_destroy": (None, [_HANDLE]),
    "kvd_release_lease": (None, [_HANDLE, c_uint64]),
    "kvd_get": (_STATUS, [_HANDLE, _HANDLE, c_char_p, c_size_t, POINTER(Buffer), c_size_t,
                          POINTER(GetOptions), POINTER(GetResult)]),
    "kvd_load": (_STATUS, [_HANDLE, _HANDLE, c_char_p, c_size_t, POINTER(LoadOptions),
                           POINTER(_HANDLE)]),
    "kvd_chain_blocks": (c_uint32, [_HANDLE]),
    "kvd_chain_parts": (c_uint32, [_HANDLE]),
    "kvd_chain_views": (_STATUS, [_HANDLE, c_uint32, c_uint32, POINTER(Buffer), c_size_t]),
    "kvd_chain_verify": (_STATUS, [_HANDLE, c_uint32, c_uint32, c_char_p, c_size_t]),
    "kvd_chain_release": (None, [_HANDLE]),
    "kvd_adopt_memory": (_STATUS, [_HANDLE, ctypes.c_int, c_void_p, c_size_t, c_uint64]),
    "kvd_put": (_STATUS, [_HANDLE, _HANDLE, c_char_p, c_size_t, POINTER(Buffer), c_size_t,
                          POINTER(PutOptions), POINTER(PutResult)]),
    "kvd_pin": (_STATUS, [_HANDLE, _HANDLE, c_char_p, POINTER(PinOptions), POINTER(PinResult)]),
    "kvd_unpin": (_STATUS, [_HANDLE, c_uint64, c_uint64]),
}


def _find() -> str:
    """$KVD_LIBRARY; beside this file, in what pip installed; the system's."""
    named = os.environ.get("KVD_LIBRARY")
    if named:
        return named
    beside = pathlib.Path(__file__).with_name(SONAME)
    return str(beside) if beside.exists() else SONAME


# These keep the GIL: they end at once, and who lets go of it for that may wait for it for milliseconds while
# another thread computes, which the scheduler of an engine cannot afford.
_NEVER_WAIT = {"kvd_lookup_start", "kvd_lookup_poll", "kvd_pending_destroy", "kvd_release_lease"}


class _Functions:
    """Those of the library, by their names. It is loaded when the first is asked for: what imports a connector need
    not wait for it. Raises ImportError where there is none. Threads: two that are the first do the same twice."""

    def __getattr__(self, name: str) -> Any:
        self.__dict__.update(_load())
        return object.__getattribute__(self, name)


def _load() -> Dict[str, Any]:
    path = _find()
    functions = {}
    try:
        letting_go, keeping = ctypes.CDLL(path), ctypes.PyDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(keeping if name in _NEVER_WAIT else letting_go, name)
            function.restype = result
            function.argtypes = arguments
            functions[name] = function
    except (OSError, AttributeError) as error:
        raise ImportError(f"kvd: cannot use {path}: {error}; install libkvd 0.2, or say where it is "
                          "by KVD_LIBRARY") from None
    return functions


kvd = _Functions()


def check(status: int) -> None:
    """Raises what a status other than KVD_OK means. On the thread of the call, right after it."""
    if status != 0:
        text = kvd.kvd_error_message().decode(errors="replace")
        raise errors.of(status)(text)
