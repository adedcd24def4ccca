"""SGLang's host pools as pages of opaque bytes.

Of a pool only this is known: a page is some pieces of memory, of sizes that are the same for every page,
whose addresses SGLang tells. Which bytes mean what is the pool's business; `description` names all of
it that is known to matter.
"""

import array
import ctypes
import hashlib
from typing import Any, List, Sequence, Tuple

import kvd

from .options import Refused

Part = Tuple[int, int]  # (group, shard) of a namespace.

# What decides the order and the meaning of a page's bytes, where a pool has it.
_SHAPE = ("layout", "dtype", "page_size", "layer_num", "start_layer", "end_layer", "head_num", "head_dim",
          "v_head_dim", "kv_cache_dim", "kv_lora_rank", "qk_rope_head_dim", "temporal_dtype", "conv_dtype",
          "indexer_dtype", "storage_format_tag")


class CannotDescribe(Refused):
    """A pool that is not made of pages in a way known here."""


class PoolPages:
    """The pages of one host pool. Constant after construction."""

    def __init__(self, name: str, pool: Any):
        self.name = name
        self.pool = pool
        self.page_size: int = pool.page_size  # Indices of one page.
        try:
            _, sizes = pool.get_page_buffer_meta(array.array("q", range(self.page_size)))
        except (NotImplementedError, ValueError) as error:
            raise CannotDescribe(f"kvd: the host pool {name} names no memory of a page ({error}); start SGLang with "
                                 "--hicache-mem-layout page_first") from error
        self.sizes = tuple(int(size) for size in sizes)  # Bytes of each piece.
        self.bytes = sum(self.sizes)
        shape = " ".join(f"{of}={getattr(pool, of)}" for of in _SHAPE if hasattr(pool, of))
        self.description = f"{name} {type(pool).__name__} {shape} {_in_short(self.sizes)}"

    def places(self, indices: Any, pages: int) -> List[kvd.At]:
        """Where the pieces of `pages` pages lie, page by page; `indices` are page_size of each page."""
        addresses, sizes = self.pool.get_page_buffer_meta(indices)
        if len(indices) != pages * self.page_size or tuple(sizes) != self.sizes * pages:
            raise ValueError(f"{len(indices)} indices, {len(sizes)} pieces for {pages} pages of the pool {self.name}")
        return [kvd.At(int(address), size) for address, size in zip(addresses, sizes)]

    def pattern(self) -> List[bytes]:
        """Bytes for each piece that tell all pieces of all pools apart; the same at every start."""
        return [hashlib.shake_128(f"{self.description} {number}".encode()).digest(size)
                for number, size in enumerate(self.sizes)]

    def check_reads_back(self, indices: Any) -> None:
        """Writes a pattern where `places` says and looks for it in the page as SGLang itself reads it.
        Leaves the pattern. Raises CannotDescribe. Requires: the page is nobody's."""
        pattern = self.pattern()
        write(self.places(indices, 1), pattern)
        try:
            page = self.pool.get_data_page(int(indices[0]), flat=True)
        except NotImplementedError:
            return  # Such a pool has no page in one piece.
        seen = ctypes.string_at(page.data_ptr(), page.numel() * page.element_size())
        if len(seen) != self.bytes or not all(piece in seen for piece in pattern):
            raise CannotDescribe(f"kvd: a page of {self.description} does not read back as it was written; start "
                                 "SGLang with another --hicache-mem-layout, or report this")


def write(places: Sequence[kvd.At], pieces: Sequence[bytes]) -> None:
    for place, piece in zip(places, pieces):
        ctypes.memmove(place.address, piece, place.size)


def read(places: Sequence[kvd.At]) -> List[bytes]:
    return [ctypes.string_at(place.address, place.size) for place in places]


def _in_short(sizes: Sequence[int]) -> str:
    return ",".join(f"{sizes.count(size)}*{size}" for size in dict.fromkeys(sizes))
