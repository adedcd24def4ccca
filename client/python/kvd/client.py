"""The client: puts, finds and gets blocks of KV cache in the kvd of this node.

Shapes. A block is named by the engine's chain hash of it. `keys` are such hashes, root first: bytes
  with all of them back to back, or a sequence of bytes. To speak of the tail of a chain, give the
  hash before it as `parent`. A block has one part for each group and shard of its namespace
  (`Namespace.parts`); lists of buffers stand block by block, in that order.
Units. Sizes are bytes; times are seconds; a timeout of None is the client's.
Errors. A miss is an answer, not an exception. Exceptions are those of `kvd.errors`; while the daemon
  is away calls raise `Unavailable` at once, and a later call connects again by itself. A caller that
  cannot care treats every `KvdError` as a miss.
Memory. Buffers are whatever has the buffer protocol, or tensors in host memory; they are not copied
  on the Python side, and not touched after a call returned.
Threads. Everything may be called from any thread; every call that may wait lets go of the GIL. Fork: a client made
  before `os.fork()` raises `FailedPrecondition` in the child.
"""

import ctypes
import dataclasses
import enum
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import library
from .buffers import Borrowed, Buffers, Bytes
from .library import check, kvd

Keys = Union[bytes, bytearray, memoryview, Sequence[bytes]]
Parts = Sequence[Tuple[int, int]]  # Of (group, shard).


class GroupKind(enum.IntEnum):
    FULL = 1  # Attention over the whole prefix: every block's part is needed.
    WINDOW = 2  # Sliding window: the last window_tokens are needed.
    STATE = 3  # Recurrent state: only the part at the very end is needed.


class PutState(enum.IntEnum):
    """What became of one block."""
    STORED = 1  # Visible now, or waiting only for parts of other shards.
    PRESENT = 2  # Was there, or is being produced by somebody else.
    PARKED = 3  # Below a parent still in production: visible when that one is.
    NOT_FILLED = 4
    NO_ROOM = 5  # Nothing can be evicted now.
    NO_PARENT = 6  # The parent is not there.
    FAILED = 7  # The bytes changed while they were being taken.


_PUT_STATES = {int(state): state for state in PutState}


class Tier(enum.IntEnum):
    """Media, from the hottest."""
    HBM = 1
    DRAM = 2
    FAR = 3
    NVME = 4
    POOL = 5


@dataclasses.dataclass(frozen=True)
class Group:
    """One KV-cache group of a model."""
    block_tokens: int  # Tokens of one block.
    part_bytes: int  # Of every part of the group.
    kind: GroupKind = GroupKind.FULL
    window_tokens: int = 0  # Of a WINDOW, else 0.
    shards: int = 1  # Parts of this group; 1: replicated.


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """Everything that, if it differed, would make the bytes wrong. Two engines that share must say
    the same. Texts are at most 256 bytes."""
    model: str
    groups: Sequence[Group]  # At most 16.
    weights_revision: str = ""
    kv_dtype: str = ""
    quantization: str = ""
    page_layout: str = ""
    engine_family: str = ""
    draft_model: str = ""
    hash_algorithm: str = ""
    hash_seed: str = ""
    hash_bytes: int = 32  # Of one key, 8 to 32.
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    context_parallel: int = 1
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)  # At most 64.


@dataclasses.dataclass(frozen=True)
class Tls:
    """Of "tcp:HOST:PORT": names of PEM files. The identity in the certificate is who the daemon takes
    the client for."""
    certificate: str
    key: str
    authority: str  # Whoever it vouches for is believed to be the daemon.
    server_name: Optional[str] = None  # That the daemon's certificate must have; None: the host's.


@dataclasses.dataclass(frozen=True)
class LookupResult:
    blocks: int  # Longest stored prefix that every group can serve.
    lease: int  # Ends by `release_lease`, or by itself; 0: none.
    load_seconds: float  # The daemon's estimate of what a get of them takes.
    tiers: Dict[Tier, int]  # Blocks by the coldest tier of their parts.


@dataclasses.dataclass(frozen=True)
class GetResult:
    hit_blocks: int  # What the lookup found.
    # Copied and verified, from the start of the list. What every group needs at that depth is there;
    # a part of a window or a state that is not needed may be missing, and its target untouched.
    blocks: int
    damaged: int  # Parts that did not verify; `blocks` ends before the first that counts.
    lease: int


@dataclasses.dataclass(frozen=True)
class PutResult:
    stored: int  # Blocks made visible by this call.
    present: int  # Blocks that were there, or are being produced by somebody else.
    states: List[PutState]  # One a block.


@dataclasses.dataclass(frozen=True)
class PinResult:
    pin: int
    blocks: int  # The chain's, up to its root.
    bytes: int


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counters since the client was made."""
    calls: int
    failed_calls: int
    reconnects: int  # Sessions after the first.
    damaged_parts: int  # Did not verify, and were reported.
    bad_extents: int  # Lay outside their region, or could not be checked: misses.
    dropped_releases: int


def version() -> str:
    """MAJOR.MINOR.PATCH of the library."""
    return kvd.kvd_version().decode()


class _Handle:
    """An object of the library, which ends with this one."""

    def __init__(self, handle: ctypes.c_void_p, destroy: Any):
        self._as_parameter_ = handle  # What ctypes passes for this object.
        self._destroy = destroy

    def __del__(self) -> None:
        self._destroy(self._as_parameter_)


class Namespace:
    """What the bytes of a block mean, as a client registered it; of use to that client alone. It
    stays good across reconnects."""

    def __init__(self, handle: _Handle):
        self._handle = handle
        self.hash_bytes: int = kvd.kvd_namespace_hash_bytes(handle)
        parts: List[Tuple[int, int]] = []
        self.part_bytes: List[int] = []  # Of each of `parts`.
        for index in range(kvd.kvd_namespace_parts(handle)):
            part = library.Part()
            self.part_bytes.append(kvd.kvd_namespace_part(handle, index, ctypes.byref(part)))
            parts.append((part.group, part.shard))
        self.parts: List[Tuple[int, int]] = parts  # (group, shard) of the parts of one block.
        self._bytes_of = dict(zip(parts, self.part_bytes))

    def _sizes(self, parts: Optional[Parts], blocks: int) -> List[int]:
        try:
            one = self.part_bytes if parts is None else [self._bytes_of[tuple(p)] for p in parts]
        except KeyError as error:
            raise ValueError(f"parts: the namespace has no part {error}") from None
        return one * blocks


class Pending:
    """A lookup under way; see `Client.start_lookup`. Dropping it is how to lose interest: the lease
    of an answer that was not taken is released."""

    def __init__(self, handle: _Handle):
        self._handle = handle

    def poll(self) -> Optional[LookupResult]:
        """The answer, whose lease is then the caller's to release; None while it is under way. Never
        waits. Raises what `Client.lookup` would have raised."""
        done = ctypes.c_int32()
        result = library.LookupResult.new()
        check(kvd.kvd_lookup_poll(self._handle, ctypes.byref(done), ctypes.byref(result)))
        return _lookup_result(result) if done.value else None


class Chain:
    """A stored prefix, held where it lies in the daemon's memory. The bytes stay readable until this
    object and every view of it are gone, even when the session ends or the daemon dies. One thread at
    a time."""

    def __init__(self, handle: _Handle):
        self._handle = handle
        self.blocks: int = kvd.kvd_chain_blocks(handle)  # May be fewer than asked for.
        self.parts: int = kvd.kvd_chain_parts(handle)  # Of each block.

    def views(self) -> List[Optional[memoryview]]:
        """Every part (or the range of it that was asked for), block by block, read-only and in place;
        None for one that is not there. Trust no byte before `verify()`."""
        buffers = (library.Buffer * (self.blocks * self.parts))()
        check(kvd.kvd_chain_views(self._handle, 0, self.blocks, buffers, len(buffers)))
        return [self._view(b.data, b.size) if b.size else None for b in buffers]

    def verify(self) -> List[bool]:
        """For each of `views()`, whether it is what was put. One that is not must be treated as a
        miss; damage is reported to the daemon. Reads every byte."""
        good = ctypes.create_string_buffer(self.blocks * self.parts)
        check(kvd.kvd_chain_verify(self._handle, 0, self.blocks, good, len(good)))
        return [byte == 1 for byte in good.raw]

    def _view(self, address: int, size: int) -> memoryview:
        bytes_in_place = (ctypes.c_ubyte * size).from_address(address)
        bytes_in_place.hold = self._handle  # As long as a view lives, so does the hold.
        return memoryview(bytes_in_place).cast("B").toreadonly()


class Client:
    """A connection to the daemon, which need not be there yet: the first call connects.

    endpoint: "unix:PATH"; "stream:unix:PATH" or "tcp:HOST:PORT" (with `tls`) without shared memory; None:
      $KVD_ENDPOINT, or where a daemon of this user, or that of the package, listens.
    timeout: of a call that names none, in seconds; None: 1 s.
    staging_bytes: shared memory for puts, at most 16 MiB, which is also the default.
    copy_loop: None: calibrated, once in a process, which takes some milliseconds.
    spin: how long a get or a lookup looks for its answer before its thread sleeps, in seconds, at most
      0.01: CPU time for a quicker answer. 60e-6 where the caller has a CPU for itself.
    """

    def __init__(self, endpoint: Optional[str] = None, *, timeout: Optional[float] = None,
                 staging_bytes: int = 0, copy_loop: Optional[str] = None, tls: Optional[Tls] = None,
                 spin: float = 0):
        options = library.ClientOptions.new()
        options.endpoint, options.timeout_us = _text(endpoint), _microseconds(timeout)
        options.staging_bytes, options.copy_loop = staging_bytes, _text(copy_loop)
        options.spin_us = _microseconds(spin)
        for field in dataclasses.fields(Tls) if tls is not None else ():
            setattr(options, f"tls_{field.name}", _text(getattr(tls, field.name)))
        handle = ctypes.c_void_p()
        check(kvd.kvd_client_create(ctypes.byref(options), ctypes.byref(handle)))
        self._handle = _Handle(handle, kvd.kvd_client_destroy)

    def connect(self, *, timeout: Optional[float] = None) -> None:
        """What a readiness probe asks; no call needs it first. Raises Unavailable."""
        check(kvd.kvd_client_connect(self._handle, _microseconds(timeout)))

    def register(self, descriptor: Descriptor, *, timeout: Optional[float] = None) -> Namespace:
        """The one call whose failure somebody should see: InvalidArgument names the field."""
        groups = (library.Group * len(descriptor.groups))(
            *((g.kind, g.window_tokens, g.shards, g.block_tokens, g.part_bytes)
              for g in descriptor.groups))
        extra = (library.Extra * len(descriptor.extra))(
            *((_text(name), _text(value)) for name, value in sorted(descriptor.extra.items())))
        given = library.NamespaceDescriptor.new()
        given.groups, given.group_count, given.extra, given.extra_count = groups, len(groups), extra, len(extra)
        for field in dataclasses.fields(descriptor):
            if field.name not in ("groups", "extra"):
                value = getattr(descriptor, field.name)
                setattr(given, field.name, _text(value) if isinstance(value, str) else value)
        handle = ctypes.c_void_p()
        check(kvd.kvd_namespace_register(self._handle, ctypes.byref(given), _microseconds(timeout),
                                         ctypes.byref(handle)))
        return Namespace(_Handle(handle, kvd.kvd_namespace_destroy))

    def lookup(self, namespace: Namespace, keys: Keys, *, parent: Optional[bytes] = None,
               lease: float = 0, timeout: Optional[float] = None) -> LookupResult:
        """The longest stored prefix of up to 32,768 blocks, kept findable for `lease` seconds (at
        most 600; 0: no lease)."""
        packed, blocks = _pack(namespace, keys)
        options = _lookup_options(namespace, parent, lease, timeout)
        result = library.LookupResult.new()
        check(kvd.kvd_lookup(self._handle, namespace._handle, packed, blocks, ctypes.byref(options),
                             ctypes.byref(result)))
        return _lookup_result(result)

    def start_lookup(self, namespace: Namespace, keys: Keys, *, parent: Optional[bytes] = None,
                     lease: float = 0, timeout: Optional[float] = None) -> Pending:
        """The same, for a thread that must not wait: returns at once, and the answer is asked for by
        `Pending.poll()`. The timeout counts from now. ResourceExhausted: 256 wait already."""
        packed, blocks = _pack(namespace, keys)
        options = _lookup_options(namespace, parent, lease, timeout)
        handle = ctypes.c_void_p()
        check(kvd.kvd_lookup_start(self._handle, namespace._handle, packed, blocks,
                                   ctypes.byref(options), ctypes.byref(handle)))
        return Pending(_Handle(handle, kvd.kvd_pending_destroy))

    def release_lease(self, lease: int) -> None:
        """Ends a lease; the news rides on a later call. 0 is ignored."""
        kvd.kvd_release_lease(self._handle, lease)

    def get(self, namespace: Namespace, keys: Keys, targets: Buffers, *,
            parts: Optional[Parts] = None, parent: Optional[bytes] = None, lease: float = 0,
            max_blocks: int = 0, timeout: Optional[float] = None) -> GetResult:
        """Finds, copies and verifies up to 2,048 blocks in one round trip.

        targets: a writable buffer for each part of each block, of the part's size; or one for all of
          them, back to back. What lies after `GetResult.blocks` holds garbage.
        parts: which (group, shard) of each block; None: all.
        max_blocks: copy so many of the list, from its start, which then are those that need targets; 0:
          all. The rest of the list says how deep the caller means to read, so that what only a shorter
          prefix would need, of a window or a state, may be missing.
        """
        packed, blocks = _pack(namespace, keys)
        wanted = min(blocks, max_blocks) if max_blocks else blocks
        options = library.GetOptions.new()
        options.max_blocks = max_blocks
        options.timeout_us, options.lease_us = _microseconds(timeout), _microseconds(lease)
        options.parent = _parent(namespace, parent)
        _set_parts(options, parts)
        result = library.GetResult.new()
        with Borrowed(writable=True) as borrowed:
            array = borrowed.array(targets, namespace._sizes(parts, wanted))
            check(kvd.kvd_get(self._handle, namespace._handle, packed, blocks, array, len(array),
                              ctypes.byref(options), ctypes.byref(result)))
        return GetResult(result.hit_blocks, result.blocks, result.damaged, result.lease_id)

    def load(self, namespace: Namespace, keys: Keys, *, parts: Optional[Parts] = None,
             range_offset: int = 0, range_bytes: int = 0,
             timeout: Optional[float] = None) -> Chain:
        """Holds the stored prefix of up to 2,048 blocks, to be read in place; or `range_bytes` bytes
        (0: to the end) from `range_offset` of every part."""
        packed, blocks = _pack(namespace, keys)
        options = library.LoadOptions.new()
        options.timeout_us = _microseconds(timeout)
        options.range_offset, options.range_bytes = range_offset, range_bytes
        _set_parts(options, parts)
        handle = ctypes.c_void_p()
        check(kvd.kvd_load(self._handle, namespace._handle, packed, blocks, ctypes.byref(options),
                           ctypes.byref(handle)))
        return Chain(_Handle(handle, kvd.kvd_chain_release))

    def put(self, namespace: Namespace, keys: Keys, sources: Buffers, *,
            parts: Optional[Parts] = None, parent: Optional[bytes] = None, wait: float = 0,
            announce: Optional[Sequence[bytes]] = None,
            timeout: Optional[float] = None) -> PutResult:
        """Stores what is missing of up to 2,048 blocks.

        sources: as the targets of `get`, read only.
        parts: those that this caller brings; a block is visible when all have come. None: all.
        wait: how long to wait for blocks that others are producing.
        announce: what cache-aware routers are told of each block, made by `kvd.announcement`; empty of one:
            nothing. At most 16 KiB each.
        """
        packed, blocks = _pack(namespace, keys)
        options = library.PutOptions.new()
        options.timeout_us, options.wait_us = _microseconds(timeout), _microseconds(wait)
        options.parent = _parent(namespace, parent)
        _set_parts(options, parts)
        states = (ctypes.c_uint8 * blocks)()
        result = library.PutResult.new()
        result.block_states, result.state_capacity = ctypes.addressof(states), blocks
        with Borrowed(writable=False) as borrowed:
            if announce is not None:
                options.announce = borrowed.array(list(announce), [0] * len(announce))
                options.announce_count = len(announce)
            array = borrowed.array(sources, namespace._sizes(parts, blocks))
            check(kvd.kvd_put(self._handle, namespace._handle, packed, blocks, array, len(array),
                              ctypes.byref(options), ctypes.byref(result)))
        return PutResult(result.stored, result.present,
                         [_PUT_STATES[state] for state in states[:result.state_count]])

    def adopt_memory(self, fd: int, memory: Bytes, *, timeout: Optional[float] = None) -> None:
        """Shows the daemon memory of the caller, so that a put whose sources all lie in it is not
        copied on this side. `fd` is a memfd sealed against shrinking, `memory` (a writable buffer) its
        first bytes, mapped shared, until the client is gone. Once for a client; see
        kvd_adopt_memory() in kvd.h for what else it asks."""
        with Borrowed(writable=True) as borrowed:
            address, size = borrowed.locate(memory)
            check(kvd.kvd_adopt_memory(self._handle, fd, address, size, _microseconds(timeout)))

    def pin(self, namespace: Namespace, key: bytes, *, owner: str, budget_bytes: int = 0,
            ttl: float = 0, timeout: Optional[float] = None) -> PinResult:
        """Keeps the chain that ends at `key` until unpinned, or for `ttl` seconds (0: an hour); longer
        than the session. `owner` is whom an operator would ask, 1 to 256 bytes. NotFound: no such
        block. ResourceExhausted: more than `budget_bytes` bytes (0: no bound)."""
        packed, _ = _pack(namespace, [key])
        options = library.PinOptions.new()
        options.timeout_us, options.owner = _microseconds(timeout), _text(owner)
        options.budget_bytes, options.ttl_us = budget_bytes, _microseconds(ttl)
        result = library.PinResult.new()
        check(kvd.kvd_pin(self._handle, namespace._handle, packed, ctypes.byref(options),
                          ctypes.byref(result)))
        return PinResult(result.pin_id, result.blocks, result.bytes)

    def unpin(self, pin: int, *, timeout: Optional[float] = None) -> None:
        check(kvd.kvd_unpin(self._handle, pin, _microseconds(timeout)))

    def flush(self, *, timeout: Optional[float] = None) -> None:
        """Sends now what is owed to the daemon (ended holds and leases), which else rides on later
        calls."""
        check(kvd.kvd_flush(self._handle, _microseconds(timeout)))

    def stats(self) -> Stats:
        counted = library.Stats.new()
        check(kvd.kvd_client_stats(self._handle, ctypes.byref(counted)))
        return Stats(*(getattr(counted, field.name) for field in dataclasses.fields(Stats)))

    @property
    def copy_loops(self) -> str:
        """The loops that calibration chose, for a log line."""
        return kvd.kvd_client_copy_loops(self._handle).decode()


def _microseconds(seconds: Optional[float]) -> int:
    """Rounded up, so that a short time is not none."""
    if seconds is None:
        return 0
    if not 0 <= seconds < 1e12:
        raise ValueError(f"{seconds} is no time in seconds")
    return math.ceil(seconds * 1e6)


def _text(text: Optional[str]) -> Optional[bytes]:
    if text is None:
        return None
    if "\0" in text:
        raise ValueError(f"{text!r} has a zero byte")
    return text.encode()


def _pack(namespace: Namespace, keys: Keys) -> Tuple[bytes, int]:
    packed = bytes(keys) if isinstance(keys, (bytes, bytearray, memoryview)) else b"".join(keys)
    blocks, rest = divmod(len(packed), namespace.hash_bytes)
    if rest:
        raise ValueError(f"keys: {len(packed)} bytes are no number of hashes of "
                         f"{namespace.hash_bytes}")
    return packed, blocks


def _parent(namespace: Namespace, parent: Optional[bytes]) -> Optional[bytes]:
    if parent is not None and len(parent) != namespace.hash_bytes:
        raise ValueError(f"parent: {len(parent)} bytes, not {namespace.hash_bytes}")
    return parent


def _set_parts(options: Any, parts: Optional[Parts]) -> None:
    if parts is None:
        return
    if not parts:
        raise ValueError("parts: none")
    options.parts = (library.Part * len(parts))(*(tuple(part) for part in parts))
    options.part_count = len(parts)


def _lookup_options(namespace: Namespace, parent: Optional[bytes], lease: float,
                    timeout: Optional[float]) -> library.LookupOptions:
    options = library.LookupOptions.new()
    options.timeout_us, options.lease_us = _microseconds(timeout), _microseconds(lease)
    options.parent = _parent(namespace, parent)
    return options


def _lookup_result(result: library.LookupResult) -> LookupResult:
    return LookupResult(result.hit_blocks, result.lease_id, result.load_time_us / 1e6,
                        {tier: result.tier_blocks[tier] for tier in Tier if result.tier_blocks[tier]})
