"""The connector for vLLM: `"kv_connector": "KvdConnector", "kv_connector_module_path": "kvd.vllm"`."""

from typing import Any

__all__ = ["KvdConnector"]


def __getattr__(name: str) -> Any:
    """Late, so that the parts that need no tensors can be had without PyTorch."""
    if name == "KvdConnector":
        from .connector import KvdConnector
        return KvdConnector
    raise AttributeError(name)
