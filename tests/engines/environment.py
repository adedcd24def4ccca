#!/usr/bin/env python3
"""The environments of engines: virtual environments below build/, from the pinned lists of this folder. As a program,
environment.py FOLDER ENGINE, it makes one where it is missing."""

import functools
import hashlib
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple, Optional

HERE = pathlib.Path(__file__).resolve().parent


class _Environment(NamedTuple):
    torch: Optional[str]  # None: that of the one below.
    below: Optional[str] = None  # Another one, whose packages it has where its own list has none.


_ENVIRONMENTS = {"vllm": _Environment("torch==2.13.0"), "vllm-0.22": _Environment("torch==2.11.0", "vllm"),
                 "vllm-lmcache": _Environment(None, "vllm"), "sglang": _Environment("torch==2.13.0")}


def python_of(folder, engine):
    """The interpreter of the environment for `engine` ("vllm", "sglang", ...) below `folder`, made anew where its list
    has changed. PyTorch is the build for CPUs where pip is configured to find it, and else the one for
    CUDA, which serves as well."""
    torch, below = _ENVIRONMENTS[engine]
    beneath = python_of(folder, below) if below else None
    environment = pathlib.Path(folder, engine)
    python = environment / "bin/python"
    stamp = environment / "installed"
    wanted = _digest_of(engine)
    if not stamp.exists() or stamp.read_text() != wanted:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        if beneath:
            (_packages_of(python) / "below.pth").write_text(f"{_packages_of(beneath)}\n")
        if torch:
            subprocess.run([*pip, torch], check=True)
        subprocess.run([*pip, "--no-deps", "-r", HERE / f"requirements-{engine}.txt"], check=True)
        stamp.write_text(wanted)
    return python


def _digest_of(engine):
    torch, below = _ENVIRONMENTS[engine]
    said = (HERE / f"requirements-{engine}.txt").read_bytes() + (torch or "").encode()
    return hashlib.sha256(said + (_digest_of(below) if below else sys.version).encode()).hexdigest()


def _packages_of(python):
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return pathlib.Path(python.parent.parent, "lib", version, "site-packages").resolve()


def variables_of(folder, python):
    """What an engine must find in its environment: programs of its own, and where it may keep what it compiles."""
    return {"PATH": f"{python.parent}:{os.environ['PATH']}",
            "TORCH_EXTENSIONS_DIR": str(pathlib.Path(folder, "torch-extensions"))}


class Place:
    """Where environments, models and logs lie, and kvd's own sources. `engine` names the environment; `variables`
    are more of what its processes start with."""

    def __init__(self, folder, root, engine, **variables):
        self.folder, self.root, self._engine, self._variables = folder, root, engine, variables

    @functools.cached_property
    def python(self):
        """Of the environment, which is made when it is missing, and so are the models."""
        python = python_of(self.folder, self._engine)
        program, stamp = HERE / "models.py", self.folder / "models" / "made"
        if not stamp.exists() or stamp.read_bytes() != program.read_bytes():
            subprocess.run([python, "-B", program, self.folder / "models"], check=True)
            stamp.write_bytes(program.read_bytes())
        return python

    @functools.cached_property
    def variables(self):
        return {**variables_of(self.folder, self.python), "HF_HUB_OFFLINE": "1", **self._variables}

    def model(self, name):
        return str(self.folder / "models" / name)


if __name__ == "__main__":
    python_of(sys.argv[1], sys.argv[2])
