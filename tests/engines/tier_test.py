#!/usr/bin/env python3
"""KvdTier below vLLM's own tiering, whose real classes drive it here with host memory alone, since all of it in an
engine wants a GPU: tier_test.py KVD SOURCE_ROOT [unittest arguments], with vLLM's environment."""

import hashlib
import os
import pathlib
import sys
import time
import types
import unittest
import uuid

KVD, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
sys.path[:0] = [str(ROOT / "client/python"), str(ROOT / "tests/client/python")]

from daemon import PATIENCE, Daemon  # noqa: E402
from vllm.v1.kv_offload.base import (LookupResult, OffloadingSpec, ReqContext,  # noqa: E402
                                     ScheduleEndContext, make_offload_key)
from vllm.v1.kv_offload.config import (OffloadingCacheConfig, OffloadingConfig,  # noqa: E402
                                       OffloadingGroupConfig, OffloadingModelConfig, OffloadingParallelConfig)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion  # noqa: E402
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory  # noqa: E402
from vllm.v1.kv_offload.tiering.manager import (CPUPrimaryTierOffloadingManager,  # noqa: E402
                                                TieringOffloadingManager)

ROW = 64 << 10  # Bytes of a chunk.
CHUNKS = 8


class Spec(OffloadingSpec):
    def get_manager(self):
        raise NotImplementedError

    def get_worker(self, kv_caches):
        raise NotImplementedError


def spec(model="test/tiny"):
    return Spec(OffloadingConfig(
        groups=(OffloadingGroupConfig(16, ("layer.0",), 0),), worker_kv_bytes_per_block=ROW,
        enable_kv_cache_events=False, extra_config={}, engine_id="e",
        model=OffloadingModelConfig(model, "float16"), cache=OffloadingCacheConfig(16, 1),
        parallel=OffloadingParallelConfig(0, 1, 1, 1, 1, 1, 0, 1, None, True)))


def keys(count, chain="a"):
    return [make_offload_key(hashlib.sha256(f"{chain} {i}".encode()).digest(), 0) for i in range(count)]


class Engine:
    """A vLLM's scheduler with host memory of its own, as far as offloading goes."""

    def __init__(self, endpoint, model="test/tiny", **options):
        self.region = SharedOffloadRegion(f"kvd-test-{uuid.uuid4().hex}", CHUNKS, None, ROW, ROW)
        primary = CPUPrimaryTierOffloadingManager(CHUNKS, self.region)
        self.view = self.region._base.view(CHUNKS, ROW).numpy()
        self.tier = SecondaryTierFactory.create_secondary_tier(
            {"type": "KvdTier", "module_path": "kvd.vllm_tier", "endpoint": endpoint,
             # Long, so that a slow machine fails no test.
             "lookup_timeout_ms": 20000, "load_timeout_ms": 20000, "save_timeout_ms": 20000, **options},
            primary.get_kv_memoryview(), spec(model))
        self.manager = TieringOffloadingManager(primary, [self.tier])
        self.requests = 0

    def request(self):
        self.requests += 1
        context = ReqContext(str(self.requests))
        self.manager.on_new_request(context)
        return context

    def step(self):
        self.manager.on_schedule_end(ScheduleEndContext((), ()))

    def store(self, names):
        """As a GPU would have filled the chunks, and until the tier is done with them."""
        context = self.request()
        output = self.manager.prepare_store(names, context)
        for key, chunk in zip(output.keys_to_store, output.store_spec.block_ids):
            self.view[chunk] = memoryview(hashlib.shake_128(key).digest(ROW))
        self.manager.complete_store(output.keys_to_store, context)
        self.tier.drain_jobs()
        self.manager.on_request_finished(context)
        self.step()

    def find(self, names):
        """How many chunks from the first on can be loaded, after as many steps as that takes."""
        context = self.request()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            results = [self.manager.lookup(key, context) for key in names]
            if not {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(results):
                break
            self.step()
        found = next((i for i, result in enumerate(results) if result != LookupResult.HIT), len(names))
        loaded = self.manager.prepare_load(names[:found], context) if found else None
        pages = [bytes(self.view[chunk]) for chunk in loaded.block_ids] if loaded else []
        if loaded:
            self.manager.complete_load(names[:found], context)
        self.manager.on_request_finished(context)
        self.step()
        return pages

    def end(self):
        self.view = None  # Or vLLM could not close the mapping.
        self.manager.shutdown()


class TierTest(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon(KVD)
        self.daemon.start()
        self.addCleanup(self.daemon.__exit__)

    def engine(self, **options):
        engine = Engine(self.daemon.endpoint, **options)
        self.addCleanup(engine.end)
        return engine

    def expected(self, names):
        return [hashlib.shake_128(key).digest(ROW) for key in names]

    def test_another_engine_loads_what_one_stored(self):
        self.engine().store(keys(5))

        self.assertEqual(self.engine().find(keys(5)), self.expected(keys(5)))

    def test_what_left_host_memory_comes_back(self):
        engine = self.engine()
        engine.store(keys(5))
        engine.store(keys(CHUNKS, "b"))  # Takes all of the host's room.

        self.assertEqual(engine.find(keys(5)), self.expected(keys(5)))

    def test_chunks_come_in_any_order_and_without_those_before_them(self):
        self.engine().store(list(reversed(keys(6)[2:])))
        engine = self.engine()

        self.assertEqual(engine.find(keys(6)), [])
        self.assertEqual(engine.find(keys(6)[3:]), self.expected(keys(6)[3:]))

    def test_other_models_and_weights_share_nothing(self):
        self.engine().store(keys(2))

        self.assertEqual(self.engine(model="test/other").find(keys(2)), [])
        self.assertEqual(self.engine(weights_revision="2").find(keys(2)), [])

    def test_the_daemon_may_come_late_and_go_at_any_time(self):
        self.daemon.kill()
        engine = self.engine()
        engine.store(keys(2))
        self.daemon.start()
        end = time.monotonic() + PATIENCE
        names, number = [], 0
        while not names or not self.engine().find(names):
            number += 1
            names = keys(1, f"chain {number}")
            engine.store(names)
            self.assertLess(time.monotonic(), end)
        self.daemon.kill()
        self.assertEqual(self.engine().find(names), [])
        engine.store(keys(2, "after"))  # The jobs end.

    def test_a_daemon_that_hangs_ends_jobs_in_time(self):
        engine = self.engine(save_timeout_ms=200, lookup_timeout_ms=200)
        self.daemon.freeze()
        for chain in "abcd":
            engine.store(keys(2, chain))
        found = engine.find(keys(2, "e"))
        self.daemon.thaw()
        self.assertEqual(found, [])

    def test_a_chunk_that_is_gone_ends_its_load_and_is_not_asked_for_again(self):
        self.engine().store(keys(3))
        engine = self.engine()
        real = engine.tier._daemon.client

        class Forgetful:
            """Finds all, and has lost the second."""
            gets = 0

            def lookup(self, *args, **options):
                return real.lookup(*args, **options)

            def get(self, namespace, names, target, **options):
                self.gets += 1
                if self.gets == 2:
                    return types.SimpleNamespace(blocks=0)
                return real.get(namespace, names, target, **options)
        engine.tier._daemon.client = Forgetful()

        self.assertEqual(engine.find(keys(3)), self.expected(keys(1)))

    def test_no_file_is_left(self):
        self.engine().store(keys(1))
        self.doCleanups()
        self.assertFalse([name for name in os.listdir("/dev/shm") if name.startswith("vllm_offload_kvd-test-")])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
