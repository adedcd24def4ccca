#!/usr/bin/env python3
"""A worker's side of the vLLM connector over a real daemon, with PyTorch and vLLM's own base classes, without
an engine: worker_test.py KVD SOURCE_ROOT [unittest arguments].

Pages are compared byte by byte, each with its own pattern, so that a page in another's place shows.
"""

import pathlib
import sys
import time
import unittest

KVD = pathlib.Path(sys.argv[1]).resolve()
ROOT = pathlib.Path(sys.argv[2]).resolve()
sys.path[:0] = [str(ROOT / "client/python"), str(ROOT / "tests/client/python")]

import torch  # noqa: E402

import kvd  # noqa: E402
from daemon import PATIENCE, Daemon  # noqa: E402
from kvd.vllm import pages  # noqa: E402
from kvd.vllm.messages import NO_PAGE, Job, ToWorkers  # noqa: E402
from kvd.vllm.options import Options  # noqa: E402
from kvd.vllm.worker import WorkerSide  # noqa: E402
from vllm_fakes import cache_config, config, hashes  # noqa: E402

BLOCKS = 40
FULL = ("FullAttentionSpec", 16, 0)


def filled(shape, seed=0, dtype=torch.float32):
    """Every element another number."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.int64) * 2654435761 % 251 + seed).to(dtype).reshape(shape)


# How vLLM's versions and backends have laid out the cache of a layer: heads 2, block 16, head size 32.
ERAS = {
    "blocks first": lambda: filled((BLOCKS, 2, 16, 2, 32)),
    "keys and values apart": lambda: filled((2, BLOCKS, 16, 2, 32)),
    "packed in the last dimension": lambda: filled((BLOCKS, 2, 16, 64)),
    "heads before tokens in memory": lambda: filled((BLOCKS, 2, 2, 16, 32)).transpose(2, 3),
    "blocks of the kernel": lambda: filled((BLOCKS * 4, 2, 4, 2, 32)),
    "a latent cache": lambda: filled((BLOCKS, 16, 72), dtype=torch.bfloat16),
    "part of a larger storage": lambda: filled((2 * BLOCKS, 2, 16, 64))[BLOCKS:],
    "with room between blocks": lambda: filled((BLOCKS, 2, 16, 128))[..., :64],
    "eight bits": lambda: filled((BLOCKS, 2, 16, 64), dtype=torch.uint8),
}


class PagesTest(unittest.TestCase):
    def test_every_layout_gathers_and_scatters_whole_blocks(self):
        for era, make in ERAS.items():
            with self.subTest(era):
                source, target = make(), torch.zeros_like(make())
                read = pages.GroupPages([("a", source)], BLOCKS)
                write = pages.GroupPages([("a", target)], BLOCKS)
                self.assertEqual(read.page_bytes * BLOCKS, source.numel() * source.element_size())
                self.assertEqual(read.description, write.description)

                buffer = torch.zeros(BLOCKS, read.page_bytes, dtype=torch.uint8)
                order = torch.randperm(BLOCKS)
                read.gather(order, buffer)
                write.scatter(buffer, order)

                self.assertTrue(torch.equal(source, target))

    def test_one_page_touches_no_other(self):
        for era, make in ERAS.items():
            with self.subTest(era):
                tensor, before = make(), make()
                group = pages.GroupPages([("a", tensor)], BLOCKS)
                group.scatter(torch.full((1, group.page_bytes), 255, dtype=torch.uint8), torch.tensor([7]))
                others = [i for i in range(BLOCKS) if i != 7]
                after = torch.zeros(len(others), group.page_bytes, dtype=torch.uint8)
                untouched = torch.zeros_like(after)
                group.gather(torch.tensor(others), after)
                pages.GroupPages([("a", before)], BLOCKS).gather(torch.tensor(others), untouched)
                self.assertTrue(torch.equal(after, untouched))

    def test_layers_that_share_a_cache_are_one(self):
        tensor = ERAS["blocks first"]()
        both = pages.GroupPages([("a", tensor), ("b", tensor)], BLOCKS)
        self.assertEqual(both.page_bytes, pages.GroupPages([("a", tensor)], BLOCKS).page_bytes)

    def test_what_cannot_be_described_is_refused_by_the_layers_name(self):
        for wrong in (filled((3, BLOCKS + 1, 4)), filled((BLOCKS, 8, 6)).transpose(1, 2)):
            with self.assertRaisesRegex(pages.CannotDescribe, "layer x has a cache of shape"):
                pages.GroupPages([("x", wrong)], BLOCKS)

    def test_a_cache_that_does_not_read_back_is_refused(self):
        overlapping = torch.zeros(BLOCKS * 64 + 1).as_strided((BLOCKS, 64, 2), (64, 1, 1))
        with self.assertRaisesRegex(pages.CannotDescribe, "does not read back"):
            pages.check_reads_back([pages.GroupPages([("a", overlapping)], BLOCKS)], BLOCKS - 1)

    def test_the_check_leaves_zeros(self):
        tensor = torch.zeros(BLOCKS, 2, 16, 64)
        pages.check_reads_back([pages.GroupPages([("a", tensor)], BLOCKS)], BLOCKS - 1)
        self.assertEqual(tensor.abs().sum(), 0)


class WithWorkers(unittest.TestCase):
    specs = (FULL,)
    ranks = 1

    def setUp(self):
        self.daemon = Daemon(KVD)
        self.daemon.start()
        self.addCleanup(self.daemon.__exit__)
        self._jobs = 0

    def worker(self, rank=0, seed=None, **extra):
        """With caches of the pattern `seed`, or zeros."""
        vllm = config(ranks=self.ranks, endpoint=self.daemon.endpoint, extra={
            "load_timeout_ms": 20000, "save_timeout_ms": 20000, **extra})
        groups = cache_config(*self.specs, num_blocks=BLOCKS)
        made = WorkerSide(vllm, groups, Options.of(vllm), rank, 0)
        made.caches = {f"layer.{i}": torch.zeros(BLOCKS, 2, spec[1], 64)
                       for i, spec in enumerate(self.specs)}
        made.register(made.caches)
        self.addCleanup(made.shutdown)
        if seed is not None:
            for number, cache in enumerate(made.caches.values()):
                cache.copy_(filled(cache.shape, seed * 10 + number))
        return made

    def job(self, *page_ids, first=0, name="r", seed=0, step=1):
        self._jobs += 1
        last = first + len(page_ids[0]) // step
        return Job(self._jobs, name, b"".join(hashes(last, seed)), 32, first, last,
                   tuple(tuple(ids) for ids in page_ids))

    def save(self, worker, *jobs):
        worker.start_saves(ToWorkers(saves=list(jobs)))
        return self.until(worker.take_told, lambda told: len(told.saved) == len(jobs),
                          lambda all_of, more: all_of.aggregate(more))

    def load(self, worker, *jobs):
        worker.start_loads(ToWorkers(loads=list(jobs)))
        return self.until(lambda: worker.finished_loads(),
                          lambda told: len(told[0]) == len({job.request for job in jobs}),
                          lambda a, b: (a[0] | b[0], a[1] | b[1]))

    def until(self, take, enough, add):
        end, total = time.monotonic() + PATIENCE, None
        while time.monotonic() < end:
            told = take()
            if told is not None:
                total = told if total is None else add(total, told)
            if total is not None and enough(total):
                return total
        self.fail("it never ended")

    def assert_equal_pages(self, source, source_pages, target, target_pages, group=0):
        name = f"layer.{group}"
        for i, (a, b) in enumerate(zip(source_pages, target_pages)):
            self.assertTrue(torch.equal(source.caches[name][a], target.caches[name][b]), f"page {i}")


class RegistrationTest(WithWorkers):
    """What an engine's start hears of its caches, before any is used."""

    def refusal(self, cache):
        vllm = config(endpoint=self.daemon.endpoint)
        made = WorkerSide(vllm, cache_config(FULL, num_blocks=BLOCKS), Options.of(vllm), 0, 0)
        self.addCleanup(made.shutdown)
        with self.assertRaises(pages.CannotDescribe) as refused:
            made.register({"layer.0": cache})
        return str(refused.exception)

    def test_strides_that_are_no_pages(self):
        self.assertIn("layer layer.0 has a cache of shape (40, 8, 6) and strides (48, 1, 8), in which 40 blocks are not "
                      "found; use another attention backend", self.refusal(filled((BLOCKS, 6, 8)).transpose(1, 2)))

    def test_pages_that_overlap_do_not_read_back(self):
        overlapping = torch.zeros(BLOCKS * 64 + 1).as_strided((BLOCKS, 64, 2), (64, 1, 1))
        self.assertIn("does not read back as it was written; use another attention backend", self.refusal(overlapping))


class MovingTest(WithWorkers):
    def test_pages_come_back_where_they_are_wanted(self):
        for staging in (64 << 20, 40 << 10, 1):  # Several blocks at a time; two; one.
            with self.subTest(staging):
                seed = staging % 7
                source = self.worker(seed=seed, staging_bytes=staging)
                target = self.worker(staging_bytes=staging)
                saved = self.save(source, self.job([3, 9, 4, 1, 7], seed=seed))
                loaded, failed = self.load(target, self.job([5, 2, 8, 30, 6], seed=seed))

                self.assertEqual((len(saved.saved), saved.orphaned), (1, set()))
                self.assertEqual((loaded, failed), ({"r"}, set()))
                self.assert_equal_pages(source, [3, 9, 4, 1, 7], target, [5, 2, 8, 30, 6])
                self.assertEqual(target.caches["layer.0"][9].abs().sum(), 0)
                self.assertEqual(target.take_stats().data["loaded_blocks"], 5)

    def test_a_tail_below_what_is_stored(self):
        source, target = self.worker(seed=1), self.worker()
        self.save(source, self.job([3, 9]), self.job([4, 1], first=2))
        self.load(target, self.job([8, 30], first=2))
        self.assert_equal_pages(source, [4, 1], target, [8, 30])

    def test_a_load_that_ends_early_names_the_pages_it_did_not_fill(self):
        source, target = self.worker(seed=1), self.worker(staging_bytes=40 << 10)
        self.save(source, self.job([3, 9, 4]))

        loaded, failed = self.load(target, self.job([5, 2, 8, 30, 6]))

        self.assertEqual((loaded, failed), ({"r"}, {"r"}))
        self.assertLessEqual({30, 6}, target.invalid_pages())
        self.assertEqual(target.invalid_pages(), set())  # Once.
        self.assertEqual(target.finished_loads(), (set(), set()))
        self.assertEqual(target.take_stats().data["load_failures"], 1)

    def test_a_save_below_what_is_gone_says_so(self):
        source = self.worker(seed=1)
        told = self.save(source, self.job([4, 1], first=2))
        self.assertEqual(told.orphaned, {"r"})
        told = self.save(source, self.job([3, 9, 4, 1]))
        self.assertEqual(told.orphaned, set())
        target = self.worker()
        self.assertEqual(self.load(target, self.job([5, 6, 7, 8]))[1], set())

    def test_without_a_daemon_every_job_ends(self):
        worker = self.worker(seed=1)
        self.daemon.kill()
        self.assertEqual(len(self.save(worker, self.job([3]), self.job([4])).saved), 2)
        self.assertEqual(self.load(worker, self.job([3], name="a"), self.job([4], name="b")),
                         ({"a", "b"}, {"a", "b"}))
        self.assertEqual(worker.invalid_pages(), {3, 4})
        self.daemon.start()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.save(worker, self.job([3]))
            if self.load(worker, self.job([5]))[1] == set():
                break
        self.assert_equal_pages(worker, [3], worker, [5])

    def test_a_daemon_that_does_not_answer_costs_the_timeout(self):
        worker = self.worker(seed=1, load_timeout_ms=100, save_timeout_ms=100)
        self.daemon.freeze()
        begin = time.monotonic()
        many = [self.job([3], name=f"r{i}") for i in range(30)]
        self.assertEqual(len(self.load(worker, *many)[1]), 30)
        self.assertEqual(len(self.save(worker, *many).saved), 30)
        self.assertLess(time.monotonic() - begin, 3)  # Not 30 times each.
        self.daemon.thaw()

    def test_a_worker_that_starts_before_the_daemon(self):
        self.daemon.kill()
        worker = self.worker(seed=1)
        self.assertEqual(self.load(worker, self.job([3]))[1], {"r"})
        self.daemon.start()
        end = time.monotonic() + PATIENCE
        while worker._daemon.namespace is None and time.monotonic() < end:
            pass
        self.save(worker, self.job([3]))
        self.assertEqual(self.load(worker, self.job([5]))[1], set())

    def test_a_fence_waits_for_what_is_being_saved(self):
        worker = self.worker(seed=1)
        worker.start_saves(ToWorkers(saves=[self.job([3]), self.job([4], first=1)]))
        worker.fence(ToWorkers(fence=True))
        self.assertEqual(len(worker.take_told().saved), 2)


class TwoRanksTest(WithWorkers):
    ranks = 2

    def test_each_rank_has_its_own_bytes(self):
        sources = [self.worker(rank, seed=rank + 1) for rank in range(2)]
        for source in sources:
            self.save(source, self.job([3, 9, 4]))
        for rank, source in enumerate(sources):
            target = self.worker(rank)
            self.assertEqual(self.load(target, self.job([5, 6, 7]))[1], set())
            self.assert_equal_pages(source, [3, 9, 4], target, [5, 6, 7])

    def test_half_of_a_block_is_none(self):
        self.save(self.worker(0, seed=1), self.job([3, 9, 4]))
        target = self.worker(0)
        self.assertEqual(self.load(target, self.job([5, 6, 7]))[1], {"r"})
        self.assertEqual(target.invalid_pages(), {5, 6, 7})


class ReplicatedTest(WithWorkers):
    specs = (("MLAAttentionSpec", 16, 0),)
    ranks = 2

    def test_one_rank_stores_and_both_load(self):
        source, other = self.worker(0, seed=1), self.worker(1, seed=2)
        self.assertEqual(len(self.save(other, self.job([3, 9, 4])).saved), 1)
        self.assertEqual(self.load(self.worker(1), self.job([5, 6, 7]))[1], {"r"})
        self.save(source, self.job([3, 9, 4]))
        target = self.worker(1)
        self.assertEqual(self.load(target, self.job([5, 6, 7]))[1], set())
        self.assert_equal_pages(source, [3, 9, 4], target, [5, 6, 7])


class HybridTest(WithWorkers):
    specs = (("SlidingWindowSpec", 16, 34), FULL)  # The window needs three blocks.

    def test_the_end_of_the_window_is_enough(self):
        for staging in (64 << 20, 1):
            with self.subTest(staging):
                source, target = self.worker(seed=1), self.worker(staging_bytes=staging)
                seed = staging % 7
                # Windows were gone for the first two blocks, and for the fourth, when they were saved.
                self.save(source, self.job([NO_PAGE, NO_PAGE, 3, NO_PAGE, 5, 6, 7],
                                           [11, 12, 13, 14, 15, 16, 17], seed=seed))
                wanted = ([NO_PAGE] * 4 + [25, 26, 27], [31, 32, 33, 34, 35, 36, 37])

                self.assertEqual(self.load(target, self.job(*wanted, seed=seed))[1], set())

                self.assert_equal_pages(source, [5, 6, 7], target, [25, 26, 27], group=0)
                self.assert_equal_pages(source, range(11, 18), target, range(31, 38), group=1)

    def test_a_window_that_is_gone_fails_the_whole_load(self):
        source, target = self.worker(seed=1), self.worker()
        self.save(source, self.job([3, 4, 5, NO_PAGE], [11, 12, 13, 14]))
        loaded, failed = self.load(target, self.job([NO_PAGE, 22, 23, 24], [31, 32, 33, 34]))
        self.assertEqual(failed, {"r"})


class TwoBlockSizesTest(WithWorkers):
    specs = (("FullAttentionSpec", 8, 0), FULL)

    def test_a_block_may_be_several_pages(self):
        source, target = self.worker(seed=1), self.worker()
        self.save(source, self.job([1, 2, 3, 4, 5, 6], [7, 8, 9], step=2))
        self.assertEqual(self.load(target, self.job([11, 12, 13, 14, 15, 16], [17, 18, 19], step=2))[1],
                         set())
        self.assert_equal_pages(source, range(1, 7), target, range(11, 17), group=0)
        self.assert_equal_pages(source, range(7, 10), target, range(17, 20), group=1)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
