"""The scheduler's side: decides what is looked up, loaded and saved, and moves nothing.

Threads: all calls come from the engine's one thread, on which every microsecond is a delay of all
requests: nothing here waits for the daemon.

A request's way: `on_new_request` starts a lookup; `matched` says "ask again" until it has ended, then how
much was found; `allocated` makes the load, which keeps the lookup's lease until all workers are done;
`plan` of every step saves what that step completes.

A save reads pages after the step that filled them. It has a reference of its own on each, so that a
request that ends or is preempted gives none of them to another meanwhile.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

import kvd

from ..daemon import Daemon
from .layout import Refused, block_tokens, descriptor
from .log import logger
from .messages import NO_PAGE, Announced, FromWorkers, Job, ToWorkers, WorkerLayout
from .options import Options
from .stats import KvdStats

MISS = kvd.LookupResult(0, 0, 0.0, {})
MAX_LOADING = 64  # Requests. More wait: each holds all the engine's blocks that it loads into.
MAX_LOOKUP_BLOCKS = 32768


@dataclass
class _Lookup:
    pending: Optional[kvd.Pending]  # Until it has ended.
    expires: float  # When the lease may have run out, on the monotonic clock.
    result: kvd.LookupResult = MISS
    offered_from: int = 0  # The first block that was offered to the engine.


@dataclass
class _Request:
    request: Any
    saved: Optional[int] = None  # Blocks saved, or on their way; unknown before the first step.
    block_ids: List[List[int]] = field(default_factory=list)  # By group, where vLLM tells no better.


class SchedulerSide:
    def __init__(self, vllm_config: Any, kv_cache_config: Any, options: Options):
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._options = options
        self._daemon = Daemon(options.endpoint, "scheduler", logger)
        self._tokens = block_tokens(kv_cache_config)  # Of one block of kvd.
        self._group_kinds: Sequence[str] = ()  # Known with the workers' layout.
        self._pages_of = [self._tokens // group.kv_cache_spec.block_size
                          for group in kv_cache_config.kv_cache_groups]
        self._max_saving = options.max_saving_blocks or max(kv_cache_config.num_blocks // 4, 1)
        transfer, speculative = vllm_config.kv_transfer_config, vllm_config.speculative_config
        self._loads = transfer.kv_role != "kv_producer"
        self._saves = transfer.kv_role != "kv_consumer"
        # A draft model that reads the target's hidden states has none for the block that was hit last.
        self._drop_last = speculative is not None and speculative.use_eagle()
        self._workers = vllm_config.parallel_config.world_size
        self._pool: Any = None
        self._hashes_per_block: Optional[int] = None
        self.stats = KvdStats()

        self._lookups: Dict[str, _Lookup] = {}
        self._requests: Dict[str, _Request] = {}
        self._bypass: Set[str] = set()  # Their load failed: computed without us, once.
        self._new_loads: List[Job] = []
        self._loading: Dict[str, Tuple[Job, kvd.LookupResult]] = {}  # With what was found, and its lease.
        self._saving: Dict[int, Tuple[List[int], int]] = {}  # Job -> pages, workers still at it.
        self._saving_pages = 0
        self._next_job = 0

    # ---- start and end --------------------------------------------------------------------------

    def set_layouts(self, layouts: Sequence[WorkerLayout]) -> None:
        """Of all workers. Raises Refused where they cannot share a namespace."""
        if any(layout != layouts[0] for layout in layouts):
            raise Refused("kvd: the workers' caches differ in shape, as pipeline stages of different size do; "
                          "choose a pipeline_parallel_size that divides the layers evenly")
        self._group_kinds = [group.kind for group in layouts[0].groups]
        self._daemon.register(descriptor(self._vllm_config, layouts[0], self._tokens))

    def bind_pool(self, pool: Any) -> None:
        self._pool = pool

    def shutdown(self) -> None:
        self._daemon.stop()
        self._lookups.clear()

    # ---- finding --------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        if self._loads:
            self._look_up(request)

    def matched(self, request: Any, computed_tokens: int) -> Tuple[Optional[int], bool]:
        """Tokens beyond `computed_tokens` that can be loaded; None: ask again. Changes nothing that
        asking again would not repeat."""
        name = request.request_id
        if not self._loads or name in self._bypass or computed_tokens % self._tokens:
            return 0, False
        lookup = self._lookups.get(name) or self._look_up(request)
        if lookup is None:
            return 0, False
        if lookup.pending is not None and not self._poll(lookup):
            return None, False
        if lookup.result.lease and time.monotonic() > lookup.expires:
            self._forget_lookup(name)  # What it found may be gone.
            self._look_up(request)
            return None, False
        found = max(lookup.result.blocks - self._drop_last, 0)
        lookup.offered_from = computed_tokens // self._tokens
        if found <= lookup.offered_from:
            return 0, False
        if len(self._loading) >= MAX_LOADING:
            return None, False
        return found * self._tokens - computed_tokens, True

    def hit_tiers(self, request: Any, tokens: int) -> Dict[kvd.Tier, int]:
        """`tokens` by the tier that they come from. Of the prefix the coldest blocks are counted first:
        the engine's own hit is its head, which is the hottest."""
        loading = self._loading.get(request.request_id)
        tiers = loading[1].tiers if loading else {}
        split: Dict[kvd.Tier, int] = {}
        for tier in sorted(tiers, reverse=True):
            part = min(tiers[tier] * self._tokens, tokens - sum(split.values()))
            if part > 0:
                split[tier] = part
        return split

    def _look_up(self, request: Any) -> Optional[_Lookup]:
        namespace = self._daemon.namespace
        # As the engine's own cache: the last token is always computed.
        blocks = min((request.num_tokens - 1) // self._tokens, MAX_LOOKUP_BLOCKS)
        if namespace is None or blocks <= 0:
            return None
        lease = self._options.lease_ms / 1000
        lookup = _Lookup(None, time.monotonic() + lease * 0.8)
        try:
            lookup.pending = self._daemon.client.start_lookup(
                namespace, self._keys(request, blocks), lease=lease,
                timeout=self._options.lookup_timeout_ms / 1000)
        except kvd.KvdError as error:
            self._failed_lookup(error)
        self._lookups[request.request_id] = lookup
        return lookup

    def _poll(self, lookup: _Lookup) -> bool:
        try:
            result = lookup.pending.poll()
            if result is None:
                return False
            lookup.result = result
            self._daemon.note(None)
            self.stats.add("lookups")
            self.stats.add("hit_blocks", result.blocks)
        except kvd.KvdError as error:
            self._failed_lookup(error)
        lookup.pending = None
        return True

    def _failed_lookup(self, error: kvd.KvdError) -> None:
        self._daemon.note(error)
        self.stats.add("lookup_failures")

    def _forget_lookup(self, name: str) -> None:
        """Its lease too; where the answer has not come, dropping it does that."""
        lookup = self._lookups.pop(name, None)
        if lookup is not None:
            self._daemon.client.release_lease(lookup.result.lease)

    def _keys(self, request: Any, blocks: int) -> bytes:
        """Of the first `blocks` blocks, or of as many as have their hashes. A block's key is the hash of
        its last piece, which has chained all before it."""
        step = self._hash_step(request)
        return b"".join(request.block_hashes[step - 1:blocks * step:step])

    def _hash_step(self, request: Any) -> int:
        """Hashes of the engine in one block."""
        if self._hashes_per_block is None:
            from vllm.v1.core import kv_cache_utils
            resolve = getattr(kv_cache_utils, "resolve_kv_cache_block_sizes", None)
            config = self._vllm_config
            size = resolve(self._kv_cache_config, config)[1] if resolve else config.cache_config.block_size
            self._hashes_per_block = self._tokens // size
        return self._hashes_per_block

    # ---- loading --------------------------------------------------------------------------------

    def allocated(self, request: Any, block_ids: Sequence[Sequence[int]], tokens: int) -> None:
        """`tokens` are to be loaded into the request's pages `block_ids` (by group, all of them)."""
        name = request.request_id
        self._requests.setdefault(name, _Request(request)).request = request
        self._bypass.discard(name)
        if tokens == 0:
            self._forget_lookup(name)
            return
        lookup = self._lookups.pop(name)
        first = lookup.offered_from
        job = self._job(request, block_ids, first, first + tokens // self._tokens)
        self._new_loads.append(job)
        self._loading[name] = (job, lookup.result)

    def _job(self, request: Any, block_ids: Sequence[Sequence[int]], first: int, last: int,
             announced: Optional[Announced] = None) -> Job:
        pages = []
        for ids, count in zip(block_ids, self._pages_of):
            wanted = [page if page != 0 else NO_PAGE  # 0 is the engine's null block.
                      for page in ids[first * count:last * count]]
            wanted += [NO_PAGE] * ((last - first) * count - len(wanted))
            pages.append(tuple(wanted))
        self._next_job += 1
        return Job(self._next_job, request.request_id, self._keys(request, last),
                   self._daemon.namespace.hash_bytes, first, last, tuple(pages), announced)

    # ---- saving ---------------------------------------------------------------------------------

    def plan(self, step: Any) -> ToWorkers:
        """What the workers do in `step`, a SchedulerOutput."""
        plan = ToWorkers(loads=self._new_loads, fence=self._pool is None)
        self._new_loads = []
        if not self._saves or self._daemon.namespace is None:
            return plan
        state = getattr(step, "kv_connector_block_state", None)
        for name, computed, block_ids in self._steps(step):
            known = self._requests.get(name)
            if known is None:
                continue
            self._follow(known, block_ids)
            if state is not None:  # The truth; ours lacks what the engine let go of.
                known.block_ids = state.get_block_ids(name) or known.block_ids
            job = self._save(known, computed, step.num_scheduled_tokens[name])
            if job is not None:
                plan.saves.append(job)
        return plan

    @staticmethod
    def _steps(step: Any) -> Iterable[Tuple[str, int, Tuple[Any, bool]]]:
        """Name, tokens computed before the step, and (new page ids by group, whether they are all) of
        each request in it."""
        for new in step.scheduled_new_reqs:
            yield new.req_id, new.num_computed_tokens, (new.block_ids, True)
        cached = step.scheduled_cached_reqs
        resumed = getattr(cached, "resumed_req_ids", ())
        for name, computed, ids in zip(cached.req_ids, cached.num_computed_tokens,
                                       cached.new_block_ids):
            yield name, computed, (ids, name in resumed)

    @staticmethod
    def _follow(known: _Request, block_ids: Tuple[Any, bool]) -> None:
        ids, whole = block_ids
        if whole:
            known.block_ids = [list(group) for group in ids]
        elif ids is not None:
            for group, more in zip(known.block_ids, ids):
                group.extend(more)

    def _save(self, known: _Request, computed: int, scheduled: int) -> Optional[Job]:
        """Of the blocks that this step completes, and of those before that are not stored."""
        request = known.request
        if known.saved is None:
            known.saved = computed // self._tokens  # Found here or there; `orphaned` corrects it.
        limit = request.num_tokens if self._options.save_decode else request.num_prompt_tokens
        hashed = len(request.block_hashes) // self._hash_step(request) * self._tokens
        last = min(computed + scheduled, limit, hashed) // self._tokens
        if last <= known.saved:
            return None
        job = self._job(request, known.block_ids, known.saved, last,
                        self._announced(request, known.saved, last))
        pages = [page for group in job.pages for page in group if page != NO_PAGE]
        if any(NO_PAGE in group for group, kind in zip(job.pages, self._group_kinds) if kind == "full"):
            return None
        if self._saving_pages + len(pages) > self._max_saving:
            self.stats.add("dropped_saves")
            known.saved = last  # What comes after it has no parent, and so is tried again from 0.
            return None
        known.saved = last
        self._hold(job.job, pages)
        return job

    def _announced(self, request: Any, first: int, last: int) -> Optional[Announced]:
        """None: routers are not told. Tokens do not say what a request with a salt, with pictures or
        with embeddings of its own is."""
        if not self._options.events or getattr(request, "cache_salt", None) \
                or getattr(request, "mm_features", None) \
                or getattr(request, "prompt_embeds", None) is not None:
            return None
        step = self._hash_step(request)
        hashes = [int.from_bytes(block_hash[-8:], "big")  # As vLLM's own events have them.
                  for block_hash in request.block_hashes[max(first * step - 1, 0):last * step]]
        parent = hashes.pop(0) if first else None
        tokens = request.all_token_ids[first * self._tokens:last * self._tokens]
        lora = getattr(request, "lora_request", None)
        return Announced(tuple(hashes), parent, tuple(tokens), self._tokens // step,
                         lora.lora_name if lora else None)

    def _hold(self, job: int, pages: List[int]) -> None:
        self._saving[job] = (pages, self._workers)
        self._saving_pages += len(pages)
        if self._pool is not None:
            self._pool.touch([self._pool.blocks[page] for page in pages])

    def _done(self, job: int, workers: int) -> None:
        pages, left = self._saving.pop(job)
        if left > workers:
            self._saving[job] = (pages, left - workers)
            return
        self._saving_pages -= len(pages)
        if self._pool is not None:  # The end of a chain first, so that it is reused first.
            self._pool.free_blocks([self._pool.blocks[page] for page in reversed(pages)])

    @property
    def has_saves(self) -> bool:
        """The engine must go on stepping, or it would never hear of their end."""
        return bool(self._saving)

    # ---- what workers say, and ends -------------------------------------------------------------

    def on_output(self, output: Any) -> None:
        """`output` is a KVConnectorOutput, of all workers."""
        invalid = output.invalid_block_ids or set()
        for name, (job, _) in self._loading.items():
            if invalid and any(not invalid.isdisjoint(group) for group in job.pages):
                self._bypass.add(name)
        self._bypass.update(getattr(output, "failed_recving", None) or ())
        for name in output.finished_recving or ():
            _, found = self._loading.pop(name)
            self._daemon.client.release_lease(found.lease)
            if name not in self._requests:
                self._bypass.discard(name)
        told = output.kv_connector_worker_meta
        if isinstance(told, FromWorkers):
            for job, workers in told.saved.items():
                self._done(job, workers)
            for name in told.orphaned:
                known = self._requests.get(name)
                if known is not None and known.saved is not None:
                    known.saved = 0

    def finished(self, request: Any) -> None:
        """Also aborted, at any point of its way. A load under way goes on; its workers report it."""
        name = request.request_id
        self._forget_lookup(name)
        self._requests.pop(name, None)
        if name not in self._loading:
            self._bypass.discard(name)
