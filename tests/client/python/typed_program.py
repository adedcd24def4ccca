"""A program of a user, for mypy: every call with the types that its manual says."""

from typing import Dict, List, Optional, Tuple

import kvd


def model_of(client: kvd.Client) -> kvd.Namespace:
    groups = [kvd.Group(block_tokens=16, part_bytes=2 << 20),
              kvd.Group(16, 4096, kvd.GroupKind.WINDOW, window_tokens=128, shards=2)]
    return client.register(kvd.Descriptor("example/8b", groups, extra={"lora": "none"}), timeout=1.0)


def stored(client: kvd.Client, model: kvd.Namespace, keys: List[bytes]) -> int:
    pages = [memoryview(bytes(size)) for size in model.part_bytes]
    announced = [kvd.announcement([1], None, list(range(16)), 16, lora_name="a")]
    put: kvd.PutResult = client.put(model, keys, pages, parent=None, announce=announced, wait=0.1)
    states: List[kvd.PutState] = put.states
    return put.stored + put.present + len(states)


def found(client: kvd.Client, model: kvd.Namespace, keys: bytes) -> Dict[kvd.Tier, int]:
    pending: kvd.Pending = client.start_lookup(model, keys, lease=30)
    answer: Optional[kvd.LookupResult] = pending.poll()
    hit = answer or client.lookup(model, keys)
    seconds: float = hit.load_seconds
    client.release_lease(hit.lease)
    return hit.tiers if seconds < 1 else {}


def got(client: kvd.Client, model: kvd.Namespace, keys: List[bytes]) -> Tuple[int, bool]:
    parts: List[Tuple[int, int]] = model.parts
    target = bytearray(sum(model.part_bytes) * len(keys))
    result: kvd.GetResult = client.get(model, keys, target, parts=parts, max_blocks=1)
    chain: kvd.Chain = client.load(model, keys, range_bytes=64)
    views: List[Optional[memoryview]] = chain.views()
    return result.blocks + len(views), all(chain.verify())


def kept(client: kvd.Client, model: kvd.Namespace, key: bytes) -> int:
    try:
        pin: kvd.PinResult = client.pin(model, key, owner="example", ttl=60)
    except kvd.NotFound:
        return 0
    client.unpin(pin.pin)
    counted: kvd.Stats = client.stats()
    return pin.bytes + counted.calls


def main() -> None:
    tls = kvd.Tls("client.pem", "client.key", "ca.pem")
    client = kvd.Client("tcp:localhost:7070", timeout=1, tls=tls, spin=60e-6)
    client.connect(timeout=1)
    model = model_of(client)
    key = b"k" * model.hash_bytes
    numbers: Tuple[int, Dict[kvd.Tier, int]] = stored(client, model, [key]), found(client, model, key)
    text: str = kvd.version() + client.copy_loops
    print(numbers, text, got(client, model, [key]), kept(client, model, key))
