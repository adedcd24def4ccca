"""What the bytes of a block mean: the namespace of an engine, and what is refused.

Pure functions of what vLLM says; no tensor is touched. All that, if it differed, would make the bytes
wrong is in the descriptor. What cannot be told, or not
served, is refused when the engine starts, in one sentence that says what to change.
"""

import hashlib
import math
import os
from typing import Any, Sequence, Tuple

import kvd

from .messages import GroupLayout, WorkerLayout


class Refused(ValueError):
    """This engine cannot be served as it is configured; the text says what to change."""


def hash_seed(vllm_config: Any) -> str:
    """What the engine's block hashes start from. Raises Refused where they differ from process to
    process, so that nothing stored would ever be found."""
    algorithm = vllm_config.cache_config.prefix_caching_hash_algo
    seed = os.environ.get("PYTHONHASHSEED")  # vLLM reads it too; nothing tells what it read.
    if algorithm == "builtin":
        raise Refused("kvd: block hashes of Python's builtin hash collide; start vLLM with "
                      "--prefix-caching-hash-algo sha256_cbor")
    if seed is not None:
        return seed
    from vllm.v1.core import kv_cache_utils
    default = getattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", None)
    if default is None or algorithm.startswith("xxhash"):
        raise Refused(f"kvd: block hashes by {algorithm} differ from process to process here; set "
                      "PYTHONHASHSEED=0 (or any number) in the environment of every engine")
    return default


def check_parallelism(vllm_config: Any) -> None:
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Refused(f"kvd: context parallelism is not supported; start vLLM with {name}=1")


def kind_of(spec: Any) -> Tuple[str, int, bool]:
    """Kind, window and whether it is replicated, by the classes of vLLM that are known here."""
    from vllm.v1 import kv_cache_interface as known
    uniform = getattr(known, "UniformTypeKVCacheSpecs", None)
    if uniform is not None and type(spec) is uniform:
        kinds = {kind_of(one) for one in spec.kv_cache_specs.values()}
        if len(kinds) == 1:
            return kinds.pop()
    if type(spec) is known.FullAttentionSpec:
        return "full", 0, False
    if type(spec) is known.MLAAttentionSpec:
        return "full", 0, True
    if type(spec) is known.SlidingWindowSpec and not getattr(spec, "extra_retained_tokens", 0):
        # The token that comes next sees itself and so many before it, less one.
        return "window", max(spec.sliding_window - 1, 1), False
    raise Refused(f"kvd: a KV cache of {type(spec).__name__} is not supported; serve this model "
                  "without KvdConnector")


def block_tokens(kv_cache_config: Any) -> int:
    """Tokens of one block of kvd."""
    return math.lcm(*(g.kv_cache_spec.block_size for g in kv_cache_config.kv_cache_groups))


def check_groups(kv_cache_config: Any, fails_by_request: bool) -> None:
    """`fails_by_request`: this vLLM can be told of a load that failed by the request's name."""
    groups = kv_cache_config.kv_cache_groups
    for group in groups:
        kind_of(group.kv_cache_spec)
    if not any(kind_of(group.kv_cache_spec)[0] == "full" for group in groups):
        raise Refused("kvd: a model without full attention has no prefix that could be found; serve it "
                      "without KvdConnector")
    if len(groups) > 1 and not fails_by_request:
        raise Refused("kvd: this vLLM cannot be told of a load that failed for a model with several KV "
                      "cache groups; update vLLM, or start it with --disable-hybrid-kv-cache-manager")


def shard_of(layout: GroupLayout, vllm_config: Any, tp_rank: int, pp_rank: int) -> int:
    if layout.replicated:
        return pp_rank
    return pp_rank * vllm_config.parallel_config.tensor_parallel_size + tp_rank


def descriptor(vllm_config: Any, layout: WorkerLayout, tokens: int) -> kvd.Descriptor:
    """The same in every process of an engine, and in every engine that may share with it."""
    import vllm
    model, cache = vllm_config.model_config, vllm_config.cache_config
    parallel = vllm_config.parallel_config
    extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
    speculative = vllm_config.speculative_config
    groups = [
        kvd.Group(tokens, group.part_bytes,
                  kvd.GroupKind.FULL if group.kind == "full" else kvd.GroupKind.WINDOW,
                  group.window_tokens, parallel.pipeline_parallel_size *
                  (1 if group.replicated else parallel.tensor_parallel_size))
        for group in layout.groups]
    return kvd.Descriptor(
        model=model.model,
        weights_revision=str(extra_config.get("weights_revision") or model.revision or ""),
        kv_dtype=f"{cache.cache_dtype} of {model.dtype}",
        quantization=str(model.quantization or ""),
        page_layout=_digest([group.description for group in layout.groups]),
        engine_family="vllm",
        draft_model="" if speculative is None else
        f"{speculative.method} {speculative.model} {speculative.num_speculative_tokens}",
        hash_algorithm=cache.prefix_caching_hash_algo,
        hash_seed=hash_seed(vllm_config),
        hash_bytes=16 if cache.prefix_caching_hash_algo.startswith("xxhash") else 32,
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
        groups=groups,
        # Kernels may pack a page otherwise in the next version, under the same shape.
        extra={"vllm": ".".join(vllm.__version__.split("+")[0].split(".")[:2]),
               "device": layout.device,
               "pages": ",".join(str(group.pages) for group in layout.groups)})


def _digest(texts: Sequence[str]) -> str:
    """Texts of a descriptor are at most 256 bytes."""
    return hashlib.sha256("|".join(texts).encode()).hexdigest()
