"""Client of kvd, the KV-cache storage daemon of this node.

    client = kvd.Client("unix:/run/kvd/kvd.sock")
    model = client.register(kvd.Descriptor("example/8b", groups=[kvd.Group(16, 2 << 20)]))
    client.put(model, keys, pages)
    got = client.get(model, keys, targets)

`kvd.vllm` and `kvd.sglang` are the connectors for vLLM and SGLang. Importing this package connects to nothing, and
loads no library yet.
"""

from .announce import announcement
from .buffers import At
from .client import (Chain, Client, Descriptor, GetResult, Group, GroupKind, LookupResult, Namespace,
                     Pending, PinResult, PutResult, PutState, Stats, Tier, Tls,
                     version)
from .errors import (Aborted, AlreadyExists, Cancelled, DataLoss, DeadlineExceeded,
                     FailedPrecondition, Internal, InvalidArgument, KvdError, NotFound, OutOfRange,
                     PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable,
                     Unimplemented)

__all__ = [
    "Aborted", "AlreadyExists", "At", "Cancelled", "Chain", "Client", "DataLoss", "DeadlineExceeded",
    "Descriptor", "FailedPrecondition", "GetResult", "Group", "GroupKind", "Internal",
    "InvalidArgument", "KvdError", "LookupResult", "Namespace", "NotFound", "OutOfRange", "Pending",
    "PermissionDenied", "PinResult", "PutResult", "PutState", "ResourceExhausted", "Stats", "Tier", "Tls",
    "Unauthenticated", "Unavailable", "Unimplemented", "announcement", "version",
]
