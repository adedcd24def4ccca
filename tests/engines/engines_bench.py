#!/usr/bin/env python3
"""What a hit is worth to a real engine on this machine: engines_bench.py FOLDER KVD ROOT WHAT [COUNT].

  ttft      time to the first token of 2,000-token prompts, cold and found by a second vLLM; the model is wide enough
            that computing them takes its time
  lmcache   what a hit adds to the first token of a second vLLM over the engine's own warm cache, with kvd and with
            LMCache's connector on the same engine
  thousand  1,000 requests (or COUNT) of 2,000 tokens in a second vLLM: the share of full blocks that was loaded, and
            whether every log-probability is that of the first engine's own warm cache
  sglang    the same with SGLang, by what it says came from storage

Exit status 1: not as good as it is meant to be.
"""

import pathlib
import statistics
import sys

FOLDER, KVD, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT / "tests/client/python")]

import engine_process  # noqa: E402
import lmcache_beside  # noqa: E402
import sglang_engine  # noqa: E402
from daemon import Daemon  # noqa: E402
from engine_process import prompts  # noqa: E402
from environment import Place  # noqa: E402
from vllm_engine import BLOCK, live  # noqa: E402

TOKENS = 2000
WHOLE = (TOKENS - 1) // BLOCK  # Blocks of a prompt that can be loaded.
FEW = 32  # Prompts of a median.
# The engine's core in a process of its own, as servers have it: where it waits for a load it lets other threads run.
AS_SERVED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


def milliseconds(answer):
    return 1e3 * statistics.median(one["seconds"] for one in answer["answers"])


def count():
    return int(sys.argv[5]) if len(sys.argv) > 5 else 1000


def time_to_first_token():
    engine = {"engine": {"load_format": "dummy", "enable_prefix_caching": True}, "model": "wide", "max_tokens": 1,
              "environment": AS_SERVED}
    place = Place(FOLDER, ROOT, "vllm")
    first, asked = prompts(1, 1, TOKENS), prompts(10, 2, TOKENS)
    with Daemon(KVD, dram="1GiB") as daemon:
        # The first request of an engine is slow.
        _, cold, own = live(place, daemon, [first, asked, asked], **engine)
        _, hit = live(place, daemon, [prompts(1, 3, TOKENS), asked], **engine)
    assert all(one["cached"] == WHOLE * BLOCK for one in hit["answers"]), hit
    ratio = milliseconds(hit) / milliseconds(cold)
    print(f"time to the first token, median of {len(asked)}: cold {milliseconds(cold):.0f} ms, hit by a second engine "
          f"{milliseconds(hit):.0f} ms ({ratio:.3f}x), its own warm cache {milliseconds(own):.0f} ms")
    return ratio <= 0.25


def beside_lmcache():
    """Prompts of whole chunks of LMCache and the token that is always computed, so that both load all the rest."""
    place = Place(FOLDER, ROOT, "vllm-lmcache", **lmcache_beside.ENVIRONMENT)
    whole = TOKENS // lmcache_beside.CHUNK * lmcache_beside.CHUNK
    engine = {"engine": {"enable_prefix_caching": True}, "max_tokens": 1, "modules": ["lmcache_beside"],
              "environment": AS_SERVED}
    first, other, asked = prompts(2, 5, whole + 1), prompts(2, 6, whole + 1), prompts(FEW, 7, whole + 1)

    def a_second_engines(daemon, connector):
        live(place, daemon, [first, asked], connector=connector, **engine)
        _, hit = live(place, daemon, [other, asked], connector=connector, **engine)
        assert all(one["cached"] == whole for one in hit["answers"]), [one["cached"] for one in hit["answers"]]
        return milliseconds(hit)
    _, _, own = live(place, None, [first, asked, asked], connector=False, **engine)
    warm = milliseconds(own)
    with Daemon(KVD, dram="512MiB") as daemon:
        ours = a_second_engines(daemon, None)
    with lmcache_beside.server(place.python, gib=1) as connector:
        theirs = a_second_engines(None, connector)
    ratio = (ours - warm) / (theirs - warm)
    print(f"the first token of a prompt of {whole + 1} tokens, median of {FEW}: the engine's own warm cache {warm:.1f} ms; "
          f"hit by a second engine with kvd {ours:.1f} ms, with LMCache {theirs:.1f} ms: kvd adds {ours - warm:.1f} ms, "
          f"LMCache {theirs - warm:.1f} ms ({ratio:.2f}x)")
    return ratio <= 0.5


def told(asked, loaded_tokens, whole, digests, warm_digests):
    share = loaded_tokens / (len(asked) * whole)
    equal = sum(one == other for one, other in zip(digests, warm_digests))
    print(f"{len(asked)} requests of {TOKENS} tokens in a second engine: {share:.2%} of full blocks loaded, "
          f"{equal} digests equal to the first engine's own warm cache")
    return share >= 0.95 and equal == len(asked)


def thousand():
    place = Place(FOLDER, ROOT, "vllm")
    asked = prompts(count(), 4, TOKENS)
    twice = [prompt for prompt in asked for _ in range(2)]  # Warm at once, before it leaves the engine's cache.
    with Daemon(KVD, dram="3GiB") as daemon:
        both, = live(place, daemon, [twice])
        loaded, = live(place, daemon, [asked])
    return told(asked, sum(one["cached"] for one in loaded["answers"]), WHOLE * BLOCK,
                [one["digest"] for one in loaded["answers"]], [one["digest"] for one in both["answers"][1::2]])


def thousand_of_sglang():
    place = Place(FOLDER, ROOT, "sglang")
    asked = prompts(count(), 4, TOKENS)
    page = sglang_engine.PAGE
    whole = (TOKENS - 1) // page * page
    with Daemon(KVD, dram="3GiB") as daemon:
        first = sglang_engine.Engine(place, daemon)
        warm = [first.ask([prompt, prompt])[1] for prompt in asked]
        first.until_stored(asked[-1:], whole)  # Which it does one after another.
        first.end()
        second = sglang_engine.Engine(place, daemon)
        loaded = [second.ask([prompt])[0] for prompt in asked]
        second.end()
    return told(asked, sum(sglang_engine.from_storage(loaded)), whole, sglang_engine.field(loaded, "digest"),
                sglang_engine.field(warm, "digest"))


def main():
    engine_process.PATIENCE = 3600  # Seconds.
    what = {"ttft": time_to_first_token, "lmcache": beside_lmcache, "thousand": thousand, "sglang": thousand_of_sglang}
    return 0 if what[sys.argv[4]]() else 1


if __name__ == "__main__":
    sys.exit(main())
