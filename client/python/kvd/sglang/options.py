"""What --hicache-storage-backend-extra-config may say to us; README.md has the table."""

import dataclasses
from typing import Any, Mapping, Optional

# SGLang's own, which it leaves in the configuration of a backend.
_OF_SGLANG = {"backend_name", "module_path", "class_name", "interface_v1", "allocator"}


class Refused(ValueError):
    """This engine cannot be served as it is configured; the text says what to change."""


@dataclasses.dataclass(frozen=True)
class Options:
    endpoint: Optional[str] = None
    weights_revision: Optional[str] = None
    lookup_timeout_ms: int = 100
    load_timeout_ms: int = 1000  # Of at most 128 pages.
    save_timeout_ms: int = 3000  # Of at most 128 pages.
    lease_ms: int = 10000
    sliding_window_tokens: Optional[int] = None

    @staticmethod
    def of(extra_config: Optional[Mapping[str, Any]]) -> "Options":
        given = dict(extra_config or {})
        if not given.get("interface_v1"):
            raise Refused('kvd: only calls with pointers are served; add "interface_v1": 1 to '
                          "--hicache-storage-backend-extra-config")
        known = {field.name for field in dataclasses.fields(Options)}
        unknown = sorted(set(given) - known - _OF_SGLANG)
        if unknown:
            raise Refused(f"kvd: --hicache-storage-backend-extra-config has no {', '.join(unknown)}; there are: "
                          f"{', '.join(sorted(known))}")
        return Options(**{name: value for name, value in given.items() if name in known})
