"""A vLLM with kvd's connector, in a process of its own (vllm_run.py)."""

import pathlib

from engine_process import EngineProcess

HERE = pathlib.Path(__file__).resolve().parent
BLOCK = 32


class Engine(EngineProcess):
    """A vLLM in a process of its own. `connector` changes the configuration of kvd's; False: the engine has none."""

    def __init__(self, place, daemon, model="llama", fault=None, environment=None, connector=None, extra=None, **task):
        transfer = {"kv_connector": "KvdConnector", "kv_role": "kv_both",
                    "kv_connector_module_path": "faulty" if fault else "kvd.vllm",
                    "kv_connector_extra_config": {"endpoint": daemon and daemon.endpoint,
                                                  # Long, so that a slow machine fails no test.
                                                  "lookup_timeout_ms": 20000, **(extra or {})},
                    **(connector or {})} if connector is not False else None
        options = {"dtype": "float32", "max_model_len": 4096, "block_size": BLOCK,
                   **task.pop("engine", {})}
        if model == "deepseek":  # MLA chooses the size of its blocks.
            options.update(dtype="bfloat16", block_size=None)
        super().__init__(place.python, HERE / "vllm_run.py",
                         {**place.variables, "KVD_FAULT": fault or "",
                          "PYTHONPATH": f"{place.root / 'client/python'}:{HERE}"}, place.folder)
        self.say({"model": place.model(model), "connector": transfer,
                  "engine": {name: value for name, value in options.items() if value is not None},
                  "environment": environment or {}, **task})

    def ask(self, asked, **how):
        self.say({"prompts": asked, **how})
        return self.answer()


def live(place, daemon, rounds, **options):
    """A whole life: what it answered in each round."""
    engine = Engine(place, daemon, **options)
    answers = [engine.ask(asked) for asked in rounds]
    status = engine.end()
    if status != 0:
        raise AssertionError(f"the engine ended with {status}: {engine.tail()}")
    return answers
