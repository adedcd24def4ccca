#!/usr/bin/env python3
"""What systemd says of the units: unit_test.py KVD UNITS-FOLDER."""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

KVD, UNITS = sys.argv[1:3]
MAX_EXPOSURE = 2.0
NAMES = ("kvd.service", "kvd.socket")
SYSTEM_UNITS = next((f for f in ("/usr/lib/systemd/system", "/lib/systemd/system")
                     if pathlib.Path(f, "sysinit.target").exists()), None)


@unittest.skipUnless(shutil.which("systemd-analyze") and SYSTEM_UNITS, "no systemd here")
class UnitTest(unittest.TestCase):
    """In a folder that looks like a machine with our package: the units name its files."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvd-units-")
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        units = self.root / "usr/lib/systemd/system"
        units.mkdir(parents=True)
        (self.root / "bin").mkdir()
        (self.root / "usr/bin").mkdir()
        for target in pathlib.Path(SYSTEM_UNITS).glob("*.target"):
            shutil.copy(target, units)
        for name in NAMES:
            shutil.copy(pathlib.Path(UNITS, name), units)
        shutil.copy(KVD, self.root / "usr/bin/kvd")
        shutil.copy("/bin/kill", self.root / "bin/kill")

    def analyze(self, *arguments):
        return subprocess.run(["systemd-analyze", *arguments, f"--root={self.root}"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def test_they_are_well_formed(self):
        ran = self.analyze("verify", "--man=no", *NAMES)

        self.assertEqual((ran.returncode, ran.stdout), (0, ""))

    def test_a_mistake_would_be_found(self):
        unit = self.root / "usr/lib/systemd/system/kvd.service"
        unit.write_text(unit.read_text().replace("Type=notify", "Typ=notify"))

        self.assertIn("Typ", self.analyze("verify", "--man=no", *NAMES).stdout)

    def test_what_a_taken_over_daemon_could_reach_is_little(self):
        ran = self.analyze("security", "--offline=true",
                           f"--threshold={int(MAX_EXPOSURE * 10)}", "kvd.service")

        exposure = re.search(r"Overall exposure level for kvd.service: ([\d.]+)", ran.stdout)
        self.assertIsNotNone(exposure, ran.stdout)
        self.assertLessEqual(float(exposure[1]), MAX_EXPOSURE, ran.stdout)
        self.assertEqual(ran.returncode, 0, ran.stdout)

    def test_users_are_told_apart(self):
        """In a user namespace each of them would look like nobody, and be one tenant."""
        self.assertNotIn("\nPrivateUsers=", pathlib.Path(UNITS, "kvd.service").read_text())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
