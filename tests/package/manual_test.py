#!/usr/bin/env python3
"""The manual pages say all that --help does: manual_test.py PAGES-FOLDER KVD KVCTL KVD_BENCH.

The options of kvd(8) are written from their table; ConfigTest compares the two.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import unittest

PAGES = pathlib.Path(sys.argv[1])
KVD, KVCTL, KVD_BENCH = sys.argv[2:5]


def help_of(program):
    return subprocess.run([program, "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout


class ManualTest(unittest.TestCase):
    def assert_page_says(self, page, program):
        text = (PAGES / page).read_text().replace("\\-", "-").replace("\\fI", "")
        said = help_of(program)
        words = set(re.findall(r"^  (?:-\w,)?(--[\w-]+)", said, flags=re.M))
        if "Subcommands:" in said:
            after = said.split("Subcommands:\n")[1]
            words |= set(re.findall(r"^  ([a-z]+) ", after.split("\n\n")[0], flags=re.M))
        self.assertTrue(words)
        for word in sorted(words - {"--help"}):
            with self.subTest(word):
                self.assertRegex(text, rf"(?<![\w-]){re.escape(word)}(?![\w-])")

    def test_kvd(self):
        self.assert_page_says("kvd.8", KVD)

    def test_kvctl(self):
        self.assert_page_says("kvctl.1", KVCTL)

    def test_kvd_bench(self):
        self.assert_page_says("kvd-bench.1", KVD_BENCH)

    @unittest.skipUnless(shutil.which("groff"), "no groff")
    def test_they_are_well_formed(self):
        for page in sorted(PAGES.iterdir()):
            with self.subTest(page.name):
                ran = subprocess.run(["groff", "-man", "-ww", "-z", page], stderr=subprocess.PIPE,
                                     text=True)
                self.assertEqual((ran.returncode, ran.stderr), (0, ""))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
