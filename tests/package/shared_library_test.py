#!/usr/bin/env python3
"""What libkvd.so shows and needs: shared_library_test.py LIBRARY HEADER STRIP."""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

LIBRARY, HEADER, STRIP = sys.argv[1:4]
MAX_STRIPPED_BYTES = 4 << 20


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def dynamic(tag):
    """The values of one tag of the dynamic section."""
    return re.findall(rf"\({tag}\)\s+.*\[(.*)\]", run("readelf", "-d", LIBRARY))


class SharedLibraryTest(unittest.TestCase):
    def test_exports_the_functions_of_the_header_and_nothing_else(self):
        text = re.sub(r"/\*.*?\*/", "", pathlib.Path(HEADER).read_text(), flags=re.S)
        declared = set(re.findall(r"^KVD_API [^;]*?\b(\w+)\(", text, flags=re.M))
        exported = {line.split()[-1].split("@")[0]
                    for line in run("nm", "-D", "--defined-only", LIBRARY).splitlines()
                    if line.split()[-2] != "A"}  # Names of versions.

        self.assertGreater(len(declared), 20)
        self.assertEqual(exported, declared)

    def test_every_export_has_a_version(self):
        for line in run("nm", "-D", "--defined-only", LIBRARY).splitlines():
            if line.split()[-2] != "A":
                self.assertRegex(line, r"@@KVD_0\.\d+$")

    def test_has_a_versioned_soname(self):
        self.assertEqual(dynamic("SONAME"), ["libkvd.so.0"])
        self.assertEqual(pathlib.Path(LIBRARY).resolve().name, "libkvd.so.0.1.0")

    def test_needs_only_libraries_of_the_distribution_and_not_the_full_protobuf(self):
        needed = dynamic("NEEDED")
        for name in needed:
            with self.subTest(name):
                self.assertRegex(name, r"^lib(grpc(\+\+)?|gpr|protobuf-lite|absl_\w+|crypto|stdc\+\+|m"
                                       r"|gcc_s|c|asan|ubsan)\.so\.|^ld-linux")
        self.assertEqual(dynamic("RUNPATH") + dynamic("RPATH"), [])

    def test_stays_in_the_process_once_loaded(self):
        self.assertIn("NODELETE", run("readelf", "-d", LIBRARY))

    def test_is_small_when_stripped(self):
        with tempfile.TemporaryDirectory() as folder:
            stripped = pathlib.Path(folder, "libkvd.so")
            run(STRIP, "-o", str(stripped), LIBRARY)

            self.assertLess(stripped.stat().st_size, MAX_STRIPPED_BYTES)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
