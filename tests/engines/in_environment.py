#!/usr/bin/env python3
"""Runs a test with the Python of vLLM's environment: in_environment.py FOLDER SCRIPT [arguments]."""

import os
import pathlib
import sys

from environment import python_of

folder = pathlib.Path(sys.argv[1]).resolve()
python = python_of(folder / "vllm", "torch==2.13.0", "requirements-vllm.txt")
os.execv(python, [python, "-B", *sys.argv[2:]])
