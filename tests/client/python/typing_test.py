#!/usr/bin/env python3
"""The package's types as a user's type checker sees them: typing_test.py MYPY SOURCE_ROOT. The package lies where pip
would have put it, so that what says that it has types is tested too."""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import venv

MYPY, ROOT = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
HERE = pathlib.Path(__file__).resolve().parent


class TypingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="kvd-typing-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        venv.create(cls.folder / "venv", with_pip=False)
        packages, = cls.folder.glob("venv/lib/python*/site-packages")
        shutil.copytree(ROOT / "client/python/kvd", packages / "kvd")

    def errors(self, *programs):
        """(line, kind) of each, and all that was said."""
        ran = subprocess.run(
            [MYPY, "--strict", "--no-incremental", "--show-error-codes", "--cache-dir", self.folder / "cache",
             "--python-executable", self.folder / "venv/bin/python", *programs],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder)
        return [(int(line), kind) for line, kind in re.findall(r":(\d+): error: .*\[([\w-]+)\]$", ran.stdout, re.M)], (
            ran.stdout)

    def test_the_example_and_a_program_that_calls_everything_are_clean(self):
        found, said = self.errors(ROOT / "client/python/examples/first_steps.py", HERE / "typed_program.py")
        self.assertEqual(found, [], said)
        self.assertIn("no issues found in 2 source files", said)

    def test_mistakes_are_found(self):
        lines = (HERE / "wrong_program.py").read_text().splitlines()
        wrong = [(number, line.rpartition("# wrong: ")[2]) for number, line in enumerate(lines, 1) if "# wrong: " in line]
        found, said = self.errors(HERE / "wrong_program.py")
        self.assertEqual(found, wrong, said)

    def test_the_connectors_are_classes(self):
        program = self.folder / "connectors.py"
        program.write_text("from kvd.sglang import KvdStorage\nfrom kvd.vllm import KvdConnector\n"
                           "reveal_type(KvdConnector.has_pending_push_work)\nreveal_type(KvdStorage.batch_exists)\n")
        _, said = self.errors(program)
        self.assertIn('"def (self: kvd.vllm.connector.KvdConnector) -> builtins.bool"', said)
        self.assertIn("builtins.int", said)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
