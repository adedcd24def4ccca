#!/usr/bin/env python3
"""libkvd.so in a Python that has the wheels of PyTorch, gRPC and protobuf, whose own copies of those
libraries are of other versions: python_process_test.py VENV LIBRARY KVD.

Makes the environment in VENV, with pinned wheels, where it is missing. PyTorch is the CPU build (0.2 GB)
where pip is configured to find it, and else the one for CUDA (some GB), which serves as well.
"""

import pathlib
import subprocess
import sys
import unittest
import venv

from ctypes_process import CtypesProcess, bundle

VENV, LIBRARY, KVD = sys.argv[1:4]
WHEELS = ["grpcio==1.66.2", "protobuf==5.28.2", "torch==2.13.0"]
MODULES = "torch grpc google.protobuf.struct_pb2"


class PythonProcessTest(CtypesProcess, unittest.TestCase):
    daemon = KVD

    @classmethod
    def setUpClass(cls):
        cls.python = pathlib.Path(VENV, "bin/python")
        installed = pathlib.Path(VENV, "installed")
        if not installed.exists() or installed.read_text() != " ".join(WHEELS):
            venv.create(VENV, with_pip=True, clear=True)
            subprocess.run([cls.python, "-m", "pip", "install", "--quiet", *WHEELS], check=True)
            installed.write_text(" ".join(WHEELS))

    def assert_has_both(self, libraries):
        self.assertTrue(any("/torch/lib/libtorch_cpu.so" in name for name in libraries))
        self.assertTrue(any("/grpc/_cython/" in name for name in libraries))
        self.assertTrue(any("/libprotobuf-lite" in name for name in libraries), "ours")

    def test_puts_and_gets_beside_other_versions_of_the_same_libraries(self):
        self.assert_has_both(self.put_and_get(LIBRARY, before=MODULES))

    def test_puts_and_gets_when_they_come_later(self):
        self.assert_has_both(self.put_and_get(LIBRARY, after=MODULES))

    def test_puts_and_gets_with_bundled_libraries(self):
        self.assert_has_both(self.put_and_get(bundle(LIBRARY, self.folder), before=MODULES))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
