#!/usr/bin/env python3
"""The storage backend in the real SGLang on a CPU: sglang_test.py FOLDER KVD ROOT [unittest arguments].

FOLDER holds the environment and the models, which are made when they are missing. The oracle is the digest
of exact log-probabilities; a control shows that it sees one flipped bit. Engines live in processes of their own
(sglang_run.py), so that a second one has nothing of the first but what the daemon has.
"""

import functools
import pathlib
import sys
import unittest

FOLDER, KVD, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT / "tests/client/python")]

import engine_process  # noqa: E402
import sglang_engine  # noqa: E402
from daemon import Daemon  # noqa: E402
from environment import Place  # noqa: E402
from sglang_engine import PAGE, field, from_storage  # noqa: E402

TOKENS = 1000
WHOLE = TOKENS // PAGE * PAGE  # Stored of a prompt.

Engine = functools.partial(sglang_engine.Engine, Place(FOLDER, ROOT, "sglang"))
prompts = functools.partial(engine_process.prompts, tokens=TOKENS)


class SglangTest(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon(KVD, dram="512MiB")
        self.daemon.start()
        self.addCleanup(self.daemon.__exit__)

    def start(self, **options):
        engine = Engine(self.daemon, **options)
        self.addCleanup(engine.end)
        return engine

    def test_a_second_engine_has_what_the_first_stored_and_one_flipped_bit_shows(self):
        asked, more = prompts(2, seed=1), prompts(1, seed=2)
        first = self.start()
        cold = first.ask(asked)
        self.assertEqual(field(cold, "cached"), [0, 0])
        first.until_stored(asked, WHOLE)

        second = self.start()
        loaded = second.ask(asked)
        self.assertEqual(from_storage(loaded), [WHOLE, WHOLE])
        self.assertEqual(field(loaded, "digest"), field(cold, "digest"))
        self.assertEqual(field(loaded, "tokens"), field(cold, "tokens"))

        self.assertNotIn("copied once more", first.tail())  # The daemon has mapped the host pool.

        # Both live, and each has what the other stores.
        of_second = second.ask(more)
        second.until_stored(more, WHOLE)
        self.assertEqual(field(first.ask(more), "digest"), field(of_second, "digest"))

        # Requests that end while they load or store leave nothing wrong behind.
        self.assertEqual(set(first.ask(asked + more, flush=True, abort=True)), {"abort"})
        self.assertEqual(field(first.ask(asked, flush=True), "digest"), field(cold, "digest"))

        flipped = self.start(fault="flip").ask(asked[:1])
        self.assertEqual(from_storage(flipped), [WHOLE])
        self.assertNotEqual(field(flipped, "digest"), field(cold, "digest")[:1], "the oracle is blind")

    def test_layouts_and_none_takes_the_pages_of_another(self):
        asked = prompts(1, seed=3)
        digests = []
        for layout, io in (("page_first_direct", "direct"), ("layer_first", "direct"), ("page_head", "kernel")):
            with self.subTest(layout):
                engine = Engine(self.daemon, hicache_mem_layout=layout, hicache_io_backend=io)
                cold = engine.ask(asked)
                self.assertEqual(from_storage(cold), [0])
                digests += field(cold, "digest") + field(engine.until_stored(asked, WHOLE), "digest")
                engine.end()
        self.assertEqual(len(set(digests)), 1, digests)

    def test_the_daemon_may_go_at_any_time(self):
        asked = prompts(2, seed=4)
        engine = self.start(extra={"lookup_timeout_ms": 1000, "load_timeout_ms": 1000, "save_timeout_ms": 1000})
        cold = engine.ask(asked)
        engine.until_stored(asked, WHOLE)

        self.daemon.kill()
        gone = engine.ask(asked, flush=True)
        self.assertEqual((from_storage(gone), field(gone, "tokens")), ([0, 0], field(cold, "tokens")))
        self.daemon.start()
        engine.until_stored(asked, WHOLE)  # It finds out by itself, and stores again.
        self.daemon.freeze()
        frozen = engine.ask(asked, flush=True)
        self.daemon.thaw()
        self.assertEqual((from_storage(frozen), field(frozen, "tokens")), ([0, 0], field(cold, "tokens")))

    def test_a_daemon_killed_in_a_load_costs_a_recomputation(self):
        long = prompts(1, seed=5, tokens=3000)  # Loaded in two pieces.
        whole = 3000 // PAGE * PAGE
        first = self.start()
        cold = first.ask(long)
        first.until_stored(long, whole)

        second = self.start(fault=f"kill:{self.daemon.pid}")
        lost = second.ask(long)
        self.assertEqual(field(lost, "tokens"), field(cold, "tokens"))
        self.assertLess(from_storage(lost)[0], whole)
        after = second.ask(prompts(1, seed=6))
        self.assertEqual(len(after[0]["tokens"]), 8)

    def test_what_cannot_work_is_refused_with_one_sentence(self):
        engine = self.start(extra={"lease": 1})
        with self.assertRaisesRegex(AssertionError, "extra-config has no lease; there are: "):
            engine.answer()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[4:])
