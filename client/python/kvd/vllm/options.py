"""What kv_connector_extra_config may say; README.md has the table."""

import dataclasses
from typing import Any, Optional

from .layout import Refused


@dataclasses.dataclass(frozen=True)
class Options:
    endpoint: Optional[str] = None
    weights_revision: Optional[str] = None
    lookup_timeout_ms: int = 100
    load_timeout_ms: int = 3000
    save_timeout_ms: int = 3000
    lease_ms: int = 30000
    max_saving_blocks: Optional[int] = None
    save_decode: bool = True
    events: bool = False  # Tell routers, through the daemon, which tokens it has.
    staging_bytes: int = 64 << 20  # Of each of the two threads of a worker; at least one block.

    @staticmethod
    def of(vllm_config: Any) -> "Options":
        given = dict(vllm_config.kv_transfer_config.kv_connector_extra_config)
        known = {field.name for field in dataclasses.fields(Options)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise Refused(f"kvd: kv_connector_extra_config has no {', '.join(unknown)}; there are: "
                          f"{', '.join(sorted(known))}")
        return Options(**given)
