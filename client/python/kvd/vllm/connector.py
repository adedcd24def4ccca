"""KvdConnector: vLLM's interface, forwarded to the side that this process has.

vLLM makes one in the engine's process and one in each worker. Its interface grows with almost every
version, so what a version has is asked for by name, never by number; `messages.py` is the only thing that
both sides share.
"""

from typing import Any, Dict, List, Optional, Set, Tuple

from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.distributed.kv_transfer.kv_connector.v1.base import (KVConnectorBase_V1, KVConnectorRole,
                                                               SupportsHMA)

import kvd

from . import layout
from .log import logger
from .messages import ToWorkers
from .options import Options
from .scheduler import SchedulerSide
from .stats import KvdPromMetrics, KvdStats
from .worker import WorkerSide

# Of vLLM since 0.28: a load that failed is told by its request.
TransferResults = getattr(base, "KVConnectorTransferResults", None)


class KvdConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any):
        super().__init__(vllm_config, role, kv_cache_config)
        options = Options.of(vllm_config)
        layout.check_parallelism(vllm_config)
        layout.check_groups(kv_cache_config, TransferResults is not None)
        layout.hash_seed(vllm_config)
        self._by_request = len(kv_cache_config.kv_cache_groups) > 1
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerSide(vllm_config, kv_cache_config, options)
        else:
            from vllm.distributed.parallel_state import get_pp_group, get_tp_group
            self._worker = WorkerSide(vllm_config, kv_cache_config, options,
                                      get_tp_group().rank_in_group, get_pp_group().rank_in_group)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # A save that is lost is a miss later on.

    def shutdown(self) -> None:
        (self._scheduler if self.role == KVConnectorRole.SCHEDULER else self._worker).shutdown()

    # ---- a worker -------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: Dict[str, Any]) -> None:
        self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> Any:
        return self._worker.layout

    def handle_preemptions(self, kv_connector_metadata: ToWorkers) -> None:
        self._worker.fence(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._worker.start_loads(self._get_connector_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded layer by layer: a request runs when its load has ended."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any,
                      **kwargs: Any) -> None:
        """Nor saved: a CUDA graph would not call this."""

    def wait_for_save(self) -> None:
        self._worker.start_saves(self._get_connector_metadata())

    def get_finished(self, finished_req_ids: Set[str]) -> Tuple[Optional[Set[str]],
                                                                Optional[Set[str]]]:
        finished, _ = self._worker.finished_loads()
        return None, finished

    def get_transfer_results(self, finished_req_ids: Set[str]) -> Any:
        finished, failed = self._worker.finished_loads()
        if not self._by_request:
            failed = set()  # Told by pages, which keeps what was loaded before.
        return TransferResults(finished_recving=finished, failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> Set[int]:
        invalid = self._worker.invalid_pages()
        return set() if self._by_request else invalid

    def build_connector_worker_meta(self) -> Any:
        return self._worker.take_told()

    def get_kv_connector_stats(self) -> Any:
        if self.role == KVConnectorRole.WORKER:
            stats = self._worker.take_stats()
        else:
            stats, self._scheduler.stats = self._scheduler.stats, KvdStats()
        return None if stats.is_empty() else stats

    # ---- the scheduler --------------------------------------------------------------------------

    def set_xfer_handshake_metadata(self, metadata: Dict[int, Any]) -> None:
        self._scheduler.set_layouts([metadata[rank] for rank in sorted(metadata)])

    def set_xfer_handshake_metadata_pp_aware(self, metadata: Dict[Tuple[int, int], Any]) -> None:
        self._scheduler.set_layouts([metadata[ranks] for ranks in sorted(metadata)])

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self._scheduler.bind_pool(gpu_block_pool)

    def on_new_request(self, request: Any) -> None:
        self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Any,
                                   num_computed_tokens: int) -> Tuple[Optional[int], bool]:
        return self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def get_external_cache_hit_sources(self, request: Any,
                                       num_external_tokens: int) -> Dict[Any, int]:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource  # As new as the call.
        source_of = {kvd.Tier.HBM: CacheHitSource.DEVICE, kvd.Tier.DRAM: CacheHitSource.HOST,
                     kvd.Tier.FAR: CacheHitSource.HOST, kvd.Tier.NVME: CacheHitSource.DISK,
                     kvd.Tier.POOL: CacheHitSource.EXTERNAL_UNSPECIFIED}
        split: Dict[Any, int] = {}
        for tier, tokens in self._scheduler.hit_tiers(request, num_external_tokens).items():
            split[source_of[tier]] = split.get(source_of[tier], 0) + tokens
        return split

    def build_connector_meta(self, scheduler_output: Any) -> ToWorkers:
        return self._scheduler.plan(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        self._scheduler.on_output(connector_output)

    def request_finished(self, request: Any,
                         block_ids: List[int]) -> Tuple[bool, Optional[Dict[str, Any]]]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
            self, request: Any,
            block_ids: Tuple[List[int], ...]) -> Tuple[bool, Optional[Dict[str, Any]]]:
        self._scheduler.finished(request)
        return False, None

    def has_pending_push_work(self) -> bool:
        return self._scheduler.has_saves

    def has_pending_block_frees(self) -> bool:
        return self._scheduler.has_saves

    def reset_cache(self) -> Optional[bool]:
        """What is stored belongs to the weights' name, not to this engine."""
        logger.warning("kvd: what is stored stays; if the weights changed, restart the engine with another "
                       "weights_revision in kv_connector_extra_config")
        return False

    @classmethod
    def build_kv_connector_stats(cls, data: Optional[Dict[str, Any]] = None) -> KvdStats:
        return KvdStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, metric_types: Dict[Any, Any], labelnames: List[str],
                           per_engine_labelvalues: Dict[int, List[object]]) -> KvdPromMetrics:
        return KvdPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
