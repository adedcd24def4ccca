"""The storage backend for SGLang's HiCache: `"module_path": "kvd.sglang", "class_name": "KvdStorage"`."""

from typing import Any

__all__ = ["KvdStorage"]


def __getattr__(name: str) -> Any:
    """Late, so that the parts that need no SGLang can be had without it."""
    if name == "KvdStorage":
        from .storage import KvdStorage
        return KvdStorage
    raise AttributeError(name)
