#!/usr/bin/env python3
"""The scheduler's side of the vLLM connector, in the orders in which vLLM calls it and with what can go wrong
between two calls: vllm_scheduler_test.py KVD SOURCE_ROOT [unittest arguments]. The daemon is a real one."""

import os
import pathlib
import sys
import time
import unittest
from types import SimpleNamespace

KVD = pathlib.Path(sys.argv[1]).resolve()
ROOT = pathlib.Path(sys.argv[2]).resolve()
sys.path.insert(0, str(ROOT / "client/python"))

import vllm_fakes  # noqa: E402

vllm_fakes.install()

import kvd  # noqa: E402
from daemon import PATIENCE, Daemon  # noqa: E402


class RecordingClient(kvd.Client):
    """Remembers the leases that it was given and gave back."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.released = []

    def release_lease(self, lease):
        if lease:
            self.released.append(lease)
        super().release_lease(lease)


_Client, kvd.Client = kvd.Client, RecordingClient

from kvd.vllm import layout  # noqa: E402
from kvd.vllm.messages import (NO_PAGE, Announced, FromWorkers, GroupLayout,  # noqa: E402
                               WorkerLayout)
from kvd.vllm.options import Options  # noqa: E402
from kvd.vllm.scheduler import SchedulerSide  # noqa: E402
from vllm_fakes import Pool, Request, cache_config, config, hashes, output, step  # noqa: E402

BLOCK = 16
PART = 4096
FULL = GroupLayout("full", 0, False, 1, PART, "a")
# 33 tokens before the next: three blocks.
WINDOW = GroupLayout("window", 33, False, 1, PART, "b")


class WithScheduler(unittest.TestCase):
    groups = (("FullAttentionSpec", BLOCK, 0),)
    layouts = (FULL,)
    ranks = 1

    def setUp(self):
        self.daemon = Daemon(KVD)
        self.daemon.start()
        self.addCleanup(self.daemon.__exit__)
        self.scheduler, self.pool = self.make()

    def make(self, role="kv_both", bind=True, **extra):
        vllm = config(role, self.ranks, {"lookup_timeout_ms": 20000, **extra}, self.daemon.endpoint)
        made = SchedulerSide(vllm, cache_config(*self.groups), Options.of(vllm))
        worker = WorkerLayout(self.layouts, "test")
        made.set_layouts([worker] * self.ranks)
        self.addCleanup(made.shutdown)
        pool = Pool()
        if bind:
            made.bind_pool(pool)
        self.model = layout.descriptor(vllm, worker, BLOCK)
        return made, pool

    def store(self, blocks, seed=0, ranks=None, groups=None):
        """As workers would."""
        client = _Client(self.daemon.endpoint, timeout=PATIENCE)
        ns = client.register(self.model)
        for rank in range(ranks or self.ranks):
            parts = [(g, rank) for g in groups or range(len(self.layouts))]
            client.put(ns, hashes(blocks, seed), bytes(blocks * len(parts) * PART), parts=parts)

    def matched(self, request, computed=0):
        """Asks as often as the engine does, which must come to an end."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            tokens, asynchronous = self.scheduler.matched(request, computed)
            if tokens is not None:
                self.assertEqual(asynchronous, tokens > 0)
                return tokens
            self.assertFalse(asynchronous)
        self.fail("it never knew")

    def released(self):
        return len(self.scheduler._daemon.client.released)


class FindingTest(WithScheduler):
    def test_a_lookup_starts_with_the_request_and_says_ask_again_until_it_has_ended(self):
        self.store(5)
        request = Request("r", 200)
        self.daemon.freeze()
        self.scheduler.on_new_request(request)
        for _ in range(3):
            self.assertEqual(self.scheduler.matched(request, 0), (None, False))
        self.daemon.thaw()

        self.assertEqual(self.matched(request), 80)
        self.assertEqual(self.matched(request), 80)  # As often as it is asked.
        self.assertEqual(self.matched(request, 48), 32)
        self.assertEqual(self.matched(request, 80), 0)
        self.assertEqual(self.released(), 0)

    def test_an_engine_that_does_not_say_that_a_request_came(self):
        self.store(5)
        self.assertEqual(self.matched(Request("r", 200)), 80)

    def test_one_token_is_left_to_compute(self):
        self.store(5)
        self.assertEqual(self.matched(Request("r", 80)), 64)
        self.assertEqual(self.matched(Request("s", 81)), 80)
        self.assertEqual(self.matched(Request("t", 16)), 0)

    def test_a_hit_that_the_engine_has_in_part_of_a_block_is_left_alone(self):
        self.store(5)
        self.assertEqual(self.matched(Request("r", 200), computed=24), 0)

    def test_what_is_found_is_leased_and_given_back_when_the_request_ends(self):
        self.store(5)
        for ending in ("finished", "allocated without us"):
            with self.subTest(ending):
                before, request = self.released(), Request(ending, 200)
                self.assertEqual(self.matched(request), 80)
                if ending == "finished":
                    self.scheduler.finished(request)
                else:
                    self.scheduler.allocated(request, ([1] * 13,), 0)
                self.assertEqual(self.released(), before + 1)

    def test_a_request_that_is_aborted_while_it_is_looked_up(self):
        request = Request("r", 200)
        self.scheduler.on_new_request(request)
        self.scheduler.finished(request)
        self.assertEqual(self.matched(Request("s", 200)), 0)

    def test_an_answer_as_old_as_its_lease_is_asked_for_anew(self):
        self.scheduler, _ = self.make(lease_ms=1000)
        self.store(5)
        request = Request("r", 200)
        self.assertEqual(self.matched(request), 80)
        self.scheduler._lookups["r"].expires = 0
        self.assertEqual(self.scheduler.matched(request, 0), (None, False))
        self.assertEqual(self.matched(request), 80)
        self.assertEqual(self.released(), 1)

    def test_a_daemon_that_is_away_is_a_miss_at_once_and_used_when_it_is_back(self):
        self.store(5)
        self.daemon.kill()
        self.assertEqual(self.matched(Request("r", 200)), 0)
        self.assertEqual(self.scheduler.stats.data["lookup_failures"], 1)

        self.daemon.start()
        self.store(5)
        end = time.monotonic() + PATIENCE
        number = 0
        while time.monotonic() < end and self.matched(Request(f"s{number}", 200)) != 80:
            number += 1
        self.assertEqual(self.matched(Request("t", 200)), 80)

    def test_a_daemon_that_does_not_answer_is_a_miss_by_the_timeout(self):
        self.scheduler, _ = self.make(lookup_timeout_ms=50)
        self.daemon.freeze()
        self.assertEqual(self.matched(Request("r", 200)), 0)
        self.daemon.thaw()

    def test_a_daemon_that_comes_after_the_engine(self):
        self.daemon.kill()
        self.scheduler, _ = self.make()
        self.assertEqual(self.matched(Request("r", 200)), 0)
        self.assertEqual(self.scheduler.plan(step(new=[("r", 0, 200, ([1] * 13,))])).saves, [])
        self.daemon.start()
        self.store(5)
        end = time.monotonic() + PATIENCE
        while self.scheduler._daemon.namespace is None and time.monotonic() < end:
            pass
        self.assertEqual(self.matched(Request("s", 200)), 80)

    def test_a_producer_looks_nothing_up(self):
        self.store(5)
        self.scheduler, _ = self.make(role="kv_producer")
        self.scheduler.on_new_request(Request("r", 200))
        self.assertEqual(self.matched(Request("r", 200)), 0)

    def test_hits_are_split_by_tier(self):
        self.store(5)
        request = Request("r", 200)
        self.matched(request, 16)
        self.scheduler.allocated(request, (list(range(1, 14)),), 64)
        self.assertEqual(self.scheduler.hit_tiers(request, 64), {kvd.Tier.DRAM: 64})


class LoadingTest(WithScheduler):
    def load(self, name="r", computed=32):
        self.store(5)
        request = Request(name, 200)
        tokens = self.matched(request, computed)
        self.scheduler.allocated(request, (list(range(101, 114)),), tokens)
        self.scheduler.allocated(request, (list(range(101, 114)),), 0) if tokens == 0 else None
        return request

    def test_a_load_names_the_blocks_after_the_engines_own_hit(self):
        self.load()

        job, = self.scheduler.plan(step()).loads

        self.assertEqual((job.request, job.first, job.last), ("r", 2, 5))
        self.assertEqual(job.pages, ((103, 104, 105),))
        self.assertEqual(job.keys, b"".join(hashes(5)))
        self.assertEqual(job.parent(2), hashes(5)[1])
        self.assertIsNone(job.parent(0))
        self.assertEqual(self.scheduler.plan(step()).loads, [])

    def test_the_second_allocation_after_a_load_loads_nothing(self):
        request = self.load()
        self.scheduler.plan(step())
        self.scheduler.on_output(output(loaded=["r"]))
        self.assertEqual(self.released(), 1)

        self.scheduler.allocated(request, (list(range(101, 114)),), 0)

        self.assertEqual(self.scheduler.plan(step()).loads, [])
        self.assertEqual(self.released(), 1)

    def test_an_abort_while_loading_is_ended_by_the_workers(self):
        request = self.load()
        self.scheduler.plan(step())
        self.scheduler.finished(request)
        self.scheduler.on_output(output(loaded=["r"]))
        self.assertEqual(self.released(), 1)
        self.assertEqual(self.matched(Request("r", 200)), 80)  # The name may come again.

    def test_a_request_whose_load_failed_is_computed_without_us_once(self):
        for how in ({"invalid": [104]}, {"failed": ["r"]}):
            with self.subTest(how):
                request = self.load()
                self.scheduler.plan(step())
                self.scheduler.on_output(output(loaded=["r"], **how))

                self.assertEqual(self.matched(request), 0)
                self.scheduler.allocated(request, ([1] * 13,), 0)
                self.assertEqual(self.matched(request), 80)  # After a preemption, say.
                self.scheduler.finished(request)

    def test_pages_that_failed_before_all_workers_were_done_count(self):
        request = self.load()
        self.scheduler.plan(step())
        self.scheduler.on_output(output(invalid=[104]))
        self.scheduler.on_output(output(loaded=["r"]))
        self.assertEqual(self.matched(request), 0)

    def test_loads_are_bounded_and_the_rest_waits(self):
        self.store(5)
        for i in range(64):
            self.load(f"r{i}")
        request = Request("late", 200)
        self.scheduler.on_new_request(request)
        end = time.monotonic() + PATIENCE
        while self.scheduler._lookups["late"].pending and time.monotonic() < end:
            self.assertEqual(self.scheduler.matched(request, 0), (None, False))
        self.assertEqual(self.scheduler.matched(request, 0), (None, False))
        self.scheduler.on_output(output(loaded=["r0"]))
        self.assertEqual(self.matched(request), 80)


class SavingTest(WithScheduler):
    def run_request(self, request, computed=0):
        self.matched(request, computed)
        self.scheduler.allocated(request, ([0] * 99,), 0)

    def told(self, *jobs, orphaned=()):
        return output(told=FromWorkers({job.job: 1 for job in jobs}, set(orphaned)))

    def test_each_step_saves_what_it_completes(self):
        request = Request("r", 100)
        self.run_request(request)

        first, = self.scheduler.plan(step(new=[("r", 0, 40, ([11, 12, 13],))])).saves
        second, = self.scheduler.plan(step(cached=[("r", 40, 30, ([14, 15],))])).saves
        third = self.scheduler.plan(step(cached=[("r", 70, 1, None)])).saves

        self.assertEqual((first.first, first.last, first.pages), (0, 2, ((11, 12),)))
        self.assertEqual((second.first, second.last, second.pages), (2, 4, ((13, 14),)))
        self.assertEqual(third, [])
        self.assertEqual(self.pool.held(), [11, 12, 13, 14])
        self.assertTrue(self.scheduler.has_saves)
        self.scheduler.finished(request)  # The pages stay held.
        self.assertEqual(self.pool.held(), [11, 12, 13, 14])
        self.scheduler.on_output(self.told(first))
        self.scheduler.on_output(self.told(second))
        self.assertEqual(self.pool.held(), [])
        self.assertFalse(self.scheduler.has_saves)

    def test_routers_are_told_of_what_is_saved_where_that_is_asked_for(self):
        self.run_request(Request("r", 100))
        job, = self.scheduler.plan(step(new=[("r", 0, 40, ([11, 12, 13],))])).saves
        self.assertIsNone(job.announced)

        self.scheduler, self.pool = self.make(events=True)
        request = Request("r", 100)
        request.lora_request = SimpleNamespace(lora_name="tuned")
        self.run_request(request)
        first, = self.scheduler.plan(step(new=[("r", 0, 40, ([11, 12, 13],))])).saves
        second, = self.scheduler.plan(step(cached=[("r", 40, 30, ([14, 15],))])).saves
        self.assertEqual(first.announced, Announced((0, 1), None, tuple(range(32)), 16, "tuned"))
        self.assertEqual(second.announced, Announced((2, 3), 1, tuple(range(32, 64)), 16, "tuned"))
        self.assertEqual(second.announced.bytes_of(1, 2, 1), [
            kvd.announcement([3], 2, range(48, 64), 16, lora_name="tuned")])
        self.assertEqual(second.announced.bytes_of(0, 1, 2), [
            kvd.announcement([2, 3], 1, range(32, 64), 16, lora_name="tuned")])

    def test_routers_are_not_told_of_what_tokens_do_not_say(self):
        self.scheduler, self.pool = self.make(events=True)
        for number, (name, value) in enumerate([("cache_salt", "pepper"), ("mm_features", [1]),
                                                ("prompt_embeds", object())]):
            request = Request(f"r{number}", 100)
            setattr(request, name, value)
            self.run_request(request)
            job, = self.scheduler.plan(step(new=[(request.request_id, 0, 40, ([11, 12, 13],))])).saves
            self.assertIsNone(job.announced, name)

    def test_what_was_found_is_not_saved_again(self):
        self.run_request(Request("r", 100), computed=32)
        job, = self.scheduler.plan(step(new=[("r", 32, 68, ([11, 12, 13, 14, 15, 16, 17],))])).saves
        self.assertEqual((job.first, job.last, job.pages), (2, 6, ((13, 14, 15, 16),)))
        self.assertEqual(job.parent(2), hashes(2)[1])

    def test_tokens_that_the_engine_only_guesses_are_not_saved(self):
        request = Request("r", 40, prompt_tokens=33)
        self.run_request(request)
        job, = self.scheduler.plan(step(new=[("r", 0, 70, ([11, 12, 13, 14, 15],))])).saves
        self.assertEqual(job.last, 2)

    def test_generated_tokens_are_saved_unless_told_otherwise(self):
        for save_decode, last in ((True, 4), (False, 2)):
            self.scheduler, self.pool = self.make(save_decode=save_decode)
            self.run_request(Request("r", 64, prompt_tokens=33))
            job, = self.scheduler.plan(step(new=[("r", 0, 64, ([11, 12, 13, 14],))])).saves
            self.assertEqual(job.last, last)

    def test_preempted_and_resumed_with_other_pages(self):
        request = Request("r", 100)
        self.run_request(request)
        first, = self.scheduler.plan(step(new=[("r", 0, 40, ([11, 12, 13],))])).saves
        self.assertEqual(self.pool.held(), [11, 12])  # Also when the engine gives them to another.

        self.run_request(request)
        again = self.scheduler.plan(step(cached=[("r", 0, 40, ([21, 22, 23],))], resumed=["r"])).saves
        more, = self.scheduler.plan(step(cached=[("r", 40, 60, ([24, 25, 26, 27],))])).saves

        self.assertEqual(again, [])
        self.assertEqual((more.first, more.pages), (2, ((23, 24, 25, 26),)))

    def test_a_resumed_request_may_come_as_a_new_one(self):
        request = Request("r", 100)
        self.run_request(request)
        self.scheduler.plan(step(new=[("r", 0, 40, ([11, 12, 13],))]))
        more, = self.scheduler.plan(step(new=[("r", 32, 68, ([21, 22, 23, 24, 25, 26, 27],))])).saves
        self.assertEqual((more.first, more.pages), (2, ((23, 24, 25, 26),)))

    def test_the_engines_own_table_is_believed_where_there_is_one(self):
        self.run_request(Request("r", 100))
        job, = self.scheduler.plan(step(new=[("r", 0, 40, ([11, 12, 13],))],
                                        tables={"r": ([31, 32, 33],)})).saves
        self.assertEqual(job.pages, ((31, 32),))

    def test_a_stored_prefix_that_is_gone_is_saved_from_its_root(self):
        self.run_request(Request("r", 100), computed=32)
        job, = self.scheduler.plan(step(new=[("r", 32, 20, ([11, 12, 13, 14],))])).saves
        self.assertEqual(job.first, 2)
        self.scheduler.on_output(self.told(job, orphaned=["r", "gone"]))

        healing, = self.scheduler.plan(step(cached=[("r", 52, 1, None)])).saves

        self.assertEqual((healing.first, healing.last), (0, 3))

    def test_saves_are_bounded_and_what_is_beyond_is_dropped(self):
        self.scheduler, self.pool = self.make(max_saving_blocks=3)
        self.run_request(Request("r", 100))
        kept, = self.scheduler.plan(step(new=[("r", 0, 48, ([11, 12, 13],))])).saves
        self.assertEqual(self.scheduler.plan(step(cached=[("r", 48, 16, ([14],))])).saves, [])
        self.assertEqual(self.scheduler.stats.data["dropped_saves"], 1)
        self.assertEqual(self.pool.held(), [11, 12, 13])
        self.scheduler.on_output(self.told(kept))
        job, = self.scheduler.plan(step(cached=[("r", 64, 16, ([15],))])).saves
        self.assertEqual(job.pages, ((15,),))  # Below what is not there: an orphan, who is healed.

    def test_a_consumer_saves_nothing(self):
        self.scheduler, self.pool = self.make(role="kv_consumer")
        self.run_request(Request("r", 100))
        self.assertEqual(self.scheduler.plan(step(new=[("r", 0, 40, ([11, 12, 13],))])).saves, [])

    def test_an_engine_without_references_is_told_to_fence(self):
        self.assertFalse(self.scheduler.plan(step()).fence)
        self.scheduler, _ = self.make(bind=False)
        self.assertTrue(self.scheduler.plan(step()).fence)


class TwoRanksTest(WithScheduler):
    ranks = 2

    def test_a_block_counts_when_all_ranks_have_stored_it(self):
        self.store(5, ranks=1)
        self.assertEqual(self.matched(Request("r", 200)), 0)
        self.store(5, ranks=2)
        self.assertEqual(self.matched(Request("s", 200)), 80)

    def test_pages_are_held_until_both_ranks_are_done(self):
        request = Request("r", 100)
        self.matched(request)
        self.scheduler.allocated(request, ([0],), 0)
        job, = self.scheduler.plan(step(new=[("r", 0, 40, ([11, 12, 13],))])).saves
        self.scheduler.on_output(output(told=FromWorkers({job.job: 1})))
        self.assertEqual(self.pool.held(), [11, 12])
        self.scheduler.on_output(output(told=FromWorkers({job.job: 1})))
        self.assertEqual(self.pool.held(), [])

    def test_what_two_ranks_say_adds_up(self):
        both = FromWorkers({1: 1, 2: 1}, {"a"}).aggregate(FromWorkers({1: 1}, {"b"}))
        self.assertEqual((both.saved, both.orphaned), ({1: 2, 2: 1}, {"a", "b"}))

    def test_ranks_that_differ_in_shape_are_refused(self):
        other = WorkerLayout((GroupLayout("full", 0, False, 1, PART * 2, "a"),), "test")
        with self.assertRaisesRegex(layout.Refused, "divides the layers evenly"):
            self.scheduler.set_layouts([WorkerLayout(self.layouts, "test"), other])


class HybridTest(WithScheduler):
    groups = (("SlidingWindowSpec", BLOCK, 34), ("FullAttentionSpec", BLOCK, 0))
    layouts = (WINDOW, FULL)

    def test_a_hit_needs_the_window_at_its_end_and_a_load_brings_no_more_of_it(self):
        self.store(8, groups=[1])
        self.assertEqual(self.matched(Request("r", 200)), 0)
        self.store(8)
        request = Request("s", 200)
        self.assertEqual(self.matched(request), 128)
        # The engine has the null block where a window has gone by.
        self.scheduler.allocated(request, ([0, 0, 0, 0, 0, 46, 47, 48, 49], list(range(51, 60))), 128)

        job, = self.scheduler.plan(step()).loads

        self.assertEqual(job.pages, ((NO_PAGE,) * 5 + (46, 47, 48), tuple(range(51, 59))))

    def test_a_save_lacks_what_the_window_has_left_behind(self):
        request = Request("r", 100)
        self.matched(request)
        self.scheduler.allocated(request, ([0], [0]), 0)
        job, = self.scheduler.plan(step(new=[("r", 0, 48, ([0, 42, 43], [51, 52, 53]))])).saves
        self.assertEqual(job.pages, ((NO_PAGE, 42, 43), (51, 52, 53)))
        self.assertEqual(self.pool.held(), [42, 43, 51, 52, 53])


class TwoBlockSizesTest(WithScheduler):
    """A block is the least common multiple; its key is the last of the engine's hashes in it."""
    groups = (("FullAttentionSpec", BLOCK // 2, 0), ("SlidingWindowSpec", BLOCK, 34))
    layouts = (GroupLayout("full", 0, False, 2, PART, "a"), WINDOW)

    def test_keys_and_pages(self):
        request = Request("r", 100, block=8)
        self.matched(request)
        self.scheduler.allocated(request, ([0], [0]), 0)
        job, = self.scheduler.plan(step(new=[("r", 0, 40, ([1, 2, 3, 4, 5], [6, 7, 8]))])).saves
        self.assertEqual(job.keys, hashes(4)[1] + hashes(4)[3])
        self.assertEqual(job.pages, ((1, 2, 3, 4), (6, 7)))


class RefusalTest(unittest.TestCase):
    def setUp(self):
        seed = os.environ.pop("PYTHONHASHSEED", None)
        if seed is not None:
            self.addCleanup(os.environ.__setitem__, "PYTHONHASHSEED", seed)

    def test_each_says_what_to_change(self):
        def groups(*specs):
            return lambda: layout.check_groups(cache_config(*specs), fails_by_request=False)

        full = ("FullAttentionSpec", 16, 0)
        for refused, text in [
                (lambda: layout.hash_seed(config(algorithm="xxhash")), "PYTHONHASHSEED=0"),
                (lambda: layout.hash_seed(config(algorithm="builtin")), "--prefix-caching-hash-algo"),
                (lambda: layout.check_parallelism(config(prefill_context_parallel_size=2)),
                 "prefill_context_parallel_size=1"),
                (lambda: layout.check_parallelism(config(decode_context_parallel_size=2)),
                 "decode_context_parallel_size=1"),
                (groups(full, ("ChunkedLocalAttentionSpec", 16, 0)), "ChunkedLocalAttentionSpec"),
                (groups(full, ("MambaSpec", 16, 0)), "MambaSpec"),
                (groups(("SlidingWindowSpec", 16, 34)), "without full attention"),
                (groups(full, ("SlidingWindowSpec", 16, 34)), "update vLLM"),
                (lambda: Options.of(config(extra={"lease": 1})), "has no lease; there are: ")]:
            with self.subTest(text), self.assertRaisesRegex(layout.Refused, text):
                refused()

    def test_a_seed_of_the_user_is_a_part_of_the_namespace(self):
        self.assertEqual(layout.hash_seed(config()), "vllm-none-hash")
        os.environ["PYTHONHASHSEED"] = "7"
        self.addCleanup(os.environ.pop, "PYTHONHASHSEED")
        self.assertEqual(layout.hash_seed(config(algorithm="xxhash")), "7")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
