# For type checkers, which a name that is imported late is no type to.
from .storage import KvdStorage as KvdStorage

__all__ = ["KvdStorage"]
