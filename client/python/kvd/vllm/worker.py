"""A worker's side: moves pages between the engine's cache and the daemon, on two threads of its own.

Threads: the worker's main thread calls everything public and waits for nothing but `fence`. One thread
loads and one saves, job after job, each through a buffer of its own, so that a save never delays a load.
Errors: a load that fails in part is reported with the pages that hold garbage; a save that fails is a
miss later on. Every call of the daemon has a deadline, so every job ends.
"""

import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch

import kvd
from kvd.announce import MAX_ANNOUNCE_BYTES

from ..daemon import Daemon
from ..mover import Mover
from .layout import block_tokens, descriptor, shard_of
from .log import logger
from .messages import NO_PAGE, FromWorkers, Job, ToWorkers, WorkerLayout
from .options import Options
from .pages import GroupPages, describe
from .stats import KvdStats

MAX_BLOCKS_OF_A_PUT = 2048
ANNOUNCE_BYTES_OF_A_PUT = 512 << 10  # Of the 1.25 MiB of a message, with room for keys.
Group = Tuple[int, GroupPages]  # With its number.


class WorkerSide:
    def __init__(self, vllm_config: Any, kv_cache_config: Any, options: Options, tp_rank: int,
                 pp_rank: int):
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._options = options
        self._tp_rank, self._pp_rank = tp_rank, pp_rank
        self._daemon = Daemon(options.endpoint, f"worker {pp_rank}.{tp_rank}", logger)
        self.layout: Optional[WorkerLayout] = None
        self._groups: List[GroupPages] = []
        self._shards: List[int] = []
        self._movers: List[Mover] = []
        self._gave_up = 0.0  # When a save last ran out of time. The saver's only.

        self._mu = threading.Lock()  # Of what follows, which the movers write and the main thread takes.
        self._loaded: List[Tuple[Job, int]] = []  # With the first block that is not there.
        self._told = FromWorkers()
        self._stats = KvdStats()
        self._invalid: Set[int] = set()  # Main thread only.

    # ---- main thread ----------------------------------------------------------------------------

    def register(self, kv_caches: Dict[str, torch.Tensor]) -> None:
        """Raises CannotDescribe, Refused or kvd.InvalidArgument where this engine cannot be served."""
        self._groups, self.layout = describe(self._kv_cache_config, kv_caches)
        self._shards = [shard_of(group, self._vllm_config, self._tp_rank, self._pp_rank)
                        for group in self.layout.groups]
        self._daemon.register(descriptor(self._vllm_config, self.layout,
                                         block_tokens(self._kv_cache_config)))
        device = self._groups[0].device

        def beside() -> None:
            """The engine's own work, not behind it."""
            if device.type == "cuda":
                torch.cuda.set_stream(torch.cuda.Stream(device))
        self._loader = Mover("kvd-load", self._load, logger, beside)
        self._saver = Mover("kvd-save", self._save, logger, beside)
        self._movers = [self._loader, self._saver]
        self._buffers = {mover: self._new_buffer() for mover in self._movers}

    def start_loads(self, plan: ToWorkers) -> None:
        # From now on, so that behind a daemon that hangs not each waits for its own time.
        deadline = time.monotonic() + self._options.load_timeout_ms / 1000
        for job in plan.loads:
            self._loader.add((job, deadline))

    def start_saves(self, plan: ToWorkers) -> None:
        """After the step's work was handed to the device."""
        if not plan.saves:
            return
        written = None
        if self._groups[0].device.type != "cpu":
            written = torch.Event(device=self._groups[0].device)
            written.record()
        for job in plan.saves:
            self._saver.add((job, written, time.monotonic()))

    def fence(self, plan: ToWorkers) -> None:
        """Before the step writes: where saves have no references, their pages may be anybody's now."""
        if plan.fence and self._movers:
            self._saver.wait()

    def finished_loads(self) -> Tuple[Set[str], Set[str]]:
        """Requests whose load has ended since the last call, each told once; and of them those that
        failed. `invalid_pages()` is of the same moment."""
        with self._mu:
            loaded, self._loaded = self._loaded, []
        failed = [(job, good) for job, good in loaded if good < job.last]
        for job, good in failed:
            for group, layout in zip(job.pages, self.layout.groups):
                self._invalid.update(group[(good - job.first) * layout.pages:])
        self._invalid.discard(NO_PAGE)
        return {job.request for job, _ in loaded}, {job.request for job, _ in failed}

    def invalid_pages(self) -> Set[int]:
        invalid, self._invalid = self._invalid, set()
        return invalid

    def take_told(self) -> Optional[FromWorkers]:
        with self._mu:
            told, self._told = self._told, FromWorkers()
        return told if told.saved or told.orphaned else None

    def take_stats(self) -> KvdStats:
        with self._mu:
            stats, self._stats = self._stats, KvdStats()
        return stats

    def shutdown(self) -> None:
        self._daemon.stop()
        for mover in self._movers:
            mover.stop()
        self._movers = []

    # ---- movers ---------------------------------------------------------------------------------

    def _count(self, name: str, count: int = 1) -> None:
        with self._mu:
            self._stats.add(name, count)

    def _new_buffer(self) -> torch.Tensor:
        """Room for at least one block."""
        block = sum(group.part_bytes for group in self.layout.groups)
        return torch.empty(max(self._options.staging_bytes, block), dtype=torch.uint8,
                           pin_memory=self._groups[0].device.type == "cuda")

    def _client(self) -> Tuple[kvd.Client, kvd.Namespace]:
        if self._daemon.namespace is None:
            raise kvd.Unavailable("the daemon never was there")
        return self._daemon.client, self._daemon.namespace

    def _load(self, job_and_deadline: Tuple[Job, float]) -> None:
        job, deadline = job_and_deadline
        good = job.first
        try:
            good = self._load_blocks(job, deadline)
            self._daemon.note(None)
        except kvd.KvdError as error:
            self._daemon.note(error)
        finally:  # Whatever happens: an engine that is not told waits for ever.
            with self._mu:
                self._loaded.append((job, good))
                self._stats.add("loaded_blocks", good - job.first)
                if good < job.last:
                    self._stats.add("load_failures")

    def _load_blocks(self, job: Job, deadline: float) -> int:
        """Returns the first block that is not there for every group. Groups that have pages from the
        same block on are got together."""
        starts: Dict[int, List[int]] = {}
        for number, pages in enumerate(job.pages):
            starts.setdefault(self._first_whole(job, number), []).append(number)
        good = job.last
        for start, numbers in sorted(starts.items()):
            reached = self._load_groups(job, start, numbers, deadline)
            # What a window lacks is needed at the end: nothing of the job serves without it.
            good = min(good, reached if start == job.first or reached == job.last else job.first)
        return good

    def _first_whole(self, job: Job, number: int) -> int:
        """Where the pages of a group begin that go on to the end."""
        pages, count = job.pages[number], self.layout.groups[number].pages
        missing = len(pages) - next((i for i, page in enumerate(reversed(pages)) if page == NO_PAGE),
                                    len(pages))
        return job.first + -(-missing // count)

    def _load_groups(self, job: Job, first: int, numbers: Sequence[int], deadline: float) -> int:
        client, namespace = self._client()
        buffer = self._buffers[self._loader]
        parts = [(number, self._shards[number]) for number in numbers]
        while first < job.last:
            count, rows = self._rows(buffer, numbers, min(job.last - first, MAX_BLOCKS_OF_A_PUT))
            left = deadline - time.monotonic()
            if left <= 0:
                raise kvd.DeadlineExceeded("a load took longer than load_timeout_ms")
            got = client.get(namespace, job.keys[first * job.hash_bytes:], rows.view(-1), parts=parts,
                             parent=job.parent(first), max_blocks=count, timeout=left)
            whole = got.hit_blocks == job.last - first  # Else a window may lack what it needs.
            self._each_group(job, numbers, first, got.blocks, rows, GroupPages.scatter)
            if not whole or got.blocks < count:
                return first + got.blocks
            first += count
        return first

    def _save(self, job_event_and_time: Tuple[Job, Any, float]) -> None:
        job, written, added = job_event_and_time
        try:
            if added < self._gave_up:  # Behind one that ran out of time: its pages are wanted back.
                raise kvd.DeadlineExceeded("the daemon does not take what is saved in time")
            if written is not None:
                written.synchronize()
            self._save_blocks(job)
            self._daemon.note(None)
        except kvd.KvdError as error:
            if isinstance(error, kvd.DeadlineExceeded):
                self._gave_up = time.monotonic() if added >= self._gave_up else self._gave_up
            self._daemon.note(error)
            self._count("save_failures")
        finally:  # Whatever happens: the pages' references are given back by this.
            with self._mu:
                self._told.saved[job.job] = 1

    def _save_blocks(self, job: Job) -> None:
        deadline = time.monotonic() + self._options.save_timeout_ms / 1000
        first = job.first
        while first < job.last:
            numbers = self._stored_here(job, first)
            end = first + 1
            while end < job.last and self._stored_here(job, end) == numbers:
                end += 1
            if numbers and not self._save_groups(job, first, end, numbers, deadline):
                return
            first = end

    def _stored_here(self, job: Job, block: int) -> List[int]:
        """The groups that have this block, and whose part of it this worker brings."""
        numbers = []
        for number, layout in enumerate(self.layout.groups):
            at = (block - job.first) * layout.pages
            brought = self._tp_rank == 0 or not layout.replicated
            if brought and NO_PAGE not in job.pages[number][at:at + layout.pages]:
                numbers.append(number)
        return numbers

    def _save_groups(self, job: Job, first: int, end: int, numbers: Sequence[int],
                     deadline: float) -> bool:
        """False: the rest has nothing to be stored below."""
        client, namespace = self._client()
        buffer = self._buffers[self._saver]
        parts = [(number, self._shards[number]) for number in numbers]
        while first < end:
            most = min(end - first, MAX_BLOCKS_OF_A_PUT)
            announce = self._announce(job, first, most)
            most = len(announce) if announce else most
            count, rows = self._rows(buffer, numbers, most)
            self._each_group(job, numbers, first, count, rows, GroupPages.gather)
            left = deadline - time.monotonic()
            if left <= 0:
                raise kvd.DeadlineExceeded("a save took longer than save_timeout_ms")
            keys = job.keys[first * job.hash_bytes:(first + count) * job.hash_bytes]
            put = client.put(namespace, keys, rows.view(-1), parts=parts, parent=job.parent(first),
                             announce=announce[:count] if announce else None, timeout=left)
            stored = sum(state <= kvd.PutState.PARKED for state in put.states)
            self._count("saved_blocks", stored)
            if stored < count:
                self._count("save_failures")
                if put.states[stored] == kvd.PutState.NO_PARENT:
                    with self._mu:
                        self._told.orphaned.add(job.request)
                return False
            first += count
        return True

    def _announce(self, job: Job, first: int, blocks: int) -> Optional[List[bytes]]:
        """What routers are told of the next `blocks` blocks, or of fewer: as much as one put may carry.
        None: nothing; one rank's word is enough."""
        if job.announced is None or self._tp_rank or self._pp_rank:
            return None
        per_block = len(job.announced.hashes) // (job.last - job.first)
        made, size = [], 0
        for block in range(first - job.first, first - job.first + blocks):
            announced = job.announced.bytes_of(block, block + 1, per_block)[0]
            if len(announced) > MAX_ANNOUNCE_BYTES:
                announced = b""  # More tokens than a block may be announced by.
            size += len(announced)
            if made and size > ANNOUNCE_BYTES_OF_A_PUT:
                break
            made.append(announced)
        return made

    def _rows(self, buffer: torch.Tensor, numbers: Sequence[int],
              blocks: int) -> Tuple[int, torch.Tensor]:
        """How many of `blocks` fit, and room for them: [count, bytes of all the groups' parts]."""
        row = sum(self.layout.groups[number].part_bytes for number in numbers)
        count = min(blocks, len(buffer) // row)
        return count, buffer[:count * row].view(count, row)

    def _each_group(self, job: Job, numbers: Sequence[int], first: int, count: int,
                    rows: torch.Tensor, copy: Callable[..., None]) -> None:
        """gather() or scatter() of `count` blocks from `first` on, of every group in `rows`."""
        if count == 0:
            return
        offset = 0
        for number in numbers:
            layout, group = self.layout.groups[number], self._groups[number]
            at = (first - job.first) * layout.pages
            ids = torch.tensor(job.pages[number][at:at + count * layout.pages], device=group.device)
            part = rows[:count, offset:offset + layout.part_bytes]
            offset += layout.part_bytes
            # A block of kvd may be several pages: [count, pages, bytes], which stays a view.
            part = part.unflatten(1, (layout.pages, group.page_bytes))
            copy_pages(group, ids, part, copy)
        if self._groups[0].device.type != "cpu":
            torch.accelerator.current_stream().synchronize()  # Of this thread.


def copy_pages(group: GroupPages, ids: torch.Tensor, part: torch.Tensor,
               copy: Callable[..., None]) -> None:
    """`part` is [blocks, pages of each, bytes]; page by page of a block, as only that is a view."""
    pages = part.shape[1]
    for page in range(pages):
        if copy is GroupPages.gather:
            group.gather(ids[page::pages], part[:, page])
        else:
            group.scatter(part[:, page], ids[page::pages])
