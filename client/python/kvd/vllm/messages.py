"""What the scheduler's side and the workers of one engine tell each other, pickled by vLLM at every
step. Values only: neither side keeps what it sent.

Blocks here are kvd's: a run of tokens that every KV-cache group can name, the least common multiple of
the groups' own block sizes. A group has one page of the engine's for each of its own blocks in it.
"""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Set, Tuple

from vllm.distributed.kv_transfer.kv_connector.v1.base import (KVConnectorHandshakeMetadata,
                                                               KVConnectorMetadata,
                                                               KVConnectorWorkerMetadata)

from kvd import announcement

NO_PAGE = -1


@dataclass(frozen=True)
class GroupLayout:
    """One KV-cache group, as the tensors of a worker hold it."""
    kind: str  # "full" or "window".
    window_tokens: int  # That a hit needs before it; 0 for "full".
    replicated: bool  # Every tensor-parallel rank has the same bytes.
    pages: int  # Of the engine, in one block of kvd.
    part_bytes: int  # Of one block, of one worker.
    description: str  # Shape, strides and type of every layer: what makes the bytes mean the same.


@dataclass(frozen=True)
class WorkerLayout(KVConnectorHandshakeMetadata):
    """What a worker's tensors turned out to be; equal for all that share a namespace."""
    groups: Tuple[GroupLayout, ...]
    device: str  # Whose packing the pages have.


@dataclass(frozen=True)
class Announced:
    """What routers are told of the blocks of a job: hashes and tokens of all of them, in order."""
    hashes: Tuple[int, ...]  # As in vLLM's own events; several for one block of kvd.
    parent: Optional[int]
    tokens: Tuple[int, ...]
    block_size: int  # Tokens of one hash.
    lora_name: Optional[str]

    def bytes_of(self, first: int, last: int, hashes_per_block: int) -> List[bytes]:
        """Of blocks `first` to `last` of the job, counted from its first."""
        made = []
        for at in range(first * hashes_per_block, last * hashes_per_block, hashes_per_block):
            end = at + hashes_per_block
            made.append(announcement(
                self.hashes[at:end], self.hashes[at - 1] if at else self.parent,
                self.tokens[at * self.block_size:end * self.block_size], self.block_size,
                lora_name=self.lora_name))
        return made


@dataclass(frozen=True)
class Job:
    """Blocks `first` to `last` of the chain whose keys are `keys`, and the pages of the engine that
    hold them."""
    job: int  # Never used twice by one scheduler.
    request: str
    keys: bytes  # Of blocks 0 to `last`, back to back.
    hash_bytes: int
    first: int
    last: int
    # Of each group: the engine's page ids for blocks `first` to `last`, in their order; NO_PAGE where
    # the group has none, as a window has before its last tokens.
    pages: Tuple[Tuple[int, ...], ...]
    announced: Optional[Announced] = None  # Of a save.

    def key(self, block: int) -> bytes:
        return self.keys[block * self.hash_bytes:(block + 1) * self.hash_bytes]

    def parent(self, block: int) -> "bytes | None":
        return self.key(block - 1) if block else None


@dataclass
class ToWorkers(KVConnectorMetadata):
    loads: List[Job] = field(default_factory=list)
    saves: List[Job] = field(default_factory=list)
    # The engine has no references for saves: what runs must end before this step writes.
    fence: bool = False


@dataclass
class FromWorkers(KVConnectorWorkerMetadata):
    """Of one worker, or of several added up."""
    saved: Dict[int, int] = field(default_factory=dict)  # Job -> workers that are done with it.
    orphaned: Set[str] = field(default_factory=set)  # Requests whose stored prefix is gone.

    def aggregate(self, other: "FromWorkers") -> "FromWorkers":
        for job, workers in other.saved.items():
            self.saved[job] = self.saved.get(job, 0) + workers
        self.orphaned |= other.orphaned
        return self
