#!/usr/bin/env python3
"""libkvd.so in a Python that has the wheels of gRPC and protobuf, whose own copies of those
libraries are of other versions: python_process_test.py VENV LIBRARY KVD.

Makes the environment in VENV, with pinned wheels, where it is missing.
"""

import pathlib
import subprocess
import sys
import tempfile
import unittest
import venv

VENV, LIBRARY, KVD = sys.argv[1:4]
WHEELS = ["grpcio==1.66.2", "protobuf==5.28.2"]

# What runs inside. The structures are those of kvd.h.
PROGRAM = r"""
import ctypes, sys, threading
import grpc
from google.protobuf import descriptor_pb2, struct_pb2

library, endpoint = sys.argv[1:3]
kvd = ctypes.CDLL(library)
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
    parts = lambda memory: (Buffer * 2)(*(Buffer(ctypes.addressof(memory) + i * 65536, 65536)
                                          for i in range(2)))
    put, got = made(PutResult), made(GetResult)
    check(kvd.kvd_put(client, ns, keys, size(2), parts(source), size(2), None, ctypes.byref(put)))
    assert put.stored == 2, put.stored
    check(kvd.kvd_get(client, ns, keys, size(2), parts(target), size(2), None, ctypes.byref(got)))
    assert got.blocks == 2 and target.raw == source.raw
    done.append(n)

done = []
threads = [threading.Thread(target=use, args=(n,)) for n in range(1, 9)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == 8, done

# Theirs go on: messages, and a call over gRPC's own core in the same process.
message = struct_pb2.Struct()
message.update({"a": "b"})
assert struct_pb2.Struct.FromString(message.SerializeToString())["a"] == "b"
with grpc.insecure_channel(endpoint) as channel:
    try:
        channel.unary_unary("/kvd.v1.Engine/NoSuchMethod")(b"", timeout=10)
        raise SystemExit("a method that does not exist answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
kvd.kvd_namespace_destroy(ns)
kvd.kvd_client_destroy(client)
print("good")
"""


class PythonProcessTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.python = pathlib.Path(VENV, "bin/python")
        installed = pathlib.Path(VENV, "installed")
        if not installed.exists() or installed.read_text() != " ".join(WHEELS):
            venv.create(VENV, with_pip=True, clear=True)
            subprocess.run([cls.python, "-m", "pip", "install", "--quiet", *WHEELS], check=True)
            installed.write_text(" ".join(WHEELS))

    def test_puts_and_gets_beside_other_versions_of_the_same_libraries(self):
        with tempfile.TemporaryDirectory(prefix="kvd-python-") as folder:
            endpoint = f"unix:{folder}/kvd.sock"
            daemon = subprocess.Popen([KVD, "--listen", endpoint, "--dram", "64MiB"],
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.addCleanup(daemon.stdout.close)
            self.addCleanup(daemon.wait)
            self.addCleanup(daemon.kill)
            self.assertRegex(daemon.stdout.readline(), "^kvd ready")

            ran = subprocess.run([self.python, "-c", PROGRAM, LIBRARY, endpoint], text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)

        self.assertEqual((ran.returncode, ran.stdout.splitlines()[-1:]), (0, ["good"]), ran.stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
