#!/usr/bin/env python3
"""The storage backend in the real SGLang on a CPU: sglang_test.py FOLDER KVD ROOT [unittest arguments].

FOLDER holds the environment and the models, which are made when they are missing. The oracle is the digest
of exact log-probabilities; a control shows that it sees one flipped bit. Engines live in processes of their own
(sglang_run.py), so that a second one has nothing of the first but what the daemon has.
"""

import json
import pathlib
import random
import subprocess
import sys
import time
import unittest

FOLDER, KVD, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT / "tests/client/python")]

from daemon import Daemon  # noqa: E402
from engine_process import PATIENCE, EngineProcess  # noqa: E402
from environment import python_of, variables_of  # noqa: E402

PAGE = 16
TOKENS = 1000
WHOLE = TOKENS // PAGE * PAGE  # Stored of a prompt.


def prompts(count, seed, tokens=TOKENS):
    numbers = random.Random(seed)
    return [[numbers.randrange(512) for _ in range(tokens)] for _ in range(count)]


def field(answer, name):
    return [one[name] for one in answer]


def from_storage(answer):
    return [one["details"].get("storage", 0) for one in answer]


class Engine(EngineProcess):
    """An SGLang with the storage backend."""

    def __init__(self, daemon, model="llama", fault=None, extra=None, **options):
        config = {"backend_name": "kvd", "module_path": "faulty" if fault else "kvd.sglang",
                  "class_name": "KvdStorage", "interface_v1": 1, "hicache_storage_pass_prefix_keys": True,
                  "allocator": "shm", "endpoint": daemon.endpoint, "prefetch_threshold": PAGE,
                  # Long, so that a slow machine fails no test.
                  "prefetch_timeout_base": 60, "lookup_timeout_ms": 20000, "load_timeout_ms": 20000,
                  "save_timeout_ms": 20000, **(extra or {})}
        super().__init__(PYTHON, HERE / "sglang_run.py", {
            **variables_of(FOLDER, PYTHON), "KVD_FAULT": fault or "", "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": f"{ROOT / 'client/python'}:{HERE}:{PLUGIN}"}, FOLDER)
        self.say({"model_path": str(FOLDER / "models" / model), "hicache_mem_layout": "page_first",
                  "hicache_io_backend": "kernel", "hicache_storage_backend_extra_config": json.dumps(config),
                  **options})

    def ask(self, asked, **how):
        self.say({"prompts": asked, **how})
        return self.answer()

    def until_stored(self, asked, whole=WHOLE):
        """Forgets and asks again until all comes from storage: saves end in the background. Returns that answer."""
        end = time.monotonic() + PATIENCE / 4
        while True:
            answer = self.ask(asked, flush=True)
            if from_storage(answer) == [whole] * len(asked):
                return answer
            if time.monotonic() > end:
                raise AssertionError(f"from storage: {from_storage(answer)}; {self.tail()}")


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
        first.until_stored(asked)

        second = self.start()
        loaded = second.ask(asked)
        self.assertEqual(from_storage(loaded), [WHOLE, WHOLE])
        self.assertEqual(field(loaded, "digest"), field(cold, "digest"))
        self.assertEqual(field(loaded, "tokens"), field(cold, "tokens"))

        self.assertNotIn("copied once more", first.tail())  # The daemon has mapped the host pool.

        # Both live, and each has what the other stores.
        of_second = second.ask(more)
        second.until_stored(more)
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
                digests += field(cold, "digest") + field(engine.until_stored(asked), "digest")
                engine.end()
        self.assertEqual(len(set(digests)), 1, digests)

    def test_the_daemon_may_go_at_any_time(self):
        asked = prompts(2, seed=4)
        engine = self.start(extra={"lookup_timeout_ms": 1000, "load_timeout_ms": 1000, "save_timeout_ms": 1000})
        cold = engine.ask(asked)
        engine.until_stored(asked)

        self.daemon.kill()
        gone = engine.ask(asked, flush=True)
        self.assertEqual((from_storage(gone), field(gone, "tokens")), ([0, 0], field(cold, "tokens")))
        self.daemon.start()
        engine.until_stored(asked)  # It finds out by itself, and stores again.
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


def as_installed(folder):
    """The entry points of the package, as pip would have put them."""
    found = folder / "kvd-0.dist-info"
    found.mkdir(parents=True, exist_ok=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: kvd\nVersion: 0\n")
    (found / "entry_points.txt").write_text("[sglang.srt.plugins]\nkvd = kvd.sglang.plugin:install\n")
    return folder


if __name__ == "__main__":
    PYTHON = python_of(FOLDER, "sglang")
    PLUGIN = as_installed(FOLDER / "plugin")
    subprocess.run([PYTHON, "-B", HERE / "models.py", FOLDER / "models"], check=True)
    unittest.main(argv=sys.argv[:1] + sys.argv[4:])
