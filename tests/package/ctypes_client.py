#!/usr/bin/env python3
"""An engine in Python: it puts and gets over libkvd.so by ctypes, on eight threads, beside modules that
bring libraries of their own, uses those as well, names the libraries in the process, and says "good".

ctypes_client.py LIBRARY ENDPOINT MODULES-IMPORTED-BEFORE MODULES-IMPORTED-AFTER
"""

import ctypes
import importlib
import sys
import threading

# The structures are those of kvd.h.
library, endpoint, before, after = sys.argv[1:5]
for name in before.split():
    importlib.import_module(name)
kvd = ctypes.CDLL(library)
for name in after.split():
    importlib.import_module(name)
kvd.kvd_error_message.restype = ctypes.c_char_p
size, u64, u32, text, pointer = (ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint32,
                                 ctypes.c_char_p, ctypes.c_void_p)


def structure(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


def made(kind, **values):
    return kind(struct_size=ctypes.sizeof(kind), **values)


ClientOptions = structure("ClientOptions", ("struct_size", size), ("endpoint", text),
    ("timeout_us", u64), ("reconnect_interval_us", u64), ("staging_bytes", u64), ("copy_loop", text))
Group = structure("Group", *((n, u32) for n in ("kind", "window_tokens", "shards", "block_tokens",
                                                "part_bytes")))
Descriptor = structure("Descriptor", ("struct_size", size),
    *((n, text) for n in ("model", "weights_revision", "kv_dtype", "quantization", "page_layout",
                          "engine_family", "draft_model", "hash_algorithm", "hash_seed")),
    *((n, u32) for n in ("hash_bytes", "tensor_parallel", "pipeline_parallel", "context_parallel")),
    ("groups", ctypes.POINTER(Group)), ("group_count", size), ("extra", pointer),
    ("extra_count", size))
Buffer = structure("Buffer", ("data", pointer), ("size", size))
PutResult = structure("PutResult", ("struct_size", size), ("stored", u32), ("present", u32),
    ("block_states", pointer), ("state_capacity", size), ("state_count", size))
GetResult = structure("GetResult", ("struct_size", size), ("hit_blocks", u32), ("blocks", u32),
    ("damaged", u32), ("reserved", u32), ("lease_id", u64))


def check(status):
    assert status == 0, (status, kvd.kvd_error_message())


client, ns = pointer(), pointer()
options = made(ClientOptions, endpoint=endpoint.encode(), timeout_us=10_000_000)
check(kvd.kvd_client_create(ctypes.byref(options), ctypes.byref(client)))
group = Group(block_tokens=16, part_bytes=65536)
descriptor = made(Descriptor, model=b"python", groups=ctypes.pointer(group), group_count=1)
check(kvd.kvd_namespace_register(client, ctypes.byref(descriptor), u64(0), ctypes.byref(ns)))


def use(n):
    keys = bytes([n]) * 32 + bytes([n + 100]) * 32
    source = ctypes.create_string_buffer(bytes([n]) * 131072, 131072)
    target = ctypes.create_string_buffer(131072)
    put, got = made(PutResult), made(GetResult)

    def parts(memory):
        return (Buffer * 2)(*(Buffer(ctypes.addressof(memory) + i * 65536, 65536)
                              for i in range(2)))

    check(kvd.kvd_put(client, ns, keys, size(2), parts(source), size(2), None, ctypes.byref(put)))
    assert put.stored == 2, put.stored
    check(kvd.kvd_get(client, ns, keys, size(2), parts(target), size(2), None, ctypes.byref(got)))
    assert got.blocks == 2 and target.raw == source.raw
    done.append(n)


done = []
threads = [threading.Thread(target=use, args=(n,)) for n in range(1, 9)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(done) == 8, done

# Theirs go on: messages, a call over gRPC's own core in the same process, arithmetic.
modules = before.split() + after.split()
if "google.protobuf.struct_pb2" in modules:
    from google.protobuf import struct_pb2
    message = struct_pb2.Struct()
    message.update({"a": "b"})
    assert struct_pb2.Struct.FromString(message.SerializeToString())["a"] == "b"
if "grpc" in modules:
    import grpc
    with grpc.insecure_channel(endpoint) as channel:
        try:
            channel.unary_unary("/kvd.v1.Engine/NoSuchMethod")(b"", timeout=10)
            raise SystemExit("a method that does not exist answered")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
if "torch" in modules:
    import torch
    assert (torch.ones(64, 64) @ torch.ones(64, 64)).sum().item() == 64 ** 3

kvd.kvd_namespace_destroy(ns)
kvd.kvd_client_destroy(client)
with open("/proc/self/maps") as maps:
    print(*sorted({line.split(None, 5)[5].strip() for line in maps if ".so" in line}), sep="\n")
print("good")
