"""KvdTier: the daemon below vLLM's own offloading to host memory, for those who use that already.

    --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
      "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 10000000000,
        "secondary_tiers": [{"type": "KvdTier", "module_path": "kvd.vllm_tier", "endpoint": "unix:PATH"}]}}'

vLLM names chunks one by one, in any order and without what comes before them: each is a block of its own, with no
parent. Bytes go between vLLM's shared memory and the daemon without a copy in Python.

Threads: vLLM's scheduler calls; nothing waits for the daemon but `drain_jobs`. One thread stores, one loads, and
one, of vLLM's AsyncLookupManager, looks up. Errors: the daemon away or late is a miss, or a job that failed.
"""

import ctypes
import hashlib
import json
import math
import queue
import time
from collections.abc import Iterable
from typing import Any, Callable, Dict, List, Optional

import vllm
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.file_mapper import FileMapper
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

import kvd

from .daemon import Daemon
from .mover import Mover

logger = init_logger("vllm.kvd")  # Below vLLM's own, so that its log shows it.

MAX_PART_BYTES = 64 << 20


class KvdTier(SecondaryTierManager):
    medium = Medium.CPU  # The daemon's fastest; vLLM asks for one word.

    def __init__(self, offloading_spec: Any, primary_kv_view: memoryview, tier_type: str,
                 endpoint: Optional[str] = None, weights_revision: str = "", lookup_timeout_ms: int = 100,
                 load_timeout_ms: int = 3000, save_timeout_ms: int = 3000, lease_ms: int = 10000,
                 **options: Any):
        """`options` are what vLLM itself gives or knows (backpressure_detector, locality)."""
        options.pop("locality", None)
        super().__init__(offloading_spec, primary_kv_view, tier_type, **options)
        self._row = primary_kv_view.strides[0]  # Bytes of a chunk.
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(primary_kv_view.cast("B")))
        self._load_seconds, self._save_seconds = load_timeout_ms / 1000, save_timeout_ms / 1000
        self._lookup_seconds, self._lease_seconds = lookup_timeout_ms / 1000, lease_ms / 1000
        self._daemon = Daemon(endpoint, "tier", logger)
        self._daemon.register(_descriptor(offloading_spec, self._row, weights_revision))
        self._finished: "queue.SimpleQueue[JobResult]" = queue.SimpleQueue()
        self._loading: Dict[int, List[bytes]] = {}  # Keys of each job. The scheduler's only.
        self._lookups = _Lookups(self, tier_type)
        self._saver = Mover("kvd-tier-save", self._save, logger)
        self._loader = Mover("kvd-tier-load", self._load, logger)

    # ---- the scheduler's thread -------------------------------------------------------------------

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def lookup(self, key: bytes, req_context: Any) -> LookupResult:
        found = self._lookups.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def on_schedule_end(self, context: Any) -> None:
        self._lookups.flush()

    def on_request_finished(self, req_context: Any) -> None:
        self._lookups.cleanup(req_context.req_id)

    def submit_store(self, job_metadata: Any) -> None:
        self._saver.add(job_metadata)

    def submit_load(self, job_metadata: Any) -> None:
        self._loading[job_metadata.job_id] = list(job_metadata.keys)
        self._loader.add(job_metadata)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results = []
        while not self._finished.empty():
            result = self._finished.get()
            keys = self._loading.pop(result.job_id, [])
            if not result.success:  # Or the scheduler asks for the same again and again.
                self._lookups.mark_miss(set(keys) - set(result.successful_keys or ()))
            results.append(result)
        return results

    def has_pending_work(self) -> bool:
        return self._saver.busy or self._loader.busy

    def drain_jobs(self) -> None:
        self._saver.wait()
        self._loader.wait()

    def shutdown(self) -> None:
        self._daemon.stop()
        self._saver.stop()
        self._loader.stop()
        self._lookups.shutdown()

    # ---- threads of this tier ---------------------------------------------------------------------

    def exists(self, keys: List[bytes]) -> List[bool]:
        client, namespace = self._daemon.client, self._daemon.namespace
        found = [False] * len(keys)
        if namespace is None:
            return found
        try:
            for number, key in enumerate(keys):
                found[number] = client.lookup(namespace, [_block(key)], lease=self._lease_seconds,
                                              timeout=self._lookup_seconds).blocks == 1
            self._daemon.note(None)
        except kvd.KvdError as error:  # The rest is a miss.
            self._daemon.note(error)
        return found

    def _save(self, job: Any) -> None:
        self._run(job, self._save_seconds, lambda key, place, left: self._daemon.client.put(
            self._daemon.namespace, [_block(key)], place, timeout=left).states[0] <= kvd.PutState.PARKED)

    def _load(self, job: Any) -> None:
        self._run(job, self._load_seconds, lambda key, place, left: self._daemon.client.get(
            self._daemon.namespace, [_block(key)], place, timeout=left).blocks == 1)

    def _run(self, job: Any, seconds: float, move: Callable[[bytes, kvd.At, float], bool]) -> None:
        """All chunks of a job until one fails, or `seconds` after it was submitted, so that behind a daemon
        that hangs not each waits for its own time. Tells the end whatever happens."""
        good: List[bytes] = []
        deadline = job.submit_time + seconds
        try:
            if self._daemon.namespace is None:
                raise kvd.Unavailable("the daemon never was there")
            for key, chunk in zip(job.keys, job.chunk_ids):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise kvd.DeadlineExceeded(f"a job took longer than {seconds} s")
                if not move(key, kvd.At(self._base + int(chunk) * self._row, self._row), left):
                    break
                good.append(key)
            self._daemon.note(None)
        except kvd.KvdError as error:
            self._daemon.note(error)
        finally:
            self._finished.put(JobResult(job.job_id, len(good) == len(job.keys), successful_keys=tuple(good) or None,
                                         transfer_bytes=len(good) * self._row))


class _Lookups(AsyncLookupManager):
    def __init__(self, tier: KvdTier, tier_type: str):
        self._tier = tier
        super().__init__(tier_type)

    def batch_lookup(self, keys: List[bytes], req_context: Any) -> Iterable[bool]:
        return self._tier.exists(keys)


def _block(key: bytes) -> bytes:
    """vLLM's key is a hash of some length and the number of a group."""
    return hashlib.sha256(key).digest()


def _descriptor(spec: Any, row: int, weights_revision: str) -> kvd.Descriptor:
    """What vLLM's own tiers put into the names of their files, and its version."""
    fields = FileMapper.from_offloading_spec(root_dir="", offloading_spec=spec,
                                             blocks_per_file=spec.blocks_per_chunk).get_run_config()
    pieces = next(n for n in range(math.ceil(row / MAX_PART_BYTES), row + 1) if row % n == 0)
    tokens = spec.tokens_per_block[0] * spec.blocks_per_chunk
    return kvd.Descriptor(
        model=fields["model_name"], weights_revision=weights_revision, kv_dtype=str(fields["dtype"]),
        page_layout=hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest(),
        engine_family="vllm-tier", hash_algorithm="sha256",
        tensor_parallel=fields["tp_size"], pipeline_parallel=fields["pp_size"],
        groups=[kvd.Group(tokens, row // pieces, shards=pieces)],
        extra={"vllm": ".".join(vllm.__version__.split("+")[0].split(".")[:2]),
               "layout": str(getattr(spec.config, "kv_cache_layout", None))})
