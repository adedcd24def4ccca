"""The connector for vLLM: `"kv_connector": "KvdConnector", "kv_connector_module_path": "kvd.vllm"`."""

from .connector import KvdConnector

__all__ = ["KvdConnector"]
