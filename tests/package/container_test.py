#!/usr/bin/env python3
"""What can be said of the container file without building it: container_test.py CONTAINERFILE
KVD KVCTL.

The distribution has no linter for such files, so the rules that matter are here: it pins its base by
the plain name, ends as a user without rights, leaves no package lists behind, installs nothing that
was not asked for, copies no more than it names, and brings every library that the programs need.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import unittest

FILE, *PROGRAMS = sys.argv[1:4]
INSTRUCTIONS = {"FROM", "SHELL", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "STOPSIGNAL",
                "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions():
    """(instruction, rest) of each, with continued lines as one."""
    text = re.sub(r"^\s*#.*\n", "", pathlib.Path(FILE).read_text(), flags=re.M)
    text = re.sub(r"\\\n\s*", "", text)
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


class ContainerTest(unittest.TestCase):
    def setUp(self):
        self.all = instructions()
        last = max(i for i, (name, _) in enumerate(self.all) if name == "FROM")
        self.image = self.all[last:]

    def rest(self, name, of=None):
        return [rest for n, rest in of or self.all if n == name]

    def test_has_only_instructions_that_exist(self):
        self.assertLessEqual({name for name, _ in self.all}, INSTRUCTIONS)

    def test_every_stage_begins_with_the_plain_name_of_the_distribution(self):
        self.assertEqual({base.split()[0] for base in self.rest("FROM")}, {"debian:12-slim"})
        self.assertGreater(len(self.rest("FROM")), 1, "what builds must not be in the image")

    def test_runs_as_a_user_without_rights_by_number(self):
        user = self.rest("USER", self.image)[-1]
        self.assertRegex(user, r"^[1-9]\d*:[1-9]\d*$")
        self.assertLess([n for n, _ in self.image].index("USER"),
                        [n for n, _ in self.image].index("ENTRYPOINT"))

    def test_installs_sparely_and_cleans_up(self):
        runs = [r for r in self.rest("RUN") if "apt-get install" in r]
        self.assertEqual(len(runs), 2)
        for run in runs:
            self.assertIn("apt-get update", run, "lists of another layer may be stale")
            self.assertIn("--no-install-recommends", run)
            self.assertIn("rm -rf /var/lib/apt/lists/*", run)

    def test_programs_are_started_without_a_shell(self):
        for name in ("ENTRYPOINT", "CMD"):
            self.assertRegex(self.rest(name, self.image)[0], r"^\[.*\]$")

    @unittest.skipUnless(shutil.which("shellcheck"), "no shellcheck")
    def test_shellcheck_finds_nothing_in_what_it_runs(self):
        for run in self.rest("RUN"):
            found = subprocess.run(["shellcheck", "--shell=bash", "-"], input=run + "\n", text=True,
                                   stdout=subprocess.PIPE)
            self.assertEqual(found.returncode, 0, found.stdout)

    @unittest.skipUnless(shutil.which("dpkg-query"), "no dpkg here")
    def test_the_image_has_every_library_that_the_programs_need(self):
        """By the packages' own dependencies: each library is named, or needed by one that is."""
        install = next(r for r in self.rest("RUN", self.image) if "apt-get install" in r)
        brought = set(re.findall(r"\b(?:lib[\w.+-]*\d[\w.]*)", install.split("recommends")[1]))
        waiting = list(brought)
        while waiting:
            depends = subprocess.run(["dpkg-query", "-W", "-f", "${Depends}, ${Pre-Depends}\n", waiting.pop()],
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                     text=True).stdout  # Virtual packages are not installed.
            for name in re.findall(r"(?:^|[,|] )([\w.+-]+)", depends):
                if name not in brought:
                    brought.add(name)
                    waiting.append(name)
        for path in sorted(set(re.findall(r"=> (/\S+)", subprocess.run(
                ["ldd", *PROGRAMS], stdout=subprocess.PIPE, text=True, check=True).stdout))):
            real = str(pathlib.Path(path).resolve())
            owner = subprocess.run(["dpkg-query", "-S", f"*{pathlib.Path(real).name}"],
                                   stdout=subprocess.PIPE, text=True, check=True).stdout
            owners = {line.split(":")[0] for line in owner.splitlines()}
            self.assertTrue(owners & brought, f"{real} is of {owners}")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
