#!/usr/bin/env python3
"""A client made from the .proto files alone: no code of ours on its side of the wire.

It starts a daemon, generates stubs, and does what an engine in another language would: open a
session, register a namespace, put by the stream, look up, get and verify, at PATH.stream and over
TLS; and it asks the daemon what it is by gRPC's own health and reflection services.

Usage: stream_test.py KVD SOURCE_ROOT [unittest arguments]
"""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import grpc
from grpc_tools import protoc

KVD = pathlib.Path(sys.argv[1]).resolve()
ROOT = pathlib.Path(sys.argv[2]).resolve()
PATIENCE = 60  # Seconds: the end of every call and wait.

work = tempfile.TemporaryDirectory(prefix="kvd-python-")
stubs = pathlib.Path(work.name) / "stubs"
stubs.mkdir()
sys.path.insert(0, str(stubs))

# gRPC's own service is known by its wire alone.
(stubs / "health.proto").write_text('''
syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
  ServingStatus status = 1;
}
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
''')
for folder, files in ((ROOT, ("proto/kvd.proto", "proto/stream.proto", "proto/reflection.proto")),
                      (stubs, ("health.proto",))):
    for file in files:
        if protoc.main(["protoc", f"-I{folder}", f"--python_out={stubs}",
                        f"--grpc_python_out={stubs}", file]) != 0:
            sys.exit(f"cannot generate stubs from {file}")

from google.protobuf import descriptor_pb2  # noqa: E402
from proto import (kvd_pb2, kvd_pb2_grpc, reflection_pb2, reflection_pb2_grpc,  # noqa: E402
                   stream_pb2, stream_pb2_grpc)
import health_pb2, health_pb2_grpc  # noqa: E402

CRC_TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82f63b78 if byte & 1 else 0)
    CRC_TABLE.append(byte)


@functools.lru_cache(maxsize=64)
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ crc >> 8
    return crc ^ 0xffffffff


def openssl(*arguments, expect=0):
    done = subprocess.run(["openssl", *arguments], cwd=work.name, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE)
    assert done.returncode == expect or expect is None, done.stdout.decode()
    return done.stdout.decode(errors="replace")


def make_certificate(name, subject, names, authority="ca"):
    """NAME.pem and NAME.key, signed by the authority."""
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
            f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
    (pathlib.Path(work.name) / f"{name}.ext").write_text(f"subjectAltName={names}\n" if names
                                                         else "keyUsage=digitalSignature\n")
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey",
            f"{authority}.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out",
            f"{name}.pem")


def make_authority(name):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}")


def read(name):
    return (pathlib.Path(work.name) / name).read_bytes()


def credentials(name, authority="ca"):
    return grpc.ssl_channel_credentials(read(f"{authority}.pem"), read(f"{name}.key"),
                                        read(f"{name}.pem"))


class Daemon:
    def __init__(self, *arguments):
        self.path = os.path.join(tempfile.mkdtemp(prefix="d", dir=work.name), "kvd.sock")
        self.process = subprocess.Popen(
            [KVD, "--listen", f"unix:{self.path}", "--dram", "256MiB", "--log-level", "warn",
             *arguments], stdout=subprocess.PIPE, text=True)
        ready = self.process.stdout.readline()
        assert ready.startswith("kvd ready"), ready
        tcp = re.search(r" tcp=(\S+)", ready)
        self.tcp = tcp and tcp[1]

    def stop(self):
        self.process.terminate()
        status = self.process.wait(timeout=PATIENCE)
        self.process.stdout.close()
        assert status == 0, f"the daemon ended with {status}"


class Session:
    """A session over `channel`, and what can be done with it."""

    def __init__(self, channel):
        self.engine = kvd_pb2_grpc.EngineStub(channel)
        self.transfer = stream_pb2_grpc.TransferStub(channel)
        self.life = self.engine.OpenSession(kvd_pb2.OpenSessionRequest(version_max=1))
        self.token = next(self.life).session
        self.ns = None

    def end(self):
        self.life.cancel()

    def register(self, part_bytes, model="llama-3-8b"):
        descriptor = kvd_pb2.NamespaceDescriptor(
            model=model, kv_dtype="bf16", hash_bytes=16, tensor_parallel=1, pipeline_parallel=1,
            context_parallel=1,
            groups=[kvd_pb2.Group(kind=kvd_pb2.GROUP_KIND_FULL, shards=1, block_tokens=16,
                                  part_bytes=part_bytes)])
        self.ns = self.engine.RegisterNamespace(
            kvd_pb2.RegisterNamespaceRequest(session=self.token, describes=descriptor),
            timeout=PATIENCE).namespace_id

    def lookup(self, keys):
        return self.engine.Lookup(
            kvd_pb2.LookupRequest(session=self.token, namespace_id=self.ns, keys=b"".join(keys)),
            timeout=PATIENCE).hit_blocks

    def chunks(self, keys, blocks, spoil=None):
        yield stream_pb2.PutChunk(start=stream_pb2.PutStart(
            session=self.token, namespace_id=self.ns, keys=b"".join(keys)))
        step = 512 * 1024
        for index, block in enumerate(blocks):
            for offset in range(0, len(block), step):
                piece = stream_pb2.PartBytes(index=index, length=len(block), offset=offset,
                                             data=block[offset:offset + step])
                if offset + step >= len(block):
                    piece.sum = crc32c(block) ^ (index == spoil)
                yield stream_pb2.PutChunk(bytes=piece)

    def put(self, keys, blocks, spoil=None):
        return self.transfer.Put(self.chunks(keys, blocks, spoil), timeout=PATIENCE)

    def get(self, keys):
        """The verified blocks of the prefix, and how the stream ended."""
        blocks, coming, end = [], b"", None
        for chunk in self.transfer.Get(
                stream_pb2.GetRequest(session=self.token, namespace_id=self.ns,
                                      keys=b"".join(keys)), timeout=PATIENCE):
            assert end is None, "something came after the end"
            if chunk.HasField("end"):
                end = chunk.end
            if not chunk.HasField("bytes"):
                continue
            assert (chunk.bytes.index, chunk.bytes.offset) == (len(blocks), len(coming))
            coming += chunk.bytes.data
            if len(coming) == chunk.bytes.length:
                assert chunk.bytes.sum == crc32c(coming), "damaged on the way"
                blocks.append(coming)
                coming = b""
        return blocks, end


def keys_of(count, first=0):
    return [(first + i + 1).to_bytes(16, "big") for i in range(count)]


def block_of(size, seed):
    return bytes((seed * 7 + i * i) & 0xff for i in range(4096)) * (size // 4096) + \
        bytes([seed]) * (size % 4096)


class Wire(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        make_authority("ca")
        make_authority("stranger-ca")
        make_certificate("server", "/CN=kvd", "DNS:kvd.test")
        make_certificate("alice", "/CN=x", "URI:spiffe://test/alice")
        make_certificate("bob", "/CN=y", "DNS:bob.test")
        make_certificate("carol", "/CN=carol", "")
        make_certificate("stranger", "/CN=x", "URI:spiffe://test/alice", authority="stranger-ca")
        cls.daemon = Daemon("--tcp", "127.0.0.1:0", "--tls-certificate",
                            os.path.join(work.name, "server.pem"), "--tls-key",
                            os.path.join(work.name, "server.key"), "--tls-client-ca",
                            os.path.join(work.name, "ca.pem"))

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def local(self):
        channel = grpc.insecure_channel(f"unix:{self.daemon.path}.stream")
        self.addCleanup(channel.close)
        return channel

    def remote(self, name, authority="ca"):
        channel = grpc.secure_channel(
            self.daemon.tcp, credentials(name),
            options=[("grpc.ssl_target_name_override", "kvd.test")])
        self.addCleanup(channel.close)
        return channel

    def round_trip(self, channel, first):
        session = Session(channel)
        self.addCleanup(session.end)
        for part_bytes in (1000, 512 * 1024, 700 * 1024):
            session.register(part_bytes)
            keys = keys_of(5, first)
            blocks = [block_of(part_bytes, seed) for seed in range(3)]
            self.assertEqual(session.lookup(keys), 0)
            put = session.put(keys[:3], blocks)
            self.assertEqual((put.stored, put.results), (3, b"\1\1\1"))
            self.assertEqual(session.lookup(keys), 3)
            got, end = session.get(keys)
            self.assertEqual(got, blocks)
            self.assertEqual((end.blocks, end.damaged), (3, 0))

            again = session.put(keys[:4], blocks + [block_of(part_bytes, 3)])
            self.assertEqual((again.stored, again.results), (1, b"\2\2\2\1"))
        return session

    def refused(self, code, call, *words):
        with self.assertRaises(grpc.RpcError) as raised:
            call()
        self.assertEqual(raised.exception.code(), code, raised.exception.details())
        for word in words:
            self.assertIn(word, raised.exception.details())

    def test_round_trip_at_the_unix_socket(self):
        self.round_trip(self.local(), first=1000)

    def test_the_first_steps_say_what_they_did(self):
        for expected in ("stored 2, present 0, hit 2, got 2 equal",
                         "stored 0, present 2, hit 2, got 2 equal"):
            done = subprocess.run(
                [sys.executable, "-B", str(ROOT / "client/examples/first_steps.py"),
                 f"unix:{self.daemon.path}.stream"], env={**os.environ, "PYTHONPATH": str(stubs)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
            self.assertEqual((done.stdout.strip(), done.returncode), (expected, 0), done.stderr)

    def test_round_trip_over_tls_with_each_kind_of_identity(self):
        for i, name in enumerate(("alice", "bob", "carol")):
            with self.subTest(name):
                self.round_trip(self.remote(name), first=2000 + 1000 * i)

    def test_a_domain_sees_nothing_of_another(self):
        alice, bob = Session(self.remote("alice")), Session(self.remote("bob"))
        for session in (alice, bob):
            self.addCleanup(session.end)
            session.register(1000, model="shared")
        keys = keys_of(2, 9000)
        alice.put(keys, [block_of(1000, 1), block_of(1000, 2)])
        self.assertEqual((alice.lookup(keys), bob.lookup(keys)), (2, 0))
        # Not even with the other's token and namespace.
        bob.token, bob.ns = alice.token, alice.ns
        self.refused(grpc.StatusCode.UNAUTHENTICATED, lambda: bob.lookup(keys), "session:")
        self.refused(grpc.StatusCode.UNAUTHENTICATED, lambda: bob.get(keys), "session:")

    def test_a_session_ends_with_its_call(self):
        session = Session(self.local())
        session.register(1000)
        session.end()
        for _ in range(1000):
            try:
                session.lookup(keys_of(1))
            except grpc.RpcError as error:
                self.assertEqual(error.code(), grpc.StatusCode.UNAUTHENTICATED)
                return
        self.fail("it did not end")

    def test_bytes_without_their_sum_are_not_stored(self):
        session = Session(self.local())
        self.addCleanup(session.end)
        session.register(700 * 1024)
        keys = keys_of(3, 7000)
        blocks = [block_of(700 * 1024, seed) for seed in range(3)]
        self.refused(grpc.StatusCode.DATA_LOSS, lambda: session.put(keys, blocks, spoil=2), "sum")
        self.assertEqual(session.lookup(keys), 0)
        self.assertEqual(session.put(keys, blocks).stored, 3)

    def test_what_needs_shared_memory_names_the_stream(self):
        session = Session(self.local())
        self.addCleanup(session.end)
        session.register(1000)
        key = keys_of(1)[0]
        of = dict(session=session.token, namespace_id=session.ns, keys=key)
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: session.engine.Lookup(
            kvd_pb2.LookupRequest(extent_blocks=1, **of), timeout=PATIENCE), "Transfer/Get")
        self.refused(grpc.StatusCode.FAILED_PRECONDITION, lambda: session.engine.Load(
            kvd_pb2.LoadRequest(**of), timeout=PATIENCE), "Transfer/Get")
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: session.engine.Commit(
            kvd_pb2.CommitRequest(staged=b"0" * 16, **of), timeout=PATIENCE), "Transfer/Put")

    def test_a_stream_needs_a_deadline(self):
        session = Session(self.local())
        self.addCleanup(session.end)
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: list(session.transfer.Get(
            stream_pb2.GetRequest(session=session.token))), "deadline")

    def test_strangers_and_old_tls_are_refused(self):
        stranger = grpc.secure_channel(
            self.daemon.tcp,
            grpc.ssl_channel_credentials(read("ca.pem"), read("stranger.key"),
                                         read("stranger.pem")),
            options=[("grpc.ssl_target_name_override", "kvd.test")])
        self.addCleanup(stranger.close)
        self.refused(grpc.StatusCode.UNAVAILABLE, lambda: Session(stranger))
        nobody = grpc.secure_channel(
            self.daemon.tcp, grpc.ssl_channel_credentials(read("ca.pem")),
            options=[("grpc.ssl_target_name_override", "kvd.test")])
        self.addCleanup(nobody.close)
        self.refused(grpc.StatusCode.UNAVAILABLE, lambda: Session(nobody))

        hello = ("s_client", "-connect", self.daemon.tcp, "-cert", "alice.pem", "-key",
                 "alice.key", "-CAfile", "ca.pem", "-alpn", "h2")
        self.assertIn("New, TLSv1.3, Cipher is TLS_", openssl(*hello, "-tls1_3", expect=None))
        self.assertIn("Cipher is (NONE)", openssl(*hello, "-tls1_2", expect=None))

    def test_health_and_reflection(self):
        for channel in (self.local(), self.remote("alice"),
                        grpc.insecure_channel(f"unix:{self.daemon.path}.admin")):
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "kvd.v1.Engine"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service),
                                      timeout=PATIENCE)
                self.assertEqual(answer.status, 1)  # SERVING
            self.refused(grpc.StatusCode.NOT_FOUND, lambda h=health: h.Check(
                health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=PATIENCE))

            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = [reflection_pb2.ServerReflectionRequest(list_services="*"),
                     reflection_pb2.ServerReflectionRequest(
                         file_containing_symbol="kvd.v1.LookupRequest"),
                     reflection_pb2.ServerReflectionRequest(file_by_filename="no/such.proto")]
            services, file, missing = reflection.ServerReflectionInfo(iter(asked),
                                                                      timeout=PATIENCE)
            names = {service.name for service in services.list_services_response.service}
            self.assertIn("grpc.health.v1.Health", names)
            self.assertTrue(names & {"kvd.v1.Transfer", "kvd.v1.Admin"}, names)
            described = [descriptor_pb2.FileDescriptorProto.FromString(one)
                         for one in file.file_descriptor_response.file_descriptor_proto]
            self.assertIn("proto/kvd.proto", [one.name for one in described])
            self.assertEqual(missing.error_response.error_code, 5)  # NOT_FOUND


class RefusesToStart(unittest.TestCase):
    """TCP without everything that TLS needs: a message that names what is wrong, and no daemon."""

    @classmethod
    def setUpClass(cls):
        make_authority("ca2")
        make_certificate("good", "/CN=kvd", "DNS:kvd.test", authority="ca2")
        make_certificate("other", "/CN=kvd", "DNS:kvd.test", authority="ca2")
        openssl("x509", "-req", "-in", "good.csr", "-CA", "ca2.pem", "-CAkey", "ca2.key", "-days",
                "-1", "-out", "expired.pem")
        (pathlib.Path(work.name) / "noise.pem").write_text("nothing\n")

    def starts(self, *words, **files):
        chosen = dict(certificate="good.pem", key="good.key", client_ca="ca2.pem") | files
        arguments = ["--tcp", "127.0.0.1:0"]
        for option, file in chosen.items():
            if file is not None:
                arguments += [f"--tls-{option.replace('_', '-')}", os.path.join(work.name, file)]
        path = os.path.join(tempfile.mkdtemp(prefix="d", dir=work.name), "kvd.sock")
        done = subprocess.run([KVD, "--listen", f"unix:{path}", "--dram", "64MiB", *arguments],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE)
        self.assertNotEqual(done.returncode, 0)
        for word in words:
            self.assertIn(word, done.stdout.decode().replace("_", "-"))  # As in file or flag.

    def test_without_one_of_the_files(self):
        for option in ("certificate", "key", "client_ca"):
            self.starts(option.replace("_", "-"), **{option: None})

    def test_with_files_that_are_not_there_or_not_pem(self):
        for option in ("certificate", "key", "client_ca"):
            self.starts(option.replace("_", "-"), "absent.pem", **{option: "absent.pem"})
            self.starts(option.replace("_", "-"), "noise.pem", **{option: "noise.pem"})

    def test_with_an_expired_certificate(self):
        self.starts("expired", certificate="expired.pem")

    def test_with_the_key_of_another_certificate(self):
        self.starts("tls-key", "good.pem", key="other.key")


if __name__ == "__main__":
    try:
        unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
    finally:
        shutil.rmtree(work.name, ignore_errors=True)
