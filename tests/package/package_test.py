#!/usr/bin/env python3
"""The packages that ./dev package made: package_test.py FOLDER C_API_PROGRAM-SOURCE.

They are installed, used, removed and purged in a throw-away root: an overlay over this machine's
own, in a mount namespace, so that what they depend on is there and nothing of it is touched. Needs
root.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

FOLDER, PROGRAM = pathlib.Path(sys.argv[1]), sys.argv[2]
# What dpkg and the tools of packages write for themselves.
BOOKKEEPING = re.compile(r"^(var/lib/(dpkg|systemd|pam|misc|ucf)|var/cache|var/log|tmp|run/lock|proc|dev"
                         r"|run/(systemd|adduser)|etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|etc/ld\.so\.cache"
                         r"|etc/\.pwd\.lock)")

# In the namespace: $1 is an empty folder. Leaves what remains of each step in files there.
SCRIPT = r"""
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --rbind /proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mkdir -p "$1/root/tmp/packages"
cp "$2"/*.deb "$1/root/tmp/packages"
cp "$3" "$1/root/tmp/program.c"
# Nothing is to be started in there.
printf '#!/bin/sh\nexit 101\n' >"$1/root/usr/sbin/policy-rc.d"
chmod +x "$1/root/usr/sbin/policy-rc.d"
run() { chroot "$1/root" /bin/sh -ec "$2"; }
remains() { (cd "$1/upper" && find . ! -type d ! -type c -printf 'FILE %P\n'); }

echo STEP install
run "$1" 'dpkg -i /tmp/packages/*.deb'
run "$1" 'getent passwd kvd; getent group kvd; id -u kvd'
run "$1" 'kvd --version; kvd --check-config /etc/kvd/kvd.toml; kvctl --help >/dev/null'
run "$1" 'kvd-bench --help >/dev/null'
run "$1" 'bash -ec ". /usr/share/bash-completion/completions/kvctl; complete -p kvctl"'
run "$1" 'cd /usr/share; grep -q kvctl zsh/vendor-completions/_kvctl fish/vendor_completions.d/kvctl.fish'
run "$1" 'systemd-analyze verify --man=no kvd.service kvd.socket'
run "$1" 'man -w 8 kvd; man -w 1 kvctl; man -w 1 kvd-bench'
echo STEP use
run "$1" 'cc -std=c99 /tmp/program.c -o /tmp/program $(pkg-config --cflags --libs kvd)'
run "$1" 'mkdir -p /run/kvd; chown kvd:kvd /run/kvd
  setpriv --reuid=kvd --regid=kvd --clear-groups \
    $(sed -n "s/^ExecStart=//p" /lib/systemd/system/kvd.service) --dram 64MiB >/tmp/ready &
  until grep -q "^kvd ready" /tmp/ready; do kill -0 $!; done
  stat -c "MODE %a %U:%G %n" /run/kvd/kvd.sock*
  setpriv --reuid=nobody --regid=nogroup --groups kvd /tmp/program unix:/run/kvd/kvd.sock
  if setpriv --reuid=nobody --regid=nogroup --clear-groups /tmp/program unix:/run/kvd/kvd.sock
  then exit 1; fi
  kill $!; wait $!'
echo STEP again
run "$1" 'dpkg -i /tmp/packages/*.deb'
echo STEP remove
run "$1" 'dpkg --remove kvd kvd-bench libkvd-dev libkvd0'
remains "$1"
echo STEP purge
run "$1" 'dpkg --purge kvd kvd-bench libkvd-dev libkvd0'
run "$1" '! getent passwd kvd; ! getent group kvd'
remains "$1"
echo STEP end
"""


def fields(package):
    text = subprocess.run(["dpkg-deb", "--field", str(package)], stdout=subprocess.PIPE, text=True,
                          check=True).stdout
    return dict(re.findall(r"^([\w-]+): (.*)$", text, flags=re.M))


class PackageTest(unittest.TestCase):
    def setUp(self):
        self.packages = {p.name.split("_")[0]: p for p in FOLDER.glob("*.deb")}
        self.assertEqual(set(self.packages), {"kvd", "kvd-bench", "libkvd0", "libkvd-dev"},
                         "run ./dev package first")

    def test_lintian_finds_nothing(self):
        ran = subprocess.run(["lintian", "--fail-on", "error,warning", "--allow-root",
                              *map(str, self.packages.values())], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
        self.assertEqual(ran.returncode, 0, ran.stdout)

    def test_dependencies_are_those_of_the_programs(self):
        self.assertRegex(fields(self.packages["libkvd0"])["Depends"], r"libgrpc\+\+1\.51")
        self.assertIn("libprotobuf-lite32", fields(self.packages["libkvd0"])["Depends"])
        self.assertIn("libsystemd0", fields(self.packages["kvd"])["Depends"])
        self.assertRegex(fields(self.packages["libkvd-dev"])["Depends"], r"libkvd0 \(= ")

    def test_they_install_work_and_leave_nothing(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")
        with tempfile.TemporaryDirectory(prefix="kvd-package-") as folder:
            ran = subprocess.run(["unshare", "--mount", "bash", "-c", SCRIPT, "package_test", folder,
                                  str(FOLDER), PROGRAM], stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True)
        if "mount:" in ran.stdout and "STEP install" not in ran.stdout:
            self.skipTest(f"no overlay here: {ran.stdout}")
        self.assertEqual(ran.returncode, 0, ran.stdout)
        steps = dict(re.findall(r"^STEP (\w+)\n(.*?)(?=^STEP )", ran.stdout, flags=re.M | re.S))

        self.assertIn("kvd:x:", steps["install"])
        self.assertRegex(steps["use"], "good ")
        self.assertEqual(re.findall(r"^MODE (.*)$", steps["use"], flags=re.M), [
            "660 kvd:kvd /run/kvd/kvd.sock", "600 kvd:kvd /run/kvd/kvd.sock.admin",
            "600 kvd:kvd /run/kvd/kvd.sock.lock", "660 kvd:kvd /run/kvd/kvd.sock.session",
            "660 kvd:kvd /run/kvd/kvd.sock.stream"])
        # Until it is purged: the configuration, that the units are enabled, and what it left in /run.
        kept = r"^(etc/kvd/|etc/systemd/system/[\w-]+\.target\.wants/kvd\.|run/kvd/)"
        self.assertEqual(self.remains(steps["remove"], kept), [])
        self.assertEqual(self.remains(steps["purge"]), [])

    @staticmethod
    def remains(step, allowed=r"^$"):
        """Files that are new or other than before, without those of dpkg and of this test."""
        ours = {"usr/sbin/policy-rc.d"}
        files = re.findall(r"^FILE (.*)$", step, flags=re.M)
        return [f for f in files if f not in ours and not BOOKKEEPING.match(f)
                and not re.match(allowed, f)]


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
