"""What vLLM's log and metrics show of the connector: counts of the last interval, added up over workers."""

from dataclasses import dataclass
from typing import Any, Dict, List

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (KVConnectorPromMetrics,
                                                                  KVConnectorStats)

# Name -> what it counts. Blocks are kvd's.
COUNTS = {
    "lookups": "lookups answered by the daemon",
    "lookup_failures": "lookups that became misses because the daemon was away or late",
    "hit_blocks": "blocks that lookups found",
    "loaded_blocks": "blocks that a worker loaded and verified",
    "load_failures": "loads that ended before their last block",
    "saved_blocks": "blocks of which a worker stored its parts, or found them present",
    "save_failures": "saves that ended before their last block",
    "dropped_saves": "saves that were not begun because too many were under way",
}


@dataclass
class KvdStats(KVConnectorStats):
    def add(self, name: str, count: int = 1) -> None:
        self.data[name] = self.data.get(name, 0) + count

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> "KvdStats":
        for name, count in other.data.items():
            self.add(name, count)
        return self

    def reduce(self) -> Dict[str, Any]:
        return dict(self.data)

    def is_empty(self) -> bool:
        return not self.data


class KvdPromMetrics(KVConnectorPromMetrics):
    """kvd_connector_NAME_total on vLLM's own /metrics."""

    def __init__(self, vllm_config: Any, metric_types: Dict[Any, Any], labelnames: List[str],
                 per_engine_labelvalues: Dict[int, List[object]]):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {}
        for name, what in COUNTS.items():
            counter = self._counter_cls(name=f"vllm:kvd_connector_{name}", documentation=f"kvd: {what}.",
                                        labelnames=labelnames)
            self._counters[name] = {engine: counter.labels(*values)
                                    for engine, values in per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data: Dict[str, Any], engine_idx: int = 0) -> None:
        for name, count in transfer_stats_data.items():
            self._counters[name][engine_idx].inc(count)
