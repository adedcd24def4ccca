"""A vLLM with kvd's connector, in a process of its own (vllm_run.py)."""

import functools
import pathlib
import random
import subprocess

from engine_process import EngineProcess
from environment import python_of

HERE = pathlib.Path(__file__).resolve().parent
BLOCK = 32


class Place:
    """Where environments, models and logs lie, and kvd's own sources."""

    def __init__(self, folder, root):
        self.folder, self.root = folder, root

    @functools.cached_property
    def python(self):
        """Of the environment, which is made when it is missing, and so are the models."""
        python = python_of(self.folder, "vllm")
        subprocess.run([python, "-B", HERE / "models.py", self.folder / "models"], check=True)
        return python


def prompts(count, seed, tokens):
    numbers = random.Random(seed)
    return [[numbers.randrange(512) for _ in range(tokens)] for _ in range(count)]


class Engine(EngineProcess):
    """A vLLM in a process of its own, for the rounds that it is given."""

    def __init__(self, place, daemon, rounds, model="llama", fault=None, environment=None, connector=None,
                 extra=None, **task):
        transfer = {"kv_connector": "KvdConnector", "kv_role": "kv_both",
                    "kv_connector_module_path": "faulty" if fault else "kvd.vllm",
                    "kv_connector_extra_config": {"endpoint": daemon.endpoint,
                                                  # Long, so that a slow machine fails no test.
                                                  "lookup_timeout_ms": 20000, **(extra or {})},
                    **(connector or {})}
        options = {"dtype": "float32", "max_model_len": 4096, "block_size": BLOCK,
                   **task.pop("engine", {})}
        if model == "deepseek":  # MLA chooses the size of its blocks.
            options.update(dtype="bfloat16", block_size=None)
        super().__init__(place.python, HERE / "vllm_run.py",
                         {"KVD_FAULT": fault or "", "PYTHONPATH": f"{place.root / 'client/python'}:{HERE}"},
                         place.folder)
        self.say({"model": str(place.folder / "models" / model), "connector": transfer, "rounds": rounds,
                  "engine": {name: value for name, value in options.items() if value is not None},
                  "environment": environment or {}, **task})

    def go_on(self):
        self.say(None)


def live(place, daemon, rounds, **options):
    """A whole life: what it answered in each round."""
    engine = Engine(place, daemon, rounds, **options)
    answers = [engine.answer() for _ in rounds]
    status = engine.end()
    if status != 0:
        raise AssertionError(f"the engine ended with {status}: {engine.tail()}")
    return answers
