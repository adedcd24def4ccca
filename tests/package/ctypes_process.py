"""What the tests of libkvd.so in a Python process share."""

import hashlib
import pathlib
import re
import shutil
import subprocess
import tempfile

CLIENT = pathlib.Path(__file__).parent / "ctypes_client.py"
# What wheels leave to the machine, as auditwheel does.
OF_THE_MACHINE = re.compile(r"^(ld-linux|linux-vdso|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so)")


class CtypesProcess:
    """For a TestCase: a daemon, and a `python` that uses a library against it."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvd-python-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.endpoint = f"unix:{self.folder}/kvd.sock"
        daemon = subprocess.Popen([self.daemon, "--listen", self.endpoint, "--dram", "64MiB"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(daemon.stdout.close)
        self.addCleanup(daemon.wait)
        self.addCleanup(daemon.kill)
        self.assertRegex(daemon.stdout.readline(), "^kvd ready")

    def put_and_get(self, library, before="", after=""):
        """The libraries of the process that did so."""
        ran = subprocess.run([self.python, CLIENT, library, self.endpoint, before, after], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        lines = ran.stdout.splitlines()
        self.assertEqual((ran.returncode, lines[-1:]), (0, ["good"]), ran.stdout)
        return lines[:-1]


def patchelf(*arguments):
    subprocess.run(["patchelf", *map(str, arguments)], check=True)


def bundle(library, folder):
    """`library` as a wheel brings it: beside it all that it needs, under names that nothing else has."""
    needs = subprocess.run(["ldd", library], check=True, stdout=subprocess.PIPE, text=True).stdout
    libraries = {}  # By the names they have on this machine.
    package, beside = folder / "kvd", folder / "kvd.libs"
    package.mkdir()
    beside.mkdir()
    for name, path in re.findall(r"^\s*(\S+) => (/\S+)", needs, flags=re.M):
        if not OF_THE_MACHINE.match(name):
            base, version = name.split(".so", 1)
            digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:8]
            libraries[name] = beside / f"{base}-{digest}.so{version}"
            shutil.copyfile(path, libraries[name])
    ours = package / "libkvd.so"
    shutil.copyfile(library, ours)
    for path, origin in [(ours, "$ORIGIN/../kvd.libs"), *((p, "$ORIGIN") for p in libraries.values())]:
        for name in subprocess.run(["patchelf", "--print-needed", path], check=True, text=True,
                                   stdout=subprocess.PIPE).stdout.split():
            if name in libraries:
                patchelf("--replace-needed", name, libraries[name].name, path)
        if path != ours:
            patchelf("--set-soname", path.name, path)
        patchelf("--set-rpath", origin, "--force-rpath", path)
    return ours
