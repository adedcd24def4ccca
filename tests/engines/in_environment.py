#!/usr/bin/env python3
"""Runs a script with the Python of an engine's environment: in_environment.py FOLDER ENGINE SCRIPT [arguments]."""

import os
import pathlib
import sys

from environment import python_of

python = python_of(pathlib.Path(sys.argv[1]).resolve(), sys.argv[2])
os.execv(python, [python, "-B", *sys.argv[3:]])
