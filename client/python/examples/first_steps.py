#!/usr/bin/env python3
"""Puts two blocks into the daemon, finds them, gets them back and pins them: first_steps.py [ENDPOINT]."""

import sys

import kvd

PART_BYTES = 4096

client = kvd.Client(sys.argv[1] if len(sys.argv) > 1 else None)
try:
    # And whatever else, if it differed, would make the bytes wrong.
    model = client.register(kvd.Descriptor("example/8b", hash_algorithm="example",
                                           groups=[kvd.Group(block_tokens=16, part_bytes=PART_BYTES)]))
except kvd.KvdError as error:
    sys.exit(f"namespace: {error}")
keys = [b"a" * 32, b"b" * 32]  # An engine's chain hashes, root first.
pages = [b"A" * PART_BYTES, b"B" * PART_BYTES]
targets = [bytearray(PART_BYTES) for _ in keys]

put = client.put(model, keys, pages)  # What is there is passed over.
hit = client.lookup(model, keys, lease=30)
got = client.get(model, keys, targets)  # Copied and verified.
pin = client.pin(model, keys[-1], owner="first-steps")
client.release_lease(hit.lease)
equal = "equal" if targets == pages else "not equal"
print(f"stored {put.stored}, present {put.present}, hit {hit.blocks}, got {got.blocks} {equal}, "
      f"pinned {pin.blocks} blocks")
