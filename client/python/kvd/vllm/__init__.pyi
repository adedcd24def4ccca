# For type checkers, which a name that is imported late is no type to.
from .connector import KvdConnector as KvdConnector

__all__ = ["KvdConnector"]
