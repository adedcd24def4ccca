"""An SGLang with kvd's storage backend, in a process of its own (sglang_run.py)."""

import json
import pathlib
import time

from engine_process import PATIENCE, EngineProcess

HERE = pathlib.Path(__file__).resolve().parent
PAGE = 16


def field(answer, name):
    return [one[name] for one in answer]


def from_storage(answer):
    return [one["details"].get("storage", 0) for one in answer]


class Engine(EngineProcess):
    def __init__(self, place, daemon, model="llama", fault=None, extra=None, environment=None, **options):
        config = {"backend_name": "kvd", "module_path": "faulty" if fault else "kvd.sglang",
                  "class_name": "KvdStorage", "interface_v1": 1, "hicache_storage_pass_prefix_keys": True,
                  "allocator": "shm", "endpoint": daemon.endpoint, "prefetch_threshold": PAGE,
                  # Long, so that a slow machine fails no test.
                  "prefetch_timeout_base": 60, "lookup_timeout_ms": 20000, "load_timeout_ms": 20000,
                  "save_timeout_ms": 20000, **(extra or {})}
        plugin = as_installed(place.folder / "plugin")
        super().__init__(place.python, HERE / "sglang_run.py", {
            **place.variables, "KVD_FAULT": fault or "",
            "PYTHONPATH": f"{place.root / 'client/python'}:{HERE}:{plugin}", **(environment or {})}, place.folder)
        self.say({"model_path": place.model(model), "hicache_mem_layout": "page_first",
                  "hicache_io_backend": "kernel", "hicache_storage_backend_extra_config": json.dumps(config),
                  **options})

    def ask(self, asked, **how):
        self.say({"prompts": asked, **how})
        return self.answer()

    def until_stored(self, asked, whole):
        """Forgets and asks again until `whole` tokens of each come from storage: saves end in the background. Returns
        that answer."""
        end = time.monotonic() + PATIENCE / 4
        while True:
            answer = self.ask(asked, flush=True)
            if from_storage(answer) == [whole] * len(asked):
                return answer
            if time.monotonic() > end:
                raise AssertionError(f"from storage: {from_storage(answer)}; {self.tail()}")


def as_installed(folder):
    """The entry points of the package, as pip would have put them."""
    found = folder / "kvd-0.dist-info"
    found.mkdir(parents=True, exist_ok=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: kvd\nVersion: 0\n")
    (found / "entry_points.txt").write_text("[sglang.srt.plugins]\nkvd = kvd.sglang.plugin:install\n")
    return folder
