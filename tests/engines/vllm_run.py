#!/usr/bin/env python3
"""One life of a vLLM engine, in a process of its own: the task is a line on standard input, and each
round of prompts becomes a line on standard output.

The task says the model's folder, the connector's configuration, and the rounds; an answer has for each
prompt the tokens, a digest of the exact log-probabilities, how many tokens came from a cache, and the
seconds that it took (all of them, where they ran together). Prompts run one after another, because the
last bits of a result depend on what shares its batch; with `together` they run at once. With `wait` every
round after the first begins with a line on standard input, so that a test can act while the engine lives;
the end of that input is the engine's.
"""

import hashlib
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


def main():
    task = json.loads(sys.stdin.readline())
    os.environ.update({**ENVIRONMENT, **task.get("environment", {})})
    answers = os.fdopen(os.dup(1), "w")  # vLLM prints to standard output too.
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams  # With that environment.
    from vllm.config import KVTransferConfig

    transfer = task.get("connector")
    llm = LLM(model=task["model"], skip_tokenizer_init=True, enforce_eager=True,
              kv_transfer_config=KVTransferConfig(**transfer) if transfer else None,
              disable_log_stats=False, **task.get("engine", {}))
    sampling = SamplingParams(max_tokens=task.get("max_tokens", 8), temperature=0, detokenize=False,
                              ignore_eos=True, logprobs=5)
    for number, prompts in enumerate(task["rounds"]):
        if number and task.get("wait") and not sys.stdin.readline():
            break
        try:
            batches = [prompts] if task.get("together") else [[prompt] for prompt in prompts]
            answer = [one for batch in batches for one in generate(llm, batch, sampling)]
        except Exception as error:  # The test judges it.
            answer = {"error": f"{type(error).__name__}: {error}"}
        metrics = {metric.name: metric.value for metric in llm.get_metrics()
                   if metric.name.startswith(("vllm:kvd", "vllm:external_prefix", "vllm:num_preempt"))
                   and hasattr(metric, "value")}
        print(json.dumps({"answers": answer, "metrics": metrics}), file=answers, flush=True)
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":  # Workers of their own import this file too.
    main()
