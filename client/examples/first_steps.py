#!/usr/bin/env python3
"""The first steps in Python, with stubs from the .proto files alone: no library of kvd's, and no shared
memory, so it works over TLS from another host as well.

  python3 -m grpc_tools.protoc -I. --python_out=OUT --grpc_python_out=OUT proto/kvd.proto proto/stream.proto
  PYTHONPATH=OUT python3 client/examples/first_steps.py unix:/run/kvd/kvd.sock.stream
"""

import sys

import grpc
from proto import kvd_pb2 as kvd, kvd_pb2_grpc, stream_pb2 as stream, stream_pb2_grpc

PART_BYTES = 4096


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


channel = grpc.insecure_channel(sys.argv[1])  # Of --tcp: grpc.secure_channel(), with a certificate.
engine, transfer = kvd_pb2_grpc.EngineStub(channel), stream_pb2_grpc.TransferStub(channel)
life = engine.OpenSession(kvd.OpenSessionRequest(version_max=1))  # Stays open as long as we live.
session = next(life).session
model = kvd.NamespaceDescriptor(  # Whatever, if it differed, would make the bytes wrong.
    model="example/8b", hash_algorithm="example", hash_bytes=32, tensor_parallel=1,
    pipeline_parallel=1, context_parallel=1,
    groups=[kvd.Group(kind=kvd.GROUP_KIND_FULL, shards=1, block_tokens=16, part_bytes=PART_BYTES)])
namespace = engine.RegisterNamespace(
    kvd.RegisterNamespaceRequest(session=session, describes=model), timeout=5).namespace_id
of = dict(session=session, namespace_id=namespace, keys=b"a" * 32 + b"b" * 32)  # Root first.

source = [bytes([42]) * PART_BYTES] * 2
chunks = [stream.PutChunk(start=stream.PutStart(**of))] + [
    stream.PutChunk(bytes=stream.PartBytes(index=i, length=PART_BYTES, data=part, sum=crc32c(part)))
    for i, part in enumerate(source)]  # A part above 512 KiB takes several; the last has the sum.
put = transfer.Put(iter(chunks), timeout=5)
hit = engine.Lookup(kvd.LookupRequest(lease_ms=30000, **of), timeout=5).hit_blocks

target, ended = [], False
for chunk in transfer.Get(stream.GetRequest(**of), timeout=5):
    if chunk.HasField("bytes") and crc32c(chunk.bytes.data) == chunk.bytes.sum:  # Else a miss.
        target.append(chunk.bytes.data)
    ended = chunk.HasField("end")
print(f"stored {put.stored}, present {len(put.results) - put.stored}, hit {hit}, got {len(target)}",
      "equal" if ended and target == source else "other")
life.cancel()  # The session ends, and its leases with it.
sys.exit(0 if ended and target == source else 1)
