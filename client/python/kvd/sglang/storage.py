"""KvdStorage: SGLang's interface of a storage backend, on pages where they lie in the host pools.

Threads: SGLang calls from four of its own, at most one of them storing. Every call of the daemon has a deadline,
and after one that ran out nothing is asked for a second, so that a daemon that hangs costs little.
Errors: whatever goes wrong with the daemon is a miss, or a page that is not stored. What cannot work at all
is refused when the backend is attached.

SGLang stores the pages of side pools (sliding windows, states) before those of the KV pool, and only
the KV pool's calls have whole chains. As nothing is stored below a page that is not there, side pages
wait, in their host memory that SGLang keeps until the operation has ended, for the call that stores their page.
"""

import logging
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, TypeVar

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolTransferResult

import kvd

from ..daemon import Daemon
from . import layout
from .options import Options, Refused
from .pages import CannotDescribe, PoolPages, read, write

logger = logging.getLogger("sglang.kvd")

KV = "kv"
MAX_LOOKUP_BLOCKS = 32768
MAX_LEASES = 1024
QUIET_SECONDS = 1.0  # After a deadline that ran out.
Answer = TypeVar("Answer")


class _Pool:
    """A host pool and its connection: only one memory can be adopted by a client."""

    def __init__(self, pages: PoolPages, endpoint: Optional[str], side: str):
        self.pages = pages
        self.daemon = Daemon(endpoint, f"{side}, pool {pages.name}", logger)
        self.layout = layout.PoolLayout((), 0)


class _Waiting:
    """Pages of a side pool that wait until their blocks are there."""

    def __init__(self, pool: _Pool, keys: List[bytes], indices: Any, parent: Optional[bytes]):
        self.pool, self.keys, self.indices, self.parent = pool, keys, indices, parent

    def take(self, stored: Sequence[bytes]) -> "Optional[_Waiting]":
        """Those at its head that are in `stored`."""
        there = set(stored)
        count = next((i for i, key in enumerate(self.keys) if key not in there), len(self.keys))
        if count == 0:
            return None
        size = self.pool.pages.page_size
        taken = _Waiting(self.pool, self.keys[:count], self.indices[:count * size], self.parent)
        self.parent = self.keys[count - 1]
        self.keys, self.indices = self.keys[count:], self.indices[count * size:]
        return taken


class KvdStorage(HiCacheStorage):
    def __init__(self, storage_config: Any, kwargs: Optional[Dict[str, Any]] = None):
        if not hasattr(HiCacheStorage, "on_host_pools_registered"):
            raise Refused("kvd: this SGLang does not tell which host pools there are; update it to 0.5.23")
        self._config = storage_config
        self._options = Options.of(storage_config.extra_config)
        layout.check(storage_config)
        self._host_pools: Dict[str, Any] = {}
        self._pools: Dict[str, _Pool] = {}
        self._quiet_until = 0.0  # On the monotonic clock; written by any thread, as is the next.
        self._leases: Dict[bytes, int] = {}  # By the last block that they keep.
        self._waiting: List[_Waiting] = []  # What follows is of the thread that stores.
        self._stored_last: Optional[bytes] = None  # Of the KV pool, in the operation under way.
        self._said_prefix = False

    # ---- start and end --------------------------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        super().register_mem_pool_host(mem_pool_host)
        self._host_pools[KV] = mem_pool_host

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        if self._pools:
            raise Refused(f"kvd: the host pool {host_pool_name} came after the others, whose pages are stored "
                          "already; restart SGLang with it")
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._host_pools[str(host_pool_name)] = host_pool

    def on_host_pools_registered(self) -> None:
        """Raises Refused, CannotDescribe or kvd.InvalidArgument where this engine cannot be served."""
        layout.check_pools(self._config, list(self._host_pools))
        pages = [PoolPages(name, pool) for name, pool in self._host_pools.items()]
        window = layout.window_tokens(self._options, list(self._host_pools))
        groups, layouts = layout.arrange(self._config, pages, window)
        descriptor = layout.descriptor(self._config, self._options, pages, groups)
        for one in pages:
            pool = _Pool(one, self._options.endpoint, f"rank {self._config.pp_rank}.{self._config.tp_rank}")
            pool.layout = layouts[one.name]
            self._pools[one.name] = pool
        for pool in self._pools.values():
            pool.daemon.register(descriptor, _memory(pool.pages))
        self._check_copies(descriptor)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.daemon.stop()

    def clear(self) -> None:
        logger.warning("kvd: what is stored stays; if the weights changed, restart SGLang with another "
                       "weights_revision in --hicache-storage-backend-extra-config")

    def _check_copies(self, descriptor: kvd.Descriptor) -> None:
        """Stores a page of every pool and gets it back, so that a pool which was described wrongly, or is not
        what the daemon sees, is found before it holds anything. The page is the same at every start."""
        key = layout.self_test_key(descriptor)
        tested = []
        try:
            for pool in self._pools.values():
                indices = pool.pages.pool.alloc(pool.pages.page_size)
                if indices is None:
                    return  # Attached in the middle of work; the pool has no page to spare.
                tested.append((pool, indices))
                pool.pages.check_reads_back(indices)
            for pool, indices in tested:
                if not all(self._put(pool, [key], indices, None)):
                    return  # The daemon is away, or another rank's part is missing.
            for pool, indices in tested:
                places = pool.pages.places(indices, 1)
                write(places, [bytes(place.size) for place in places])
                if all(self._get(pool, [key], indices, None)) and read(places) != pool.pages.pattern():
                    raise CannotDescribe(f"kvd: a page of {pool.pages.description} comes back from the daemon as other "
                                         "bytes; start SGLang without \"allocator\", or report this")
        finally:
            for pool, indices in tested:
                pool.pages.pool.free(indices)

    # ---- finding --------------------------------------------------------------------------------

    def batch_exists(self, keys: List[str], extra_info: Any = None) -> int:
        pool = self._pools[KV]
        hashes = _hashes(keys[:MAX_LOOKUP_BLOCKS])
        found = self._ask(pool, None, lambda client, namespace: client.lookup(
            namespace, hashes, parent=_parent(extra_info), lease=self._options.lease_ms / 1000,
            timeout=self._options.lookup_timeout_ms / 1000))
        if found is None:
            return 0
        if found.blocks and found.lease:
            if len(self._leases) >= MAX_LEASES:
                self._leases.clear()  # They run out by themselves.
            self._leases[hashes[found.blocks - 1]] = found.lease
        return found.blocks

    def batch_exists_v2(self, keys: List[str], pool_transfers: Any = None,
                        extra_info: Any = None) -> PoolTransferResult:
        """All pools are parts of one block: the daemon's answer is for all of them."""
        pages = self.batch_exists(keys, extra_info)
        return PoolTransferResult(pages, {transfer.name: pages for transfer in pool_transfers or ()},
                                  [pages] if pages else [])

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    # ---- loading --------------------------------------------------------------------------------

    def batch_get_v1(self, keys: List[str], host_indices: Any, extra_info: Any = None) -> List[bool]:
        good = self._get(self._pools[KV], _hashes(keys), host_indices, _parent(extra_info))
        if len(self._pools) == 1:
            self._loaded(keys)
        return good

    def batch_get_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> Dict[str, List[bool]]:
        good = {transfer.name: self._get(self._pools[str(transfer.name)], _hashes(transfer.keys or []),
                                         transfer.host_indices, _parent(extra_info))
                for transfer in transfers}
        for transfer in transfers:
            self._loaded(transfer.keys or [])
        return good

    def _loaded(self, keys: List[str]) -> None:
        """The lease of a chain that has been loaded to its end is over. Nobody says so of one that is not."""
        lease = self._leases.pop(bytes.fromhex(keys[-1]), 0) if keys else 0
        if lease:
            self._pools[KV].daemon.client.release_lease(lease)

    def _get(self, pool: _Pool, keys: List[bytes], indices: Any, parent: Optional[bytes]) -> List[bool]:
        if not keys or indices is None:
            return [False] * len(keys)
        places = pool.pages.places(indices, len(keys))
        got = self._ask(pool, None, lambda client, namespace: client.get(
            namespace, keys, places, parts=pool.layout.parts, parent=parent,
            timeout=self._options.load_timeout_ms / 1000))
        good = got.blocks if got else 0
        if not pool.layout.needed:
            return [number < good for number in range(len(keys))]
        # Of a window what its end needs was copied, and only that.
        first = len(keys) - pool.layout.needed if good == len(keys) else len(keys)
        return [number >= first for number in range(len(keys))]

    # ---- storing --------------------------------------------------------------------------------

    def batch_set_v1(self, keys: List[str], host_indices: Any, extra_info: Any = None) -> List[bool]:
        if not self._has_prefix(extra_info):
            return [False] * len(keys)
        hashes, parent = _hashes(keys), _parent(extra_info)
        if self._stored_last is not None and parent != self._stored_last:
            self._waiting.clear()  # Of another operation, whose host memory may be anybody's now.
        stored = self._put(self._pools[KV], hashes, host_indices, parent)
        self._stored_last = hashes[-1]
        for side in list(self._waiting):
            there = side.take([key for key, good in zip(hashes, stored) if good])
            if there is not None:
                self._put(there.pool, there.keys, there.indices, there.parent)
        self._waiting = [side for side in self._waiting if side.keys and all(stored)]
        return stored

    def batch_set_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> Dict[str, List[bool]]:
        """Told as stored before it is: what is lost later on is a miss."""
        if self._stored_last is not None:  # The first call of an operation.
            self._waiting.clear()
            self._stored_last = None
        accepted = self._has_prefix(extra_info)
        for transfer in transfers if accepted else ():
            self._waiting.append(_Waiting(self._pools[str(transfer.name)], _hashes(transfer.keys or []),
                                          transfer.host_indices, _parent(extra_info)))
        return {transfer.name: [accepted] * len(transfer.keys or ()) for transfer in transfers}

    def _put(self, pool: _Pool, keys: List[bytes], indices: Any, parent: Optional[bytes]) -> List[bool]:
        places = pool.pages.places(indices, len(keys))
        put = self._ask(pool, None, lambda client, namespace: client.put(
            namespace, keys, places, parts=pool.layout.parts, parent=parent,
            timeout=self._options.save_timeout_ms / 1000))
        if put is None:
            return [False] * len(keys)
        return [state <= kvd.PutState.PARKED for state in put.states]

    def _has_prefix(self, extra_info: Any) -> bool:
        """Without the hashes before it a page has no place in a chain."""
        if getattr(extra_info, "prefix_keys", None) is not None:
            return True
        if not self._said_prefix:
            self._said_prefix = True
            logger.error('kvd: nothing is stored: add "hicache_storage_pass_prefix_keys": true to '
                         "--hicache-storage-backend-extra-config")
        return False

    # ---- calls without pointers, which SGLang makes only without "interface_v1" -------------------

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> None:
        return None

    def batch_get(self, keys: List[str], target_locations: Any = None, target_sizes: Any = None) -> List[None]:
        return [None] * len(keys)

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return False

    def batch_set(self, keys: List[str], values: Any = None, target_locations: Any = None,
                  target_sizes: Any = None) -> bool:
        return False

    # ---- the daemon -----------------------------------------------------------------------------

    def _ask(self, pool: _Pool, missed: Answer, call: Callable[[kvd.Client, kvd.Namespace], Answer]) -> Answer:
        """What `call` answers; `missed` where the daemon is away or was too slow just now."""
        namespace = pool.daemon.namespace
        if namespace is None or time.monotonic() < self._quiet_until:
            return missed
        try:
            answer = call(pool.daemon.client, namespace)
        except kvd.KvdError as error:
            if isinstance(error, kvd.DeadlineExceeded):
                self._quiet_until = time.monotonic() + QUIET_SECONDS
            pool.daemon.note(error)
            return missed
        pool.daemon.note(None)
        return answer


def _hashes(keys: Sequence[str]) -> List[bytes]:
    return [bytes.fromhex(key) for key in keys]


def _parent(extra_info: Any) -> Optional[bytes]:
    prefix = getattr(extra_info, "prefix_keys", None)
    return bytes.fromhex(prefix[-1]) if prefix else None


def _memory(pages: PoolPages) -> Any:
    """What the daemon can map of a pool: the memfd of `"allocator": "shm"` and the tensor that lies in it."""
    fd, tensor = getattr(pages.pool, "fd", None), getattr(pages.pool, "kv_buffer", None)
    return (fd, tensor) if fd is not None and hasattr(tensor, "data_ptr") else None
