#!/usr/bin/env python3
"""KvdStorage, in the orders in which SGLang calls it and with what can go wrong between two calls:
sglang_storage_test.py KVD SOURCE_ROOT [unittest arguments]. The daemon is a real one."""

import hashlib
import pathlib
import sys
import threading
import time
import unittest

KVD = pathlib.Path(sys.argv[1]).resolve()
ROOT = pathlib.Path(sys.argv[2]).resolve()
sys.path.insert(0, str(ROOT / "client/python"))

import sglang_fakes  # noqa: E402

sglang_fakes.install()

import kvd  # noqa: E402
from daemon import PATIENCE, Daemon  # noqa: E402
from kvd.sglang.storage import KvdStorage  # noqa: E402
from sglang_fakes import HostPool, Transfer, config, info  # noqa: E402

PAGE = 4
WINDOW = 3  # Pages.


def keys(count, chain="a"):
    """Of the first pages of a chain."""
    return [hashlib.sha256(f"{chain} {number}".encode()).hexdigest() for number in range(count)]


class WithDaemon(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon(KVD)
        self.daemon.start()
        self.addCleanup(self.daemon.__exit__)

    def make(self, pools=None, extra=None, **changes):
        """A backend and its pools, attached as SGLang does it."""
        pools = pools or {"kv": HostPool()}
        # Long, so that a slow machine fails no test.
        options = {"endpoint": self.daemon.endpoint, "lookup_timeout_ms": 20000, "load_timeout_ms": 20000,
                   "save_timeout_ms": 20000, "sliding_window_tokens": WINDOW * PAGE, **(extra or {})}
        storage = KvdStorage(config(options, **changes), {})
        self.addCleanup(storage.close)
        storage.register_mem_pool_host(pools["kv"])
        for name, pool in pools.items():
            storage.register_mem_host_pool_v2(pool, name)
        storage.on_host_pools_registered()
        return storage, pools["kv"]

    def save(self, storage, pool, names, prefix=(), seed=1):
        """Of pages with other bytes each; returns them."""
        indices = pool.alloc(len(names) * PAGE)
        pool.fill(indices, seed)
        self.assertEqual(storage.batch_set_v1(names, indices, info(list(prefix))), [True] * len(names))
        return pool.contents(indices)

    def load(self, storage, pool, names, prefix=None):
        """What was loaded, and the bytes."""
        indices = pool.alloc(len(names) * PAGE)
        pool.fill(indices, 99)
        good = storage.batch_get_v1(names, indices, info(prefix))
        return good, pool.contents(indices)


class PagesTest(WithDaemon):
    def test_another_backend_finds_what_one_stored(self):
        first, pool = self.make()
        stored = self.save(first, pool, keys(5))
        second, other = self.make()

        self.assertEqual(second.batch_exists(keys(9), info(None)), 5)
        self.assertEqual(self.load(second, other, keys(5)), ([True] * 5, stored))

    def test_a_chain_goes_on_below_its_prefix(self):
        storage, pool = self.make()
        self.save(storage, pool, keys(3))
        tail = self.save(storage, pool, keys(6)[3:], prefix=keys(3), seed=2)

        self.assertEqual(storage.batch_exists(keys(8)[2:], info(keys(2))), 4)
        self.assertEqual(self.load(storage, pool, keys(6)[3:], keys(3)), ([True] * 3, tail))

    def test_a_page_that_is_not_there_ends_the_prefix(self):
        storage, pool = self.make()
        stored = self.save(storage, pool, keys(2))

        good, loaded = self.load(storage, pool, keys(4))

        self.assertEqual((good, loaded[:2]), ([True, True, False, False], stored))

    def test_a_lease_ends_when_all_that_it_keeps_was_loaded(self):
        storage, pool = self.make()
        self.save(storage, pool, keys(5))
        released = []
        pool_of = storage._pools["kv"]
        pool_of.daemon.client.release_lease = released.append

        storage.batch_exists(keys(5), info(None))
        self.load(storage, pool, keys(3))
        self.assertEqual(released, [])
        self.load(storage, pool, keys(5)[3:], keys(3))
        self.load(storage, pool, keys(5))

        self.assertEqual(len(released), 1)
        self.assertGreater(released[0], 0)

    def test_pieces_of_any_number(self):
        for pieces in (1, 8):
            with self.subTest(pieces):
                storage, pool = self.make({"kv": HostPool(pieces=pieces)})
                stored = self.save(storage, pool, keys(3))
                self.assertEqual(self.load(storage, pool, keys(3)), ([True] * 3, stored))

    def test_other_pages_are_another_namespace(self):
        storage, pool = self.make()
        self.save(storage, pool, keys(2))
        direct = HostPool()
        direct.layout = "page_first_direct"
        for changes in ({"pools": {"kv": HostPool(piece_bytes=8192)}}, {"pools": {"kv": direct}},
                        {"extra": {"weights_revision": "2"}}, {"pp_size": 2}, {"attn_cp_size": 2, "attn_cp_rank": 1}):
            with self.subTest(changes):
                self.assertEqual(self.make(**changes)[0].batch_exists(keys(2), info(None)), 0)

    def test_a_page_is_found_when_all_ranks_have_stored_it(self):
        ranks = [self.make(tp_size=2, tp_rank=rank) for rank in range(2)]
        first = self.save(*ranks[0], keys(2), seed=1)
        self.assertEqual([storage.batch_exists(keys(2), info(None)) for storage, _ in ranks], [0, 0])

        second = self.save(*ranks[1], keys(2), seed=2)

        self.assertEqual([storage.batch_exists(keys(2), info(None)) for storage, _ in ranks], [2, 2])
        self.assertEqual(self.load(*ranks[0], keys(2)), ([True] * 2, first))
        self.assertEqual(self.load(*ranks[1], keys(2)), ([True] * 2, second))

    def test_ranks_with_the_same_pages_share_one_copy(self):
        ranks = [self.make(tp_size=2, tp_rank=rank, is_mla_model=True) for rank in range(2)]
        stored = self.save(*ranks[0], keys(2))

        self.assertEqual(self.load(*ranks[1], keys(2)), ([True] * 2, stored))

    def test_many_threads_at_once(self):
        storage, pool = self.make({"kv": HostPool(pages=256)})
        stored = {chain: self.save(storage, pool, keys(8, chain), seed=ord(chain)) for chain in "abcd"}
        room = {chain: pool.alloc(8 * PAGE) for chain in stored}
        wrong = []

        def load(chain):
            for _ in range(20):
                if storage.batch_exists(keys(8, chain), info(None)) != 8 or not all(
                        storage.batch_get_v1(keys(8, chain), room[chain], info(None))) or \
                        pool.contents(room[chain]) != stored[chain]:
                    wrong.append(chain)
        threads = [threading.Thread(target=load, args=(chain,)) for chain in stored]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


class SidePoolsTest(WithDaemon):
    def pools(self):
        return {"kv": HostPool(), "swa": HostPool(pieces=1)}

    def save_both(self, storage, pools, names, side, prefix=()):
        """As SGLang does it: the side pool first, of the last pages."""
        window = pools["swa"].alloc(len(side) * PAGE)
        pools["swa"].fill(window, 5)
        covered = list(prefix) + names[:len(names) - len(side)]
        accepted = storage.batch_set_v2([Transfer("swa", window, side)], info(covered))
        self.assertEqual(accepted, {"swa": [True] * len(side)})
        self.save(storage, pools["kv"], names, prefix)
        return pools["swa"].contents(window)

    def load_side(self, storage, pools, names, prefix):
        indices = pools["swa"].alloc(len(names) * PAGE)
        pools["swa"].fill(indices, 99)
        good = storage.batch_get_v2([Transfer("swa", indices, names)], info(prefix))["swa"]
        return good, pools["swa"].contents(indices)

    def test_a_hit_ends_where_the_window_is_there(self):
        storage, _ = self.make(pools := self.pools())
        window = self.save_both(storage, pools, keys(6), keys(6)[3:])
        self.save(storage, pools["kv"], keys(9)[6:], prefix=keys(6))

        hit = storage.batch_exists_v2(keys(9), [Transfer("swa", keys=["?"] * WINDOW)], info(None))

        self.assertEqual((hit.kv_hit_pages, hit.extra_pool_hit_pages, hit.restorable_prefix_pages),
                         (6, {"swa": 6}, [6]))
        self.assertTrue(all(self.load(storage, pools["kv"], keys(6))[0]))
        self.assertEqual(self.load_side(storage, pools, keys(6)[3:], keys(3)), ([True] * 3, window))

    def test_a_window_that_is_not_there_is_a_miss(self):
        storage, _ = self.make(pools := self.pools())
        self.save(storage, pools["kv"], keys(6))

        self.assertEqual(storage.batch_exists_v2(keys(6), [], info(None)).kv_hit_pages, 0)
        self.assertEqual(self.load_side(storage, pools, keys(6)[3:], keys(3))[0], [False] * 3)

    def test_windows_of_an_operation_in_several_batches(self):
        storage, _ = self.make(pools := self.pools())
        window = pools["swa"].alloc(WINDOW * PAGE)
        pools["swa"].fill(window, 5)
        storage.batch_set_v2([Transfer("swa", window, keys(6)[3:])], info(keys(3)))
        self.save(storage, pools["kv"], keys(4))
        self.save(storage, pools["kv"], keys(6)[4:], prefix=keys(4))

        self.assertEqual(self.load_side(storage, pools, keys(6)[3:], keys(3)),
                         ([True] * 3, pools["swa"].contents(window)))

    def test_what_waits_of_one_operation_is_not_stored_by_another(self):
        # Its host memory may be anybody's by then.
        storage, _ = self.make(pools := self.pools())
        window = pools["swa"].alloc(WINDOW * PAGE)
        storage.batch_set_v2([Transfer("swa", window, keys(6)[3:])], info(keys(3)))
        self.save(storage, pools["kv"], keys(2, "other"))
        self.save(storage, pools["kv"], keys(6))

        self.assertEqual(storage.batch_exists(keys(6), info(None)), 0)

    def test_a_state_is_needed_at_the_end_alone(self):
        pools = {"kv": HostPool(), "mamba": HostPool(page_size=1, pieces=1)}
        storage, _ = self.make(pools)
        state = pools["mamba"].alloc(1)
        pools["mamba"].fill(state, 5)
        storage.batch_set_v2([Transfer("mamba", state, keys(4)[3:])], info(keys(3)))
        self.save(storage, pools["kv"], keys(4))
        self.save(storage, pools["kv"], keys(6)[4:], prefix=keys(4))
        room = pools["mamba"].alloc(1)

        self.assertEqual(storage.batch_exists(keys(6), info(None)), 4)
        self.assertEqual(storage.batch_get_v2([Transfer("mamba", room, keys(4)[3:])], info(keys(3))),
                         {"mamba": [True]})
        self.assertEqual(pools["mamba"].contents(room), pools["mamba"].contents(state))

    def test_a_pool_that_is_needed_everywhere(self):
        pools = {"kv": HostPool(), "indexer": HostPool(pieces=1)}
        storage, _ = self.make(pools)
        index = pools["indexer"].alloc(3 * PAGE)
        storage.batch_set_v2([Transfer("indexer", index, keys(3))], info([]))
        self.save(storage, pools["kv"], keys(3))
        self.save(storage, pools["kv"], keys(5)[3:], prefix=keys(3))

        self.assertEqual(storage.batch_exists(keys(5), info(None)), 3)


class MemoryTest(WithDaemon):
    def large(self, sealed):
        return {"kv": HostPool(pages=8, piece_bytes=1 << 20, sealed=sealed)}

    def test_pages_of_a_sealed_pool_are_read_where_they_lie(self):
        storage, pool = self.make(self.large(sealed=True))
        stored = self.save(storage, pool, keys(3))

        self.assertEqual(self.load(storage, pool, keys(3)), ([True] * 3, stored))
        client = storage._pools["kv"].daemon.client
        with self.assertRaisesRegex(kvd.FailedPrecondition, "(?i)before|already|once"):
            client.adopt_memory(pool.fd, pool.memory)

    def test_a_pool_that_cannot_be_sealed_is_copied(self):
        with self.assertLogs("sglang.kvd", "WARNING") as logs:
            storage, pool = self.make(self.large(sealed=False))
        stored = self.save(storage, pool, keys(3))

        self.assertRegex(logs.output[0], "copied once more: .*F_SEAL_SHRINK")
        self.assertEqual(self.load(storage, pool, keys(3)), ([True] * 3, stored))

    def test_a_daemon_that_starts_again_is_shown_the_memory_again(self):
        storage, pool = self.make(self.large(sealed=True))
        self.daemon.stop()
        self.daemon.start()
        end = time.monotonic() + PATIENCE
        indices = pool.alloc(PAGE)
        while storage.batch_set_v1(keys(1), indices, info([])) != [True]:
            self.assertLess(time.monotonic(), end)
        self.assertTrue(all(self.load(storage, pool, keys(1))[0]))


class FailuresTest(WithDaemon):
    def test_the_daemon_may_come_late_and_go_at_any_time(self):
        self.daemon.kill()
        storage, pool = self.make()
        indices = pool.alloc(2 * PAGE)
        self.assertEqual(storage.batch_set_v1(keys(2), indices, info([])), [False] * 2)
        self.assertEqual(storage.batch_exists(keys(2), info(None)), 0)
        self.assertEqual(storage.batch_get_v1(keys(2), indices, info(None)), [False] * 2)
        self.daemon.start()
        end = time.monotonic() + PATIENCE
        while storage.batch_set_v1(keys(2), indices, info([])) != [True] * 2:
            self.assertLess(time.monotonic(), end)
        self.assertEqual(storage.batch_exists(keys(2), info(None)), 2)
        self.daemon.kill()
        self.assertEqual(storage.batch_exists(keys(2), info(None)), 0)

    def test_a_daemon_that_hangs_costs_one_deadline_and_then_nothing_for_a_while(self):
        storage, pool = self.make(extra={"lookup_timeout_ms": 50})
        calls = []
        pool_of = storage._pools["kv"]
        self.daemon.freeze()

        class Counting:
            def lookup(self, *args, **options):
                calls.append(args)
                return client.lookup(*args, **options)
        client, pool_of.daemon.client = pool_of.daemon.client, Counting()
        found = [storage.batch_exists(keys(2), info(None)) for _ in range(100)]
        self.daemon.thaw()

        self.assertEqual(found, [0] * 100)
        self.assertLess(len(calls), 10)

    def test_pages_without_their_prefix_are_not_stored_and_the_log_says_what_to_add(self):
        storage, pool = self.make()
        with self.assertLogs("sglang.kvd", "ERROR") as logs:
            good = [storage.batch_set_v1(keys(2), pool.alloc(2 * PAGE), info(None)) for _ in range(2)]
        self.assertEqual(good, [[False] * 2] * 2)
        self.assertEqual(len(logs.output), 1)
        self.assertIn('"hicache_storage_pass_prefix_keys": true', logs.output[0])

    def test_what_cannot_work_is_refused_with_one_sentence(self):
        lying = HostPool()
        lying.get_data_page = lambda index, flat: sglang_fakes.Page(bytes(2 * 4096))
        nameless = HostPool()
        nameless.get_page_buffer_meta = lambda indices: (_ for _ in ()).throw(ValueError("Unsupported layout"))
        for made, sentence in [
                ({"extra": {"interface_v1": 0}}, '"interface_v1": 1'),
                ({"extra": {"lease": 1}}, "has no lease; there are: endpoint, "),
                ({"dcp_size": 2}, "decode context parallelism"),
                ({"should_split_heads": True}, "tp_lcm_size"),
                ({"pools": {"kv": HostPool(), "deepseek_v4_c1": HostPool()}}, "deepseek_v4_c1 is not supported"),
                ({"pools": {"kv": HostPool(), "mamba": HostPool()}, "is_mla_model": True, "tp_size": 2},
                 "--tp-size 1"),
                ({"pools": {"kv": HostPool(), "swa": HostPool()}, "extra": {"sliding_window_tokens": None}},
                 '"sliding_window_tokens"'),
                ({"pools": {"kv": HostPool(pieces=160)}, "tp_size": 2}, "--hicache-mem-layout page_first"),
                ({"pools": {"kv": nameless}}, "names no memory .*Unsupported layout.*--hicache-mem-layout"),
                ({"pools": {"kv": lying}}, "does not read back")]:
            with self.subTest(sentence), self.assertRaisesRegex(ValueError, sentence):
                self.make(**made)

    def test_a_pool_that_comes_late_is_refused(self):
        storage, _ = self.make()
        with self.assertRaisesRegex(ValueError, "draft came after the others"):
            storage.register_mem_host_pool_v2(HostPool(), "draft")

    def test_bytes_that_the_daemon_gives_back_otherwise_are_refused(self):
        class Flipping(kvd.Client):
            def get(self, namespace, keys_, targets, **options):
                got = super().get(namespace, keys_, targets, **options)
                sglang_fakes.ctypes.c_char.from_address(targets[0].address).value = b"?"
                return got
        real, kvd.Client = kvd.Client, Flipping
        try:
            with self.assertRaisesRegex(ValueError, "comes back from the daemon as other bytes"):
                self.make()
        finally:
            kvd.Client = real

    def test_a_full_pool_is_attached_without_the_self_test(self):
        pool = HostPool()
        pool.free_pages = []
        self.make({"kv": pool})

    def test_calls_without_pointers_are_misses(self):
        storage, _ = self.make()
        self.assertEqual((storage.get("k"), storage.batch_get(["k"]), storage.set("k"), storage.batch_set(["k"])),
                         (None, [None], False, False))
        self.assertFalse(storage.exists(keys(1)[0]))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
