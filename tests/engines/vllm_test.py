#!/usr/bin/env python3
"""The connector in the real vLLM on a CPU: vllm_test.py FOLDER KVD ROOT ENGINE [unittest arguments].

FOLDER holds the environment of ENGINE (requirements-ENGINE.txt) and the models, which are made when they are missing.
The oracle is the digest of exact log-probabilities, compared with the engine's own warm prefix cache; a control shows
that it sees one flipped bit. Engines live in processes of their own (vllm_run.py), so that a second one has
nothing of the first but what the daemon has.
"""

import functools
import pathlib
import sys
import time
import unittest

FOLDER, KVD, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
ENGINE = sys.argv[4]
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT / "tests/client/python")]

import engine_process  # noqa: E402
import vllm_engine  # noqa: E402
from daemon import Daemon  # noqa: E402
from engine_process import PATIENCE  # noqa: E402
from environment import Place  # noqa: E402
from vllm_engine import BLOCK  # noqa: E402

# Older ones hash otherwise in each process unless they are told not to, and compile even where that is not asked for.
PLACE = Place(FOLDER, ROOT, ENGINE,
              **({} if ENGINE == "vllm" else {"PYTHONHASHSEED": "0", "TORCHDYNAMO_DISABLE": "1"}))
TOKENS = 2000

Engine = functools.partial(vllm_engine.Engine, PLACE)
live = functools.partial(vllm_engine.live, PLACE)
prompts = functools.partial(engine_process.prompts, tokens=TOKENS)


def digests(answer):
    return [one["digest"] for one in answer["answers"]]


def tokens(answer):
    return [one["tokens"] for one in answer["answers"]]


def cached(answer):
    return [one["cached"] for one in answer["answers"]]


class VllmTest(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon(KVD, dram="512MiB")
        self.daemon.start()
        self.addCleanup(self.daemon.__exit__)

    def assert_a_second_engine_is_as_warm(self, model, whole, warm_cached=True, **options):
        asked = prompts(2, seed=1)
        cold, warm = live(self.daemon, [asked, asked], model=model, **options)
        loaded, = live(self.daemon, [asked], model=model, **options)

        self.assertEqual(cached(cold), [0, 0])
        self.assertEqual(cached(loaded), [whole, whole])
        self.assertEqual(tokens(loaded), tokens(cold))
        if warm_cached:
            self.assertEqual(cached(warm), cached(loaded))
            self.assertEqual(digests(loaded), digests(warm))
        return asked, loaded

    def test_a_second_engine_is_as_warm_as_the_first_and_one_flipped_bit_shows(self):
        whole = (TOKENS - 1) // BLOCK * BLOCK
        asked, loaded = self.assert_a_second_engine_is_as_warm("llama", whole)

        # One bit of all that was loaded. In the pages of an older one it lies where the model hardly looks.
        flipped, = live(self.daemon, [asked[:1]], fault="flip" if ENGINE == "vllm" else "flip:each")

        self.assertEqual(cached(flipped), [whole])
        self.assertNotEqual(digests(flipped), digests(loaded)[:1], "the oracle is blind")

    def test_a_hybrid_model(self):
        # What full attention has and windows lack is found only where the windows were stored too.
        self.assert_a_second_engine_is_as_warm("gemma3", 1920, engine={"block_size": None})

    def test_a_model_with_mla(self):
        self.assert_a_second_engine_is_as_warm("deepseek", 1984)

    def test_two_ranks(self):
        two = {"engine": {"tensor_parallel_size": 2},
               "environment": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}
        self.assert_a_second_engine_is_as_warm("llama", 1984, **two)

    def test_without_the_engines_own_cache_in_chunks_and_through_a_small_buffer(self):
        plain = {"engine": {"enable_prefix_caching": False, "max_num_batched_tokens": 256},
                 "extra": {"staging_bytes": 200 << 10}}
        asked = prompts(2, seed=2)

        first, second = live(self.daemon, [asked, asked], **plain)
        third, = live(self.daemon, [asked], **plain)

        self.assertEqual((cached(first), cached(second), cached(third)), ([0, 0], [1984] * 2, [1984] * 2))
        self.assertEqual(digests(second), digests(third))
        self.assertEqual(tokens(first), tokens(third))
        self.assertEqual(third["metrics"]["vllm:kvd_connector_loaded_blocks"], 2 * 1984 // BLOCK)
        self.assertEqual(third["metrics"]["vllm:external_prefix_cache_hits"], 2 * 1984)

    def test_preemption_under_a_tiny_cache(self):
        asked = prompts(6, seed=3, tokens=300)
        roomy, = live(self.daemon, [asked], connector={"kv_role": "kv_producer"}, max_tokens=200)

        tight, again = live(self.daemon, [asked, asked], together=True, max_tokens=200,
                            engine={"num_gpu_blocks_override": 40, "max_model_len": 1024})

        self.assertGreater(tight["metrics"]["vllm:num_preemptions"], 0)
        self.assertEqual(tokens(tight), tokens(roomy))
        self.assertEqual(tokens(again), tokens(roomy))
        self.assertGreater(min(cached(again)), 0)

    def start(self, **options):
        engine = Engine(self.daemon, **options)
        self.addCleanup(engine.end)
        return engine

    def until_it_hits(self, engine, asked):
        """Asks the same again, as saves end in the background, and a daemon that is back is found a second later at
        most. Returns the answer that was loaded whole. Requires: the engine has no cache of its own."""
        end = time.monotonic() + PATIENCE / 4
        while True:
            answer = engine.ask(asked)
            if cached(answer) == [1984] * len(asked):
                return answer
            self.assertLess(time.monotonic(), end)

    def test_two_engines_at_once_each_load_what_the_other_stored(self):
        first, second = (self.start(engine={"enable_prefix_caching": False}) for _ in range(2))
        for stores, loads, asked in ((first, second, prompts(1, seed=8)), (second, first, prompts(1, seed=9))):
            warm = self.until_it_hits(stores, asked)
            loaded = loads.ask(asked)
            self.assertEqual(cached(loaded), [1984])
            self.assertEqual(digests(loaded), digests(warm))

    def test_aborts_at_any_step_leave_nothing_wrong_and_nothing_held(self):
        stored, new = prompts(2, seed=10), prompts(5, seed=11)
        live(self.daemon, [stored])
        # Without a cache of its own and in small pieces, so that each is looked up, loaded and saved for a while.
        engine = self.start(engine={"enable_prefix_caching": False, "max_num_batched_tokens": 256},
                            extra={"staging_bytes": 200 << 10})
        healthy = engine.ask(stored)
        for steps, another in zip((0, 2, 8, 32, 128), new):
            self.assertEqual(engine.ask(stored + [another], abort_after=steps)["answers"], {"ended": []})
        after = engine.ask(stored)

        self.assertEqual(cached(healthy), [1984, 1984])
        self.assertEqual((digests(after), cached(after)), (digests(healthy), cached(healthy)))
        end = time.monotonic() + PATIENCE / 4
        while engine.ask(stored[:1])["free"] != healthy["free"]:  # What is being saved is held.
            self.assertLess(time.monotonic(), end)

    def test_the_daemon_may_come_late_and_go_at_any_time(self):
        asked = prompts(2, seed=4)
        self.daemon.kill()
        engine = self.start(engine={"enable_prefix_caching": False})

        def ask():
            answer = engine.ask(asked)
            self.assertEqual(tokens(answer), expected)
            return cached(answer)

        first = engine.ask(asked)
        expected = tokens(first)
        self.assertEqual(cached(first), [0, 0])  # It started, and serves.
        self.daemon.start()
        self.assertEqual(tokens(self.until_it_hits(engine, asked)), expected)
        self.daemon.kill()
        self.assertEqual(ask(), [0, 0])
        self.daemon.start()
        self.until_it_hits(engine, asked)
        self.assertEqual(engine.end(), 0)

    def lose_the_daemon_in_a_load(self, fault, policy):
        asked = prompts(2, seed=5)
        healthy, = live(self.daemon, [asked])
        engine = self.start(fault=f"{fault}:{self.daemon.pid}", connector={"kv_load_failure_policy": policy},
                            extra={"staging_bytes": 200 << 10, "load_timeout_ms": 1000, "lookup_timeout_ms": 3000})
        lost, after = engine.ask(asked[:1]), engine.ask(asked[1:])
        if fault == "freeze":
            self.daemon.thaw()
        self.assertEqual(engine.end(), 0)
        self.assertEqual(lost["metrics"]["vllm:kvd_connector_load_failures"], 1)
        self.assertEqual(tokens(after), tokens(healthy)[1:])  # The engine lives.
        return healthy, lost

    def test_a_daemon_killed_in_a_load_costs_a_recomputation(self):
        healthy, lost = self.lose_the_daemon_in_a_load("kill", "recompute")
        self.assertEqual(tokens(lost), tokens(healthy)[:1])

    def test_a_daemon_that_freezes_in_a_load_costs_a_recomputation(self):
        healthy, lost = self.lose_the_daemon_in_a_load("freeze", "recompute")
        self.assertEqual(tokens(lost), tokens(healthy)[:1])

    def test_a_daemon_killed_in_a_load_fails_that_request_where_the_policy_is_fail(self):
        _, lost = self.lose_the_daemon_in_a_load("kill", "fail")
        self.assertEqual([one["finish"] for one in lost["answers"]], ["error"])

    def test_what_cannot_work_is_refused_with_one_sentence(self):
        for options, sentence in [
                ({"engine": {"prefix_caching_hash_algo": "xxhash"}}, "set PYTHONHASHSEED=0"),
                ({"extra": {"lease": 1}}, "kv_connector_extra_config has no lease; there are: ")]:
            with self.subTest(sentence):
                engine = self.start(**options)
                with self.assertRaisesRegex(AssertionError, sentence):
                    engine.ask(prompts(1, 6))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[5:])
