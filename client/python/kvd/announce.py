"""What a block is announced by to cache-aware routers: proto/types/announcement.h of kvd's source has the
form, which is part of vLLM's BlockStored event. Values of MessagePack are written here by hand: this
package needs nothing but Python."""

import itertools
import struct
from typing import Optional, Sequence

MAX_ANNOUNCE_BYTES = 16384  # Of one block.


def announcement(hashes: Sequence[int], parent: Optional[int], tokens: Sequence[int], block_size: int, *,
                 lora_name: Optional[str] = None) -> bytes:
    """For `announce` of `Client.put`, of one block.

    hashes: what routers know the block by, 64 bits each, as in the engine's own events: one, or several
        where a block of kvd is several of the engine's.
    parent: the hash before them; None: the block is a root.
    tokens: token ids, block_size for each of `hashes`.
    """
    if not hashes or len(tokens) != block_size * len(hashes):
        raise ValueError(f"tokens: must be {block_size} for each of one or more hashes")
    entries = (("block_hashes", _integers(hashes)),
               ("parent_block_hash", b"\xc0" if parent is None else _integer(parent)),
               ("token_ids", _integers(tokens)), ("block_size", _integer(block_size)),
               ("lora_id", b"\xc0"),  # Older decoders want it.
               ("lora_name", b"\xc0" if lora_name is None else _text(lora_name)))
    return bytes([0x80 | len(entries)]) + b"".join(_text(key) + value for key, value in entries)


def _integer(value: int) -> bytes:
    if 0 <= value < 0x80:
        return bytes([value])
    if 0 <= value < 1 << 32:
        return b"\xce" + value.to_bytes(4, "big")
    if value >= 0:
        return b"\xcf" + value.to_bytes(8, "big")
    return b"\xd3" + value.to_bytes(8, "big", signed=True)


def _integers(values: Sequence[int]) -> bytes:
    head = b"\xdd" + len(values).to_bytes(4, "big")
    if all(0 <= value < 1 << 32 for value in values):  # All of one width: in one go.
        return head + struct.pack(">" + "BI" * len(values),
                                  *itertools.chain.from_iterable((0xce, value) for value in values))
    return head + b"".join(map(_integer, values))


def _text(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) < 32:
        return bytes([0xa0 | len(encoded)]) + encoded
    return b"\xdb" + len(encoded).to_bytes(4, "big") + encoded
