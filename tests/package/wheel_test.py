#!/usr/bin/env python3
"""The wheel, as a user gets it: wheel_test.py ROOT KVD. Makes it first, by ./dev wheel, and installs it
into an environment of its own, from which no compiler can be found."""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import venv

from ctypes_process import OF_THE_MACHINE, CtypesProcess

ROOT, KVD = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


class WheelTest(CtypesProcess, unittest.TestCase):
    daemon = KVD

    @classmethod
    def setUpClass(cls):
        cls.wheel = pathlib.Path(run(ROOT / "dev", "wheel").splitlines()[-1])
        folder = tempfile.TemporaryDirectory(prefix="kvd-wheel-")
        cls.addClassCleanup(folder.cleanup)
        cls.environment = pathlib.Path(folder.name)
        venv.create(folder.name, with_pip=True)
        cls.python = cls.environment / "bin/python"
        run(cls.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
            "--only-binary=:all:", cls.wheel, env={"PATH": str(cls.environment / "bin")})

    def test_is_for_every_python_and_says_how_old_a_libc_may_be(self):
        self.assertRegex(self.wheel.name, r"^kvd-[0-9.]+-py3-none-manylinux_2_\d+_\w+\.whl$")

    def test_asks_for_no_other_package(self):
        shown = run(self.python, "-m", "pip", "show", "--disable-pip-version-check", "kvd")
        self.assertRegex(shown, "(?m)^Requires: *$")

    def test_brings_every_library_that_is_not_of_every_linux(self):
        library, = self.environment.glob("lib/python*/site-packages/kvd/libkvd.so.0")
        for name, path in re.findall(r"^\s*(\S+) => (/\S+)", run("ldd", library), flags=re.M):
            with self.subTest(name):
                # zlib is of every Linux too, says the platform in the wheel's name.
                self.assertTrue(OF_THE_MACHINE.match(name) or name == "libz.so.1"
                                or path.startswith(str(self.environment)), path)

    def test_the_example_runs(self):
        told = run(self.python, "-B", ROOT / "client/python/examples/first_steps.py", self.endpoint,
                   env={"PATH": ""})
        self.assertEqual(told, "stored 2, present 0, hit 2, got 2 equal, pinned 2 blocks\n")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
