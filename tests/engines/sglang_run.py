#!/usr/bin/env python3
"""One life of an SGLang engine, in a process of its own: the first line on standard input says how it is started,
and every line after that is a round, which becomes a line on standard output. The end of that input is the
engine's.

A round is {"prompts": lists of token ids, "flush": forget the own caches before, "abort": end all requests as soon as
they have begun}. An answer has for each prompt the tokens, a digest of the exact log-probabilities, and
how many tokens came from which cache. Prompts run one after another, because the last bits of a result depend on
what shares its batch.
"""

import asyncio
import hashlib
import json
import os
import sys

import sglang_on_cpu  # noqa: F401  First; the processes that SGLang spawns run this too.

OPTIONS = {"device": "cpu", "skip_tokenizer_init": True, "attention_backend": "torch_native", "page_size": 16,
           "max_total_tokens": 8192, "mem_fraction_static": 0.1, "disable_cuda_graph": True,
           "disable_overlap_schedule": True, "log_level": "warning", "random_seed": 1, "dtype": "float32",
           "sampling_backend": "pytorch", "grammar_backend": "none", "enable_hierarchical_cache": True,
           "hicache_ratio": 2.0, "hicache_storage_backend": "dynamic",
           "hicache_storage_prefetch_policy": "wait_complete"}


def digest_of(meta):
    """Of every bit of the log-probabilities: tokens alone hide a damaged page."""
    text = repr([[top[:2] for top in step] for step in meta["output_top_logprobs"]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def answer_of(output):
    meta = output["meta_info"]
    return {"tokens": output["output_ids"], "digest": digest_of(meta), "cached": meta["cached_tokens"],
            "details": meta.get("cached_tokens_details") or {}}


def generate(engine, prompts):
    sampling = {"max_new_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    return [answer_of(engine.generate(input_ids=[prompt], sampling_params=sampling, return_logprob=True,
                                      top_logprobs_num=5)[0]) for prompt in prompts]


async def begin_and_abort(engine, prompts):
    """Returns how each ended. Aborted as soon as it is known, so that it is in whatever state that is."""
    sampling = {"max_new_tokens": 512, "temperature": 0.0, "ignore_eos": True}
    manager = engine.tokenizer_manager

    async def one(number, prompt):
        stream = await engine.async_generate(input_ids=prompt, sampling_params=sampling, rid=f"abort-{number}",
                                             stream=True)
        async for ended in stream:
            pass
        return ended["meta_info"]["finish_reason"]["type"]
    running = [asyncio.ensure_future(one(number, prompt)) for number, prompt in enumerate(prompts)]
    for number in range(len(prompts)):
        while f"abort-{number}" not in manager.rid_to_state:
            await asyncio.sleep(0)
        manager.abort_request(f"abort-{number}")
    return await asyncio.gather(*running)


def main():
    task = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w")  # SGLang prints to standard output too.
    os.dup2(2, 1)
    import sglang
    engine = sglang.Engine(**{**OPTIONS, **task})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("flush"):
            engine.flush_cache()
        if asked.get("abort"):
            answer = engine.loop.run_until_complete(begin_and_abort(engine, asked["prompts"]))
        else:
            answer = generate(engine, asked["prompts"])
        print(json.dumps(answer), file=answers, flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main()
