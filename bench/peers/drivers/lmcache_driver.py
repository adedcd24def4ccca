"""LMCache's multiprocess server by the client of its own `lmcache bench server`, engine-driven: the
client copies between its pages and the server's shared-memory pool, so no GPU is needed.

  lmcache_driver.py RPC_URL HTTP_URL

LMCache stores chunks of tokens of a model's KV cache, not bytes under a name. A block is one chunk
of 16 tokens (the server runs with --chunk-size 16); the model has one layer and one plane, so that a
chunk is one contiguous run of bytes and gathering it one copy: the layout that favours it most.
A batch is one request of 16 chunks, as an engine would store and load a prompt.
"""

import sys
import time

import torch
from lmcache.cli.commands.bench.server_bench import client as bench_client
from lmcache.cli.commands.bench.server_bench import config as bench_config
from lmcache.cli.commands.bench.server_bench import helpers

import driver

CHUNK_TOKENS = 16
CHAIN_BYTES = 512
HALF = 2  # Bytes of a float16.
RPC_TIMEOUT = 10.0


class Client(bench_client.ServerBenchClient):
    """One registered KV cache of pages of `size` bytes."""

    def __init__(self, rpc_url, http_url, size, pages):
        hidden = size // CHUNK_TOKENS // HALF
        config = bench_config.BenchConfig(
            rpc_url=rpc_url, http_url=http_url, mode="cpu", transfer_mode="engine_driven",
            tp_size=1, use_mla=True, num_tokens=CHUNK_TOKENS,
            kvcache_shape_spec=f"(1,{pages},{CHUNK_TOKENS},1,{hidden}):float16:1",
            num_blocks=pages, block_size=CHUNK_TOKENS)
        super().__init__(config, lambda text: None)
        self.model = f"peers-{size}"

    def start(self):
        # Each size is a model of its own; the bench knows one name and one instance.
        helpers._MODEL_NAME = self.model
        helpers._INSTANCE_ID_BASE = 1000 + abs(hash(self.model)) % 1_000_000
        super().start()
        self.worker = self._workers[0]
        self.rpc = self._req_client


class Call:
    """One request over the chunks of `numbers`, whose pages begin at `place`."""

    def __init__(self, client, numbers, place, generation, serial):
        tokens = []
        for number in numbers:  # Tokens that no other chunk begins with, so no prefix is shared.
            tokens += [number % 30_000, number // 30_000, generation % 30_000,
                       generation // 30_000] + [7] * (CHUNK_TOKENS - 4)
        self.client = client
        self.chunks = len(numbers)
        self.request = f"request-{serial}"
        self.pages = list(range(place, place + len(numbers)))
        helpers._MODEL_NAME = client.model
        whole = dict(start=0, end=len(tokens), world_size=1)
        self.lookup_key = helpers._make_key(tuple(tokens), self.request, **whole)
        self.key = helpers._make_key(tuple(tokens), self.request, worker_id=0, **whole)


class LMCache(driver.Store):
    def __init__(self, rpc_url, http_url):
        self._urls = (rpc_url, http_url)
        self._clients = {}
        self._generation = 0
        self._serial = 0
        self._chains = []
        self._calls = []  # Of `exists`, named before the clock starts.
        self._next = 0
        self.use(256 << 10)

    def use(self, size):
        if size not in self._clients:
            self._close_all_but(())  # Two pools of pages would be twice the memory.
            client = Client(*self._urls, size, driver.BUFFER_BYTES // size)
            client.start()
            self._clients[size] = client
        self._current = self._clients[size]
        pages = next(iter(self._current.worker.kv_caches.values()))
        self.buffer = pages.view(torch.uint8).numpy().reshape(-1)

    def _close_all_but(self, sizes):
        for size in [size for size in self._clients if size not in sizes]:
            self._clients.pop(size).close()

    def _call(self, client, numbers, place):
        self._serial += 1
        return Call(client, numbers, place, self._generation, self._serial)

    def prepare(self, size, numbers, place):
        return self._call(self._clients[size], numbers, place)

    def put(self, call):
        worker = call.client.worker
        stored = helpers._wait_for_result(worker.transfer_context.submit_store(
            call.request, call.key, worker.kv_caches, [call.pages], None, 1))
        if stored is helpers._TIMEOUT:
            raise TimeoutError("store")
        return call.chunks if stored else 0

    def get(self, call):
        hits = self._lookup(call)
        done = False
        if hits == call.chunks:
            worker = call.client.worker
            done = helpers._wait_for_result(worker.transfer_context.submit_retrieve(
                call.request, call.key, worker.kv_caches, [call.pages], None, 1,
                skip_first_n_tokens=0))
            if done is helpers._TIMEOUT:
                raise TimeoutError("retrieve")
        return [bool(done)] * call.chunks

    def check(self, call):
        found = self.get(call)[0]
        return found, found

    def _lookup(self, call):
        """How many chunks there are; they are locked for this request until it retrieves them."""
        if not helpers._send_lookup(call.client.rpc, call.lookup_key, tp_size=1):
            raise TimeoutError("lookup")
        end = time.monotonic() + RPC_TIMEOUT
        while time.monotonic() < end:  # No pause in between: it is meant to be fast.
            hits = helpers._wait_for_result(call.client.rpc.query_prefetch_status(call.request))
            if hits is helpers._TIMEOUT:
                break
            if hits is not None:
                return hits
        raise TimeoutError("prefetch status")

    def seed(self, count):
        self._close_all_but(())
        client = Client(*self._urls, CHAIN_BYTES, count)
        client.start()
        self._clients[CHAIN_BYTES] = client
        self._chains = [range((1 << 24) + chain * count, (1 << 24) + (chain + 1) * count)
                        for chain in range(driver.SEED_CHAINS)]
        for chain in self._chains:
            if self.put(self._call(client, chain, 0)) != count:
                raise RuntimeError("seed: not stored")

    def before_exists(self, count, times):
        client = self._clients[CHAIN_BYTES]
        self._calls = [self._call(client, self._chains[i % driver.SEED_CHAINS][:count], 0)
                       for i in range(times)]
        self._next = 0

    def exists(self, chain, count):
        self._next += 1
        return self._lookup(self._calls[self._next - 1])

    def after_exists(self):
        for call in self._calls:  # Gives the locks back.
            helpers._send_end_session(call.client.rpc, call.request)

    def forget(self, size, first, count):
        # A chunk that is there is not stored again, and eviction comes once a second only: room is
        # made by hand, as nobody who measures a put should pay for it.
        helpers._wait_for_result(self._current.rpc.clear())
        self._generation += 1


if __name__ == "__main__":
    driver.serve(lambda: LMCache(sys.argv[1], sys.argv[2]), largest=4 << 20)
