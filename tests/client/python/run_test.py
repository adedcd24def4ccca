#!/usr/bin/env python3
"""kvd-run with a program in the place of an engine: run_test.py KVD SOURCE_ROOT [unittest arguments]."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import unittest

KVD = pathlib.Path(sys.argv[1]).resolve()
ROOT = pathlib.Path(sys.argv[2]).resolve()
sys.path.insert(0, str(ROOT / "client/python"))

import kvd  # noqa: E402
from daemon import PATIENCE, Daemon  # noqa: E402
from kvd import run  # noqa: E402

# Says what it was given and whether the daemon that it was shown answers.
ENGINE = """#!/usr/bin/env python3
import json, os, sys
flags = [json.loads(word) for word in sys.argv if word.startswith("{")]
endpoint = (flags[0].get("kv_connector_extra_config") or flags[0])["endpoint"]
import kvd
kvd.Client(endpoint).connect(timeout=30)
print(json.dumps({"arguments": sys.argv[1:], "endpoint": endpoint}), flush=True)
sys.stdin.read()
sys.exit(7)
"""


def commands_of(manual):
    """Those of its shell blocks, each in one piece, as a shell would take them."""
    for block in re.findall(r"^```sh\n(.*?)^```", manual.read_text(), re.M | re.S):
        piece = ""
        for line in block.replace("\\\n", " ").splitlines():
            piece += line + "\n"
            if piece.count("'") % 2 == 0:
                yield piece
                piece = ""


def flags_of(words):
    """Each flag with its value: None, a text, or what its JSON says."""
    flags = {}
    for word, value in zip(words, [*words[1:], "--"]):
        if word.startswith("--"):
            flags[word] = None if value.startswith("--") else json.loads(value) if value.startswith("{") else value
    return flags


class RunTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvd-run-test-")
        self.addCleanup(folder.cleanup)
        self.engine = pathlib.Path(folder.name, "vllm")
        self.engine.write_text(ENGINE)
        self.engine.chmod(0o755)
        self.environment = {**os.environ, "KVD_DAEMON": str(KVD), "PYTHONPATH": str(ROOT / "client/python"),
                            "TMPDIR": folder.name}

    def start(self, *command, **changes):
        process = subprocess.Popen([sys.executable, "-B", "-m", "kvd.run", "--dram", "64MiB", *map(str, command)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**self.environment, **changes})
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if not process.stdin.closed:
            process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()
        if process.stderr is not None:
            process.stderr.close()

    def until_gone(self, endpoint):
        end = time.monotonic() + PATIENCE
        while pathlib.Path(endpoint[len("unix:"):]).exists():
            self.assertLess(time.monotonic(), end)

    def test_the_engine_has_a_daemon_as_long_as_it_lives(self):
        process = self.start("--", self.engine, "serve", "model", "--port", "1")
        told = json.loads(process.stdout.readline())
        self.assertEqual(told["arguments"][:4], ["serve", "model", "--port", "1"])

        process.stdin.close()

        self.assertEqual(process.wait(PATIENCE), 7)
        self.until_gone(told["endpoint"])

    def test_a_signal_reaches_the_engine_and_the_daemon_ends_after_it(self):
        process = self.start(self.engine, "serve", "model")
        told = json.loads(process.stdout.readline())

        process.send_signal(signal.SIGTERM)

        self.assertEqual(process.wait(PATIENCE), 128 + signal.SIGTERM)
        self.until_gone(told["endpoint"])

    def test_the_daemon_ends_with_a_runner_that_is_killed(self):
        process = self.start(self.engine, "serve", "model")
        told = json.loads(process.stdout.readline())

        process.kill()

        self.until_gone(told["endpoint"])

    def test_what_cannot_work_is_refused_with_one_sentence(self):
        for command, changes, sentence in [
                ([], {}, "which engine"),
                (["python", "-m", "http.server"], {}, "neither `vllm serve ...` nor"),
                (["vllm", "serve", "m", "--kv-transfer-config={}"], {}, "has --kv-transfer-config already"),
                (["python", "-m", "sglang.launch_server", "--hicache-storage-backend", "file"], {},
                 "has --hicache-storage-backend already"),
                (["--endpoint", "unix:/x", "vllm", "serve", "m"], {}, "--dram and --data are of a daemon"),
                (["vllm", "serve", "m"], {"KVD_DAEMON": "", "PATH": "/nowhere"}, "install the package of kvd"),
                (["--data", "/nowhere/at/all", "vllm", "serve", "m"], {}, "the daemon did not start"),
                (["/nowhere/vllm", "serve", "m"], {}, "cannot run /nowhere/vllm: No such file")]:
            with self.subTest(sentence):
                process = self.start(*command, **changes)
                self.assertIn(sentence, process.communicate(timeout=PATIENCE)[1])
                self.assertEqual(process.returncode, 2)

    def test_what_is_added(self):
        vllm = run.engine_flags(["/opt/bin/vllm", "serve", "m"], "unix:/e")
        self.assertEqual(json.loads(vllm[1])["kv_connector_extra_config"], {"endpoint": "unix:/e"})
        self.assertEqual(run.engine_flags(["python", "-m", "vllm.entrypoints.openai.api_server"], "unix:/e"), vllm)
        sglang = run.engine_flags(["python3", "-m", "sglang.launch_server"], "unix:/e")
        self.assertEqual(sglang[-2:], ["--page-size", "64"])
        self.assertEqual(run.engine_flags(["sglang", "serve", "--page-size=32"], "unix:/e"), sglang[:-2])

    def test_the_manuals_commands_have_the_flags_that_are_added(self):
        for manual in ("README.md", "client/python/README.md"):
            found = []
            for line in commands_of(ROOT / manual):
                flags = flags_of(shlex.split(line, comments=True))
                if any(isinstance(value, dict) and "KvdTier" not in str(value) for value in flags.values()):
                    engine = ["vllm", "serve"] if line.startswith("vllm") else ["sglang", "serve"]
                    added = flags_of(run.engine_flags(engine, "unix:/run/kvd/kvd.sock"))
                    for configuration in (flags, added):  # Told beside the command in one of them.
                        configuration.get("--kv-transfer-config", {}).pop("kv_load_failure_policy", None)
                    self.assertEqual({**flags, "--model-path": None}, {**added, "--model-path": None})
                    found.append(engine[0])
            self.assertEqual(found, ["vllm", "sglang"], manual)

    def test_a_daemon_that_runs_is_used_and_left_alone(self):
        with Daemon(KVD) as daemon:
            process = subprocess.Popen(
                [sys.executable, "-B", "-m", "kvd.run", "--endpoint", daemon.endpoint, self.engine, "serve"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)
            self.addCleanup(self.end, process)
            self.assertEqual(json.loads(process.stdout.readline())["endpoint"], daemon.endpoint)
            process.stdin.close()
            self.assertEqual(process.wait(PATIENCE), 7)
            kvd.Client(daemon.endpoint).connect(timeout=PATIENCE)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
