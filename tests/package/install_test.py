#!/usr/bin/env python3
"""Programs of others, built out of an install prefix in the ways that they would use.

install_test.py CMAKE BUILD-FOLDER SOURCE-FOLDER KVD
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

CMAKE, BUILD, SOURCE, KVD = sys.argv[1:5]
CONSUMER = pathlib.Path(__file__).parent / "consumer"


def run(*command, **options):
    ran = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, **options)
    if ran.returncode != 0:
        raise AssertionError(f"{command} ended with {ran.returncode}:\n{ran.stdout}")
    return ran.stdout


class InstallTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="kvd-install-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.prefix = cls.folder / "prefix"
        # The prefix moves, as when a package is unpacked elsewhere: nothing may name the build.
        for component in ("runtime", "development"):
            run(CMAKE, "--install", BUILD, "--prefix", cls.prefix, "--component", component)
        cls.libraries = next(cls.prefix.rglob("libkvd.so.0")).parent
        cls.environment = {**os.environ, "LD_LIBRARY_PATH": str(cls.libraries)}

    def setUp(self):
        self.endpoint = f"unix:{self.folder}/kvd.sock"
        daemon = subprocess.Popen([KVD, "--listen", self.endpoint, "--dram", "64MiB"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(daemon.stdout.close)
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.kill)
        self.assertRegex(daemon.stdout.readline(), "^kvd ready")

    def assert_works(self, program):
        self.assertTrue(run(program, self.endpoint, env=self.environment))

    def test_find_package_gives_the_c_and_the_cxx_library(self):
        build = self.folder / "consumer"
        run(CMAKE, "-S", CONSUMER, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={self.prefix}",
            f"-DPROGRAMS={SOURCE}", "-DCMAKE_FIND_PACKAGE_NO_PACKAGE_REGISTRY=ON")
        run(CMAKE, "--build", build)

        self.assert_works(build / "c_consumer")
        self.assert_works(build / "cxx_consumer")

    def test_find_package_refuses_another_version(self):
        with self.assertRaisesRegex(AssertionError, 'compatible\\s+with requested version "0.2"'):
            other = self.folder / "other"
            other.mkdir()
            text = (CONSUMER / "CMakeLists.txt").read_text()
            (other / "CMakeLists.txt").write_text(text.replace("kvd 0.1", "kvd 0.2"))
            run(CMAKE, "-S", other, "-B", other / "build", "-G", "Ninja",
                f"-DCMAKE_PREFIX_PATH={self.prefix}", f"-DPROGRAMS={SOURCE}")

    def test_pkg_config_gives_the_c_library(self):
        package = next(self.prefix.rglob("kvd.pc"))
        environment = {**os.environ, "PKG_CONFIG_PATH": str(package.parent)}
        flags = run("pkg-config", "--cflags", "--libs",
                    "kvd", env=environment).split()
        program = self.folder / "by_pkg_config"
        run("cc", "-std=c99", f"{SOURCE}/tests/client/c_api_program.c", "-o", program, *flags)

        self.assert_works(program)

    def test_the_header_compiles_alone_as_c_and_as_cxx(self):
        header = self.prefix / "include/kvd.h"
        for language in (["cc", "-x", "c", "-std=c99"], ["c++", "-x", "c++", "-std=c++11"]):
            run(*language, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", header)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
