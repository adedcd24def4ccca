"""Mooncake Store by its dummy client: memory shared with the node's real client over a memfd.

  mooncake_driver.py HOST:PORT    of mooncake_client's RPC
"""

import ctypes
import sys

import numpy as np
from mooncake.store import MooncakeDistributedStore

import driver

CHAIN_BYTES = 512


class Mooncake(driver.Store):
    def __init__(self, address):
        self._store = MooncakeDistributedStore()
        # The pool has room for payload and for the small values of `exists`.
        pool = driver.BUFFER_BYTES + (64 << 20)
        code = self._store.setup_dummy(pool, 16 << 20, address)
        if code != 0:
            raise RuntimeError(f"setup_dummy: error {code}")
        self._address = self._allocate(driver.BUFFER_BYTES)
        self._small = self._allocate(1 << 20)
        memory = (ctypes.c_uint8 * driver.BUFFER_BYTES).from_address(self._address)
        self.buffer = np.frombuffer(memory, dtype=np.uint8)
        self.buffer[:] = 0  # Touched, so that no call pays for a page fault.
        self._chains = []

    def _allocate(self, size):
        address = self._store.alloc_from_mem_pool(size)
        if not address:
            raise RuntimeError(f"alloc_from_mem_pool: no room for {size} bytes")
        code = self._store.register_buffer(address, size)
        if code != 0:
            raise RuntimeError(f"register_buffer: error {code}")
        return address

    def prepare(self, size, numbers, place):
        keys = [f"{size}:{number}" for number in numbers]
        pointers = [self._address + (place + i) * size for i in range(len(keys))]
        return keys, pointers, [size] * len(keys)

    def put(self, call):
        keys, pointers, sizes = call
        if len(keys) == 1:
            codes = [self._store.put_from(keys[0], pointers[0], sizes[0])]
        else:
            codes = self._store.batch_put_from(keys, pointers, sizes)
        bad = [code for code in codes if code != 0]
        self.trouble = f"error {bad[0]}" if bad else ""
        if bad and len(bad) == len(codes):
            raise RuntimeError(f"put: error {bad[0]}")
        return len(codes) - len(bad)

    def get(self, call):
        keys, pointers, sizes = call
        if len(keys) == 1:
            lengths = [self._store.get_into(keys[0], pointers[0], sizes[0])]
        else:
            lengths = self._store.batch_get_into(keys, pointers, sizes)
        if all(length < 0 for length in lengths):
            raise RuntimeError(f"get: error {lengths[0]}")
        return [length == size for length, size in zip(lengths, sizes)]

    def check(self, call):
        keys, pointers, sizes = call
        there = self._store.is_exist(keys[0]) == 1
        length = self._store.get_into(keys[0], pointers[0], sizes[0])
        return there, length == sizes[0]

    def seed(self, count):
        self._chains = []
        for chain in range(driver.SEED_CHAINS):
            keys = [f"chain{chain}:{i}" for i in range(count)]
            pointers = [self._small + i * CHAIN_BYTES for i in range(count)]
            codes = self._store.batch_put_from(keys, pointers, [CHAIN_BYTES] * count)
            if any(codes):
                raise RuntimeError(f"seed: error {next(code for code in codes if code)}")
            self._chains.append({n: keys[:n] for n in (64, 256, 512) if n <= count})

    def exists(self, chain, count):
        return sum(self._store.batch_is_exist(self._chains[chain][count]))

    def forget(self, size, first, count):
        keys = [f"{size}:{number}" for number in range(first, first + count)]
        self._store.batch_remove(keys, True)  # Whether or not somebody has a lease.


if __name__ == "__main__":
    driver.serve(lambda: Mooncake(sys.argv[1]), largest=4 << 20)
