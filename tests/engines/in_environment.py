#!/usr/bin/env python3
"""Runs a script with the Python of an engine's environment: in_environment.py FOLDER ENGINE SCRIPT [arguments]."""

import os
import pathlib
import sys

from environment import python_of, variables_of

folder = pathlib.Path(sys.argv[1]).resolve()
python = python_of(folder, sys.argv[2])
os.execve(python, [python, "-B", *sys.argv[3:]], {**os.environ, **variables_of(folder, python)})
