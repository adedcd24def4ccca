"""What the bytes of a page mean: the namespace of an engine, and what is refused.

A block is one page of tokens. Each host pool brings its pieces of it: a KV-cache group for every size of
piece that the pool has, with a shard for every piece of that size and every rank, so that pieces are put and
got where they lie, one by one. A block is found when all ranks have stored theirs.
"""

import dataclasses
import hashlib
from typing import Any, Dict, List, Sequence, Tuple

import kvd

from .options import Options, Refused
from .pages import Part, PoolPages

MAX_GROUPS, MAX_PARTS = 16, 256  # Of a namespace.

# Pools by the name that SGLang gives them.
KINDS = {"kv": kvd.GroupKind.FULL, "indexer": kvd.GroupKind.FULL, "draft": kvd.GroupKind.FULL,
         "swa": kvd.GroupKind.WINDOW, "mamba": kvd.GroupKind.STATE}


@dataclasses.dataclass(frozen=True)
class PoolLayout:
    """What one rank brings of one pool."""
    parts: Tuple[Part, ...]  # Of its pieces, in their order.
    needed: int  # Of the pages before a boundary, those that a hit there needs; 0: all.


def check(config: Any) -> None:
    """Raises Refused for what the HiCacheStorageConfig `config` asks for and cannot have."""
    if getattr(config, "dcp_size", 1) > 1:
        raise Refused("kvd: decode context parallelism is not supported; start SGLang without it")
    if getattr(config, "should_split_heads", False):
        raise Refused("kvd: engines with different numbers of tensor-parallel ranks do not share pages; take "
                      "tp_lcm_size out of --hicache-storage-backend-extra-config")


def check_pools(config: Any, names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(KINDS))
    if unknown:
        raise Refused(f"kvd: a host pool of kind {', '.join(unknown)} is not supported; serve this model without "
                      "--hicache-storage-backend")
    if config.is_mla_model and config.tp_size > 1 and {"mamba", "draft"} & set(names):
        raise Refused("kvd: a pool that differs between ranks beside one that does not is not supported; serve this "
                      "model with --tp-size 1 or without --hicache-storage-backend")


def arrange(config: Any, pools: Sequence[PoolPages],
            window_tokens: int) -> Tuple[List[kvd.Group], Dict[str, PoolLayout]]:
    """The groups of the namespace, which are the same on every rank, and the parts of this one."""
    ranks = 1 if config.is_mla_model else config.tp_size
    rank = 0 if config.is_mla_model else config.tp_rank
    tokens = pools[0].page_size
    groups: List[kvd.Group] = []
    layouts: Dict[str, PoolLayout] = {}
    for pool in pools:
        kind = KINDS[pool.name]
        window = window_tokens if kind == kvd.GroupKind.WINDOW else 0
        number_of: Dict[int, int] = {}
        parts: List[Part] = []
        for size in dict.fromkeys(pool.sizes):
            number_of[size] = len(groups)
            groups.append(kvd.Group(tokens, size, kind, window, ranks * pool.sizes.count(size)))
        for size in pool.sizes:
            group = number_of[size]
            shard = rank * pool.sizes.count(size) + sum(part[0] == group for part in parts)
            parts.append((group, shard))
        needed = {kvd.GroupKind.FULL: 0, kvd.GroupKind.STATE: 1}.get(kind, -(-window // tokens))
        layouts[pool.name] = PoolLayout(tuple(parts), needed)
    pieces = sum(group.shards for group in groups)
    if len(groups) > MAX_GROUPS or pieces > MAX_PARTS:
        raise Refused(f"kvd: {pieces} pieces of memory in one page of all ranks are too many; start SGLang with "
                      "--hicache-mem-layout page_first")
    return groups, layouts


def window_tokens(options: Options, names: Sequence[str]) -> int:
    """Tokens before a boundary that sliding windows need there: at least the model's own."""
    if not any(KINDS[name] == kvd.GroupKind.WINDOW for name in names):
        return 0
    tokens = options.sliding_window_tokens or _of_model()
    if not tokens:
        raise Refused("kvd: the model's sliding window is not known; add \"sliding_window_tokens\" to "
                      "--hicache-storage-backend-extra-config")
    return tokens


def _of_model() -> int:
    try:
        from sglang.srt.configs.model_config import ModelConfig
        model = ModelConfig.from_server_args(server_args())
    except Exception:  # Of another SGLang, or of a model that it knows otherwise.
        return 0
    return getattr(model, "sliding_window_size", None) or getattr(model, "attention_chunk_size", None) or 0


def server_args() -> Any:
    from sglang.srt.runtime_context import get_server_args
    return get_server_args()


def descriptor(config: Any, options: Options, pools: Sequence[PoolPages],
               groups: Sequence[kvd.Group]) -> kvd.Descriptor:
    """The same in every process of an engine but for pipeline stages and context-parallel ranks, and in every
    engine that may share with it."""
    import sglang
    args = server_args()
    draft = args.speculative_algorithm or ""
    return kvd.Descriptor(
        model=_short(args.model_path),
        weights_revision=options.weights_revision or args.revision or "",
        kv_dtype=f"{args.kv_cache_dtype} of {args.dtype}",
        quantization=args.quantization or "",
        page_layout=hashlib.sha256("|".join(pool.description for pool in pools).encode()).hexdigest(),
        engine_family="sglang",
        draft_model=_short(f"{draft} {args.speculative_draft_model_path}") if draft else "",
        hash_algorithm="sha256",
        tensor_parallel=config.tp_size,
        pipeline_parallel=config.pp_size,
        context_parallel=config.attn_cp_size,
        groups=groups,
        extra={"sglang": ".".join(sglang.__version__.split(".")[:2]),
               "stage": str(config.pp_rank), "context": str(config.attn_cp_rank)})


def _short(text: str) -> str:
    """Texts of a descriptor are at most 256 bytes."""
    return text if len(text.encode()) <= 256 else hashlib.sha256(text.encode()).hexdigest()


def self_test_key(of: kvd.Descriptor) -> bytes:
    """Of the page that every start stores; no hash of tokens is equal to it."""
    return hashlib.sha256(f"kvd self-test {of}".encode()).digest()
