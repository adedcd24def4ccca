"""Of vLLM what the scheduler's side of the connector touches: the real types where vLLM is installed, and
else as little as stands in for them, so that the order of calls can be tested where no engine is."""

import collections
import dataclasses
import logging
from types import SimpleNamespace

from stand_in import is_installed, module


def install():
    """Before `kvd.vllm` is imported. True where they are fakes."""
    if is_installed("vllm"):
        return False

    @dataclasses.dataclass
    class Stats:
        data: dict = dataclasses.field(default_factory=dict)

    names = ["vllm.distributed", "vllm.distributed.kv_transfer", "vllm.v1",
             "vllm.distributed.kv_transfer.kv_connector",
             "vllm.distributed.kv_transfer.kv_connector.v1", "vllm.v1.core"]
    module("vllm", __version__="0.0.0")
    for name in names:
        module(name)
    empty = type("Metadata", (), {})
    module("vllm.distributed.kv_transfer.kv_connector.v1.base", KVConnectorMetadata=empty,
           KVConnectorHandshakeMetadata=empty, KVConnectorWorkerMetadata=empty)
    module("vllm.distributed.kv_transfer.kv_connector.v1.metrics", KVConnectorStats=Stats,
           KVConnectorPromMetrics=object)
    module("vllm.logger", init_logger=logging.getLogger)
    module("vllm.v1.core.kv_cache_utils", DEFAULT_NONE_HASH_SEED="vllm-none-hash",
           resolve_kv_cache_block_sizes=lambda config, _: (
               0, min(group.kv_cache_spec.block_size for group in config.kv_cache_groups)))
    specs = {name: dataclasses.make_dataclass(name, ["block_size", ("sliding_window", int, 0)])
             for name in ("FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec", "MambaSpec",
                          "ChunkedLocalAttentionSpec")}
    module("vllm.v1.kv_cache_interface", **specs)
    return True


def config(role="kv_both", ranks=1, extra=None, endpoint=None, algorithm="sha256", **parallel):
    """As much of a VllmConfig as is looked at."""
    return SimpleNamespace(
        model_config=SimpleNamespace(model="test/tiny", revision=None, dtype="float32", quantization=None),
        cache_config=SimpleNamespace(cache_dtype="auto", prefix_caching_hash_algo=algorithm, block_size=16,
                                     enable_prefix_caching=True, prefix_match_unit=None),
        parallel_config=SimpleNamespace(**{"tensor_parallel_size": ranks, "pipeline_parallel_size": 1,
                                           "world_size": ranks, "decode_context_parallel_size": 1, **parallel}),
        kv_transfer_config=SimpleNamespace(
            kv_role=role, kv_connector_extra_config={"endpoint": endpoint, **(extra or {})}),
        speculative_config=None)


def cache_config(*specs, num_blocks=1000):
    """As much of a KVCacheConfig; one group for each (class name, block size, window)."""
    groups = []
    for number, (name, block_size, window) in enumerate(specs):
        groups.append(SimpleNamespace(kv_cache_spec=spec(name, block_size, window),
                                      layer_names=[f"layer.{number}"]))
    return SimpleNamespace(kv_cache_groups=groups, num_blocks=num_blocks)


def spec(name, block_size, window=0):
    """Of the real class, without the fields that nobody here looks at."""
    from vllm.v1 import kv_cache_interface
    made = object.__new__(getattr(kv_cache_interface, name))
    object.__setattr__(made, "block_size", block_size)
    object.__setattr__(made, "sliding_window", window)
    return made


class Request:
    def __init__(self, name, tokens, block=16, seed=0, prompt_tokens=None):
        self.request_id = name
        self.num_tokens = tokens
        self.num_prompt_tokens = prompt_tokens or tokens
        self.block_hashes = hashes(tokens // block, seed)
        self.all_token_ids = list(range(tokens))


def hashes(blocks, seed=0):
    return [bytes([seed]) * 24 + i.to_bytes(8, "big") for i in range(blocks)]


class Pool:
    """Counts references, and refuses what the real one would not survive."""

    def __init__(self):
        self.references = collections.Counter()
        self.blocks = {i: i for i in range(10000)}

    def touch(self, blocks):
        assert 0 not in blocks, "the null block"
        self.references.update(blocks)

    def free_blocks(self, blocks):
        for block in blocks:
            assert self.references[block] > 0, f"{block} was not held"
            self.references[block] -= 1

    def held(self):
        return sorted(block for block, count in self.references.items() for _ in range(count))


def step(new=(), cached=(), tables=None, resumed=()):
    """A SchedulerOutput. new: (name, tokens computed before, tokens scheduled, page ids by group);
    cached: the same with new page ids or None. tables: a newer vLLM's own word on all page ids."""
    scheduled = {name: count for name, _, count, _ in (*new, *cached)}
    made = SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=name, num_computed_tokens=computed, block_ids=ids)
                            for name, computed, _, ids in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, *_ in cached],
            num_computed_tokens=[computed for _, computed, *_ in cached],
            new_block_ids=[ids for *_, ids in cached], resumed_req_ids=set(resumed)),
        num_scheduled_tokens=scheduled)
    if tables is not None:
        made.kv_connector_block_state = SimpleNamespace(get_block_ids=tables.get)
    return made


def output(loaded=(), failed=(), invalid=(), told=None):
    """A KVConnectorOutput."""
    return SimpleNamespace(finished_recving=set(loaded), finished_sending=set(),
                           failed_recving=set(failed), invalid_block_ids=set(invalid),
                           kv_connector_worker_meta=told)
