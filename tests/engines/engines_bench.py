#!/usr/bin/env python3
"""What a hit is worth to a real vLLM on this machine: engines_bench.py FOLDER KVD ROOT ttft|thousand [COUNT].

  ttft      time to the first token of 2,000-token prompts, cold and found by a second engine; the model is wide enough
            that computing them takes its time
  thousand  1,000 requests (or COUNT) of 2,000 tokens in a second engine: the share of full blocks that was loaded, and
            whether every log-probability is that of the first engine's own warm cache
"""

import pathlib
import statistics
import sys

FOLDER, KVD, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT / "tests/client/python")]

import engine_process  # noqa: E402
from daemon import Daemon  # noqa: E402
from vllm_engine import BLOCK, Place, live, prompts  # noqa: E402

TOKENS = 2000
WHOLE = (TOKENS - 1) // BLOCK  # Blocks of a prompt that can be loaded.


def milliseconds(answer):
    return 1e3 * statistics.median(one["seconds"] for one in answer["answers"])


def time_to_first_token(place, daemon):
    engine = {"engine": {"load_format": "dummy", "enable_prefix_caching": True}, "model": "wide", "max_tokens": 1}
    first, asked = prompts(1, 1, TOKENS), prompts(10, 2, TOKENS)
    _, cold, own = live(place, daemon, [first, asked, asked], **engine)  # The first request of an engine is slow.
    _, hit = live(place, daemon, [prompts(1, 3, TOKENS), asked], **engine)
    assert all(one["cached"] == WHOLE * BLOCK for one in hit["answers"]), hit
    print(f"time to the first token, median of {len(asked)}: cold {milliseconds(cold):.0f} ms, hit by a second engine "
          f"{milliseconds(hit):.0f} ms ({milliseconds(hit) / milliseconds(cold):.3f}x), its own warm cache "
          f"{milliseconds(own):.0f} ms")


def thousand(place, daemon):
    asked = prompts(int(sys.argv[5]) if len(sys.argv) > 5 else 1000, 4, TOKENS)
    twice = [prompt for prompt in asked for _ in range(2)]  # Warm at once, before it leaves the engine's cache.
    both, = live(place, daemon, [twice])
    warm = both["answers"][1::2]
    loaded, = live(place, daemon, [asked])
    share = sum(one["cached"] for one in loaded["answers"]) / (len(asked) * WHOLE * BLOCK)
    equal = sum(one["digest"] == other["digest"] for one, other in zip(loaded["answers"], warm))
    print(f"{len(asked)} requests of {TOKENS} tokens in a second engine: {share:.2%} of full blocks loaded, "
          f"{equal} digests equal to the first engine's own warm cache")
    return share >= 0.95 and equal == len(asked)


def main():
    engine_process.PATIENCE = 3600  # Seconds.
    what = {"ttft": (time_to_first_token, "1GiB"), "thousand": (thousand, "3GiB")}
    measure, dram = what[sys.argv[4]]
    with Daemon(KVD, dram=dram) as daemon:
        return 1 if measure(Place(FOLDER, ROOT), daemon) is False else 0


if __name__ == "__main__":
    sys.exit(main())
