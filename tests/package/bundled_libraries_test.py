#!/usr/bin/env python3
"""libkvd.so as a wheel brings it, with its own gRPC, Abseil and protobuf under other names, in a Python
that has the distribution's: bundled_libraries_test.py PYTHON LIBRARY KVD.

The process then has the same libraries twice, of the same version: whatever the linker shares between
two libraries by name alone, it would share here.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

from ctypes_process import CtypesProcess, bundle

PYTHON, LIBRARY, KVD = sys.argv[1:4]
MODULES = "grpc google.protobuf.struct_pb2"


def has_modules():
    imports = "; ".join(f"import {module}" for module in MODULES.split())
    return subprocess.run([PYTHON, "-c", imports], stderr=subprocess.DEVNULL).returncode == 0


@unittest.skipUnless(shutil.which("patchelf"), "no patchelf")
@unittest.skipUnless(has_modules(), f"{PYTHON} has no gRPC")
class BundledLibrariesTest(CtypesProcess, unittest.TestCase):
    python, daemon = PYTHON, KVD

    @classmethod
    def setUpClass(cls):
        wheel = tempfile.TemporaryDirectory(prefix="kvd-wheel-")
        cls.addClassCleanup(wheel.cleanup)
        cls.wheel = pathlib.Path(wheel.name)
        cls.library = bundle(LIBRARY, cls.wheel)

    def assert_each_has_its_own(self, libraries):
        self.assertIn(str(self.library), libraries)
        self.assertTrue(any("/cygrpc." in path for path in libraries))  # Has gRPC's core inside.
        for name in ("protobuf", "absl_"):
            with self.subTest(name):
                of = [path for path in libraries if f"/lib{name}" in path]
                bundled = [path for path in of if path.startswith(str(self.wheel))]
                self.assertTrue(bundled, "it must not have found the distribution's")
                self.assertGreater(len(of), len(bundled), "Python's must be there as well")

    def test_needs_nothing_of_the_machine_but_its_c_and_cxx_libraries(self):
        theirs = [path for path in self.put_and_get(self.library)
                  if any(f"/lib{name}" in path for name in ("protobuf", "grpc", "absl", "crypto"))]

        self.assertEqual([path for path in theirs if not path.startswith(str(self.wheel))], [])
        self.assertTrue(theirs)

    def test_puts_and_gets_where_the_others_were_first(self):
        self.assert_each_has_its_own(self.put_and_get(self.library, before=MODULES))

    def test_puts_and_gets_where_the_others_come_later(self):
        self.assert_each_has_its_own(self.put_and_get(self.library, after=MODULES))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
