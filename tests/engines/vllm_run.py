#!/usr/bin/env python3
"""One life of a vLLM engine, in a process of its own: the first line on standard input is the task, and every line
after it a round, which becomes a line on standard output. The end of that input is the engine's.

The task says the model's folder, the connector's configuration, and what the engine is. A round is {"prompts": lists of
token ids, "abort_after": end all of them after so many steps of the engine}. An answer has for each prompt the
tokens, a digest of the exact log-probabilities, how many tokens came from a cache, and the seconds that it took (all
of them, where they ran together). Prompts run one after another, because the last bits of a result depend on what
shares its batch; with `together` they run at once. `free` is how many blocks nobody holds.
"""

import functools
import hashlib
import importlib
import json
import os
import sys
import time


ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def digest_of(output):
    """Of every bit of the log-probabilities: tokens alone hide a damaged page."""
    digest = hashlib.sha256()
    for step in output.outputs[0].logprobs:
        for token, probability in sorted(step.items()):
            digest.update(f"{token} {probability.logprob!r};".encode())
    return digest.hexdigest()[:16]


def generate(llm, batch, sampling):
    begun = time.monotonic()
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in batch], sampling, use_tqdm=False)
    seconds = time.monotonic() - begun
    return [{"tokens": list(o.outputs[0].token_ids), "digest": digest_of(o), "cached": o.num_cached_tokens,
             "finish": o.outputs[0].finish_reason, "seconds": seconds} for o in outputs]


def abort(llm, prompts, sampling, steps):
    """Ends all requests after `steps` steps, in whatever state they are then. `sampling` goes on for longer."""
    names = [f"abort-{steps}-{number}" for number in range(len(prompts))]
    for name, prompt in zip(names, prompts):
        llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
    ended = [output.request_id for _ in range(steps) for output in llm.llm_engine.step() if output.finished]
    llm.llm_engine.abort_request(names)
    return {"ended": ended}


def free_blocks(llm):
    """None where the engine's core is another process."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    return core and core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def main():
    task = json.loads(sys.stdin.readline())
    os.environ.update({**ENVIRONMENT, **task.get("environment", {})})
    answers = os.fdopen(os.dup(1), "w")  # vLLM prints to standard output too.
    os.dup2(2, 1)
    for name in task.get("modules", ()):
        importlib.import_module(name)
    from vllm import LLM, SamplingParams  # With that environment.
    from vllm.config import KVTransferConfig

    transfer = task.get("connector")
    llm = LLM(model=task["model"], skip_tokenizer_init=True, enforce_eager=True,
              kv_transfer_config=KVTransferConfig(**transfer) if transfer else None,
              disable_log_stats=False, **task.get("engine", {}))
    greedy = functools.partial(SamplingParams, temperature=0, detokenize=False, ignore_eos=True, logprobs=5)
    sampling, endless = greedy(max_tokens=task.get("max_tokens", 8)), greedy(max_tokens=1024)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = asked["prompts"]
        try:
            if "abort_after" in asked:
                answer = abort(llm, prompts, endless, asked["abort_after"])
            else:
                batches = [prompts] if task.get("together") else [[prompt] for prompt in prompts]
                answer = [one for batch in batches for one in generate(llm, batch, sampling)]
        except Exception as error:  # The test judges it.
            answer = {"error": f"{type(error).__name__}: {error}"}
        metrics = {metric.name: metric.value for metric in llm.get_metrics()
                   if metric.name.startswith(("vllm:kvd", "vllm:external_prefix", "vllm:num_preempt"))
                   and hasattr(metric, "value")}
        print(json.dumps({"answers": answer, "metrics": metrics, "free": free_blocks(llm)}), file=answers, flush=True)
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":  # Workers of their own import this file too.
    main()
