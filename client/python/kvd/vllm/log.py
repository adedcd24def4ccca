"""The connector's log: below vLLM's own, so that vLLM shows it."""

from vllm.logger import init_logger

logger = init_logger("vllm.kvd")
