"""The environments of engines: virtual environments below build/, from the pinned lists of this folder."""

import hashlib
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TORCH = "torch==2.13.0"


def python_of(folder, engine):
    """The interpreter of the environment for `engine` ("vllm", "sglang") below `folder`, made anew where its list
    has changed. PyTorch is the build for CPUs where pip is configured to find it, and else the one for
    CUDA, which serves as well."""
    folder = pathlib.Path(folder, engine)
    listed = HERE / f"requirements-{engine}.txt"
    python = folder / "bin/python"
    stamp = folder / "installed"
    wanted = hashlib.sha256(listed.read_bytes() + TORCH.encode() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", "--clear", folder], [*pip, TORCH],
                        [*pip, "--no-deps", "-r", listed]):
            subprocess.run(command, check=True)
        stamp.write_text(wanted)
    return python


def variables_of(folder, python):
    """What an engine must find in its environment: programs of its own, and where it may keep what it compiles."""
    return {"PATH": f"{python.parent}:{os.environ['PATH']}",
            "TORCH_EXTENSIONS_DIR": str(pathlib.Path(folder, "torch-extensions"))}
