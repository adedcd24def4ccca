"""Modules that stand in for those of an engine where it is not installed."""

import importlib.util
import sys
import types


def is_installed(engine):
    return importlib.util.find_spec(engine) is not None


def module(name, **contents):
    """Makes `name` importable, with `contents`; modules below it may follow."""
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    made.__path__ = []
    sys.modules[name] = made
