#!/usr/bin/env python3
"""The Python client against a daemon: client_test.py KVD SOURCE_ROOT CC [unittest arguments].

What kvd.h promises is tested in C++; here is what Python adds: shapes, buffers, exceptions, lifetimes,
the GIL, and that the structures are those of the header. NumPy is used where it is installed.
"""

import array
import ctypes
import gc
import mmap
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest

KVD = pathlib.Path(sys.argv[1]).resolve()
ROOT = pathlib.Path(sys.argv[2]).resolve()
CC = sys.argv[3]
sys.path.insert(0, str(ROOT / "client/python"))

import kvd  # noqa: E402
from daemon import PATIENCE, Daemon  # noqa: E402
from kvd import library  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None

PART = 4096
MODEL = kvd.Descriptor("test/model", groups=[kvd.Group(block_tokens=16, part_bytes=PART)])
WINDOWED = kvd.Descriptor(
    "test/windowed", extra={"a": "1", "b": "2"},
    groups=[kvd.Group(16, PART),
            kvd.Group(16, PART // 2, kvd.GroupKind.WINDOW, window_tokens=32, shards=2)])


def keys(blocks, seed=0):
    return [bytes([seed]) + i.to_bytes(31, "big") for i in range(blocks)]


def page(i, size=PART):
    return bytes((i * 7 + j // 256) % 251 for j in range(size))


class WithDaemon(unittest.TestCase):
    def setUp(self):
        self.daemon = self.enterContext(Daemon(KVD))
        self.client = kvd.Client(self.daemon.endpoint, timeout=PATIENCE)

    if not hasattr(unittest.TestCase, "enterContext"):  # Before Python 3.11.
        def enterContext(self, context):
            self.addCleanup(context.__exit__, None, None, None)
            return context.__enter__()


class ShapesTest(WithDaemon):
    def test_what_was_put_is_found_and_got(self):
        model = self.client.register(MODEL)
        pages = [page(i) for i in range(3)]

        put = self.client.put(model, keys(3), pages)
        again = self.client.put(model, keys(3), pages)
        hit = self.client.lookup(model, keys(5), lease=60)
        targets = [bytearray(PART) for _ in range(5)]
        got = self.client.get(model, keys(5), targets)

        self.assertEqual((put.stored, put.present, put.states), (3, 0, [kvd.PutState.STORED] * 3))
        self.assertEqual((again.stored, again.present), (0, 3))
        self.assertEqual((hit.blocks, hit.tiers), (3, {kvd.Tier.DRAM: 3}))
        self.assertNotEqual(hit.lease, 0)
        self.assertEqual((got.hit_blocks, got.blocks, got.damaged), (3, 3, 0))
        self.assertEqual([bytes(t) for t in targets[:3]], pages)
        self.client.release_lease(hit.lease)
        self.client.flush()

    def test_keys_and_buffers_may_be_in_one_piece(self):
        model = self.client.register(MODEL)
        pages = b"".join(page(i) for i in range(3))
        target = bytearray(3 * PART)

        self.client.put(model, b"".join(keys(3)), pages)
        got = self.client.get(model, memoryview(b"".join(keys(3))), target)

        self.assertEqual(got.blocks, 3)
        self.assertEqual(target, pages)

    def test_parts_of_several_groups_and_shards(self):
        model = self.client.register(WINDOWED)
        self.assertEqual(model.parts, [(0, 0), (1, 0), (1, 1)])
        self.assertEqual(model.part_bytes, [PART, PART // 2, PART // 2])
        whole, halves = page(1), [page(2, PART // 2), page(3, PART // 2)]

        self.client.put(model, keys(1), [whole, halves[0]], parts=[(0, 0), (1, 0)])
        self.client.put(model, keys(1), [halves[1]], parts=[(1, 1)])
        got = [bytearray(PART // 2), bytearray(PART)]
        self.client.get(model, keys(1), got, parts=[(1, 1), (0, 0)])

        self.assertEqual([bytes(b) for b in got], [halves[1], whole])

    def test_the_tail_of_a_chain_goes_below_its_parent(self):
        model = self.client.register(MODEL)
        self.client.put(model, keys(2), page(0) + page(1))

        put = self.client.put(model, keys(4)[2:], page(2) + page(3), parent=keys(2)[1])
        orphan = self.client.put(model, keys(1, seed=1), page(0), parent=keys(1, seed=2)[0])
        tail = bytearray(2 * PART)
        got = self.client.get(model, keys(4)[2:], tail, parent=keys(2)[1])

        self.assertEqual((put.stored, got.blocks), (2, 2))
        self.assertEqual(tail, page(2) + page(3))
        self.assertEqual(orphan.states, [kvd.PutState.NO_PARENT])

    def test_a_piece_of_a_longer_prefix(self):
        model = self.client.register(MODEL)
        self.client.put(model, keys(4), [page(i) for i in range(4)])
        target = bytearray(2 * PART)

        got = self.client.get(model, keys(4)[1:], target, parent=keys(1)[0], max_blocks=2)

        self.assertEqual((got.hit_blocks, got.blocks), (3, 2))
        self.assertEqual(target, page(1) + page(2))

    def test_announced_bytes_are_one_a_block_and_of_a_form(self):
        model = self.client.register(MODEL)
        with self.assertRaisesRegex(kvd.InvalidArgument, r"announce\[1\]: not a MessagePack map"):
            self.client.put(model, keys(2), page(0) + page(1), announce=[b"", b"b"])  # Says the daemon.
        with self.assertRaisesRegex(kvd.InvalidArgument, "announce"):
            self.client.put(model, keys(2, seed=1), page(0) + page(1), announce=[b"a"])
        announced = [kvd.announcement([1], None, range(16), 16), kvd.announcement([2], 1, range(16), 16)]
        put = self.client.put(model, keys(2), page(0) + page(1), announce=announced)
        self.assertEqual(put.stored, 2)

    def test_an_announcement_of_another_length_is_refused(self):
        with self.assertRaisesRegex(ValueError, "16 for each"):
            kvd.announcement([1], None, range(15), 16)
        with self.assertRaisesRegex(ValueError, "one or more"):
            kvd.announcement([], None, [], 16)
        long = kvd.announcement([2**64 - 1, -5], -6, [2**31] * 32, 16, lora_name="x" * 40)
        self.assertIn(b"\xd3" + (-5).to_bytes(8, "big", signed=True), long)

    def test_pins_outlast_the_session_and_are_undone(self):
        model = self.client.register(MODEL)
        self.client.put(model, keys(2), page(0) + page(1))

        pin = self.client.pin(model, keys(2)[1], owner="tests", ttl=60)

        self.assertEqual((pin.blocks, pin.bytes), (2, 2 * PART))
        self.client.unpin(pin.pin)
        with self.assertRaises(kvd.NotFound):
            self.client.pin(model, keys(1, seed=9)[0], owner="tests")
        with self.assertRaises(kvd.ResourceExhausted):
            self.client.pin(model, keys(2)[1], owner="tests", budget_bytes=1)

    def test_the_example_says_what_it_did(self):
        ran = subprocess.run([sys.executable, "-B", ROOT / "client/python/examples/first_steps.py",
                              self.daemon.endpoint], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT / "client/python")})
        self.assertEqual((ran.returncode, ran.stdout),
                         (0, "stored 2, present 0, hit 2, got 2 equal, pinned 2 blocks\n"))


class BuffersTest(WithDaemon):
    def setUp(self):
        super().setUp()
        self.model = self.client.register(MODEL)

    def round_trip(self, source, target, seed=0):
        self.client.put(self.model, keys(1, seed), [source])
        self.assertEqual(self.client.get(self.model, keys(1, seed), [target]).blocks, 1)

    def test_whatever_has_the_buffer_protocol(self):
        mapped = mmap.mmap(-1, PART)
        for seed, target in enumerate([bytearray(PART), memoryview(bytearray(2 * PART))[PART:],
                                       array.array("d", bytes(PART)), mapped,
                                       (ctypes.c_char * PART)()]):
            with self.subTest(type(target)):
                self.round_trip(page(seed), target, seed)
                self.assertEqual(bytes(memoryview(target).cast("B")), page(seed))
        mapped.close()  # BufferError, if the call had kept it.

    @unittest.skipUnless(numpy, "no NumPy")
    def test_arrays_of_numpy(self):
        source = numpy.arange(2 * PART // 8).reshape(2, -1)
        target = numpy.zeros((2, PART // 4), dtype=numpy.float32)

        self.client.put(self.model, keys(2), source)
        self.client.get(self.model, keys(2), target)

        self.assertEqual(target.tobytes(), source.tobytes())
        with self.assertRaises((BufferError, ValueError)):
            self.client.put(self.model, keys(1, 5), [numpy.zeros((PART, 2), dtype=numpy.uint8)[:, 0]])

    def test_tensors_by_their_data_ptr(self):
        class Tensor:
            def __init__(self, data, kind="cpu", contiguous=True):
                self.bytes, self.contiguous = data, contiguous
                self.device = type("device", (), {"type": kind, "__str__": lambda _: kind})()

            def is_contiguous(self):
                return self.contiguous

            def data_ptr(self):
                return ctypes.addressof((ctypes.c_char * 1).from_buffer(self.bytes))

            def numel(self):
                return len(self.bytes) // 2

            def element_size(self):
                return 2

        target = bytearray(PART)
        self.round_trip(Tensor(bytearray(page(4))), Tensor(target))

        self.assertEqual(target, page(4))
        with self.assertRaisesRegex(TypeError, "on cuda: copy it to the host first"):
            self.client.put(self.model, keys(1), [Tensor(target, kind="cuda")])
        with self.assertRaisesRegex(BufferError, "not contiguous"):
            self.client.put(self.model, keys(1), [Tensor(target, contiguous=False)])

    def test_what_does_not_fit_is_refused_before_the_call(self):
        put, get = self.client.put, self.client.get
        for what, wrong, call in [
                (ValueError, "no number of hashes of 32", lambda: put(self.model, b"short", b"")),
                (ValueError, "1 buffers for 2 parts", lambda: put(self.model, keys(2), [b""])),
                (ValueError, "9 bytes for parts of 4096", lambda: put(self.model, keys(1), b"9" * 9)),
                (kvd.InvalidArgument, "sources.0.: not part_bytes", lambda: put(self.model, keys(1), [b"9"])),
                (ValueError, "parent: 1 bytes, not 32",
                 lambda: put(self.model, keys(1), page(0), parent=b"1")),
                (ValueError, "parts: the namespace has no part",
                 lambda: put(self.model, keys(1), page(0), parts=[(3, 0)])),
                (ValueError, "parts: none", lambda: get(self.model, keys(1), bytearray(0), parts=[])),
                (ValueError, "no time", lambda: self.client.lookup(self.model, keys(1), timeout=-1)),
                (BufferError, "", lambda: get(self.model, keys(1), page(0))),  # Not writable.
                (TypeError, "", lambda: put(self.model, keys(1), [7]))]:
            with self.subTest(wrong), self.assertRaisesRegex(what, wrong):
                call()
        self.assertEqual(self.client.lookup(self.model, keys(1)).blocks, 0)

    def test_adopted_memory_is_put_from(self):
        bytes_ = 4 << 20
        large = self.client.register(kvd.Descriptor("test/large", groups=[kvd.Group(16, bytes_)]))
        fd = os.memfd_create("pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, bytes_)
        pool = mmap.mmap(fd, bytes_)
        with self.assertRaisesRegex(kvd.InvalidArgument, "(?i)seal"):
            self.client.adopt_memory(fd, pool)
        import fcntl
        fcntl.fcntl(fd, 1033, 0x2)  # F_ADD_SEALS, F_SEAL_SHRINK: names since Python 3.9 or later.
        pool[:PART] = page(1)

        self.client.adopt_memory(fd, pool)
        self.client.put(large, keys(1), pool)
        target = bytearray(bytes_)
        self.client.get(large, keys(1), target)

        self.assertEqual(target[:PART], page(1))
        os.close(fd)


class ChainsTest(WithDaemon):
    def setUp(self):
        super().setUp()
        self.model = self.client.register(MODEL)
        self.client.put(self.model, keys(3), [page(i) for i in range(3)])

    def test_is_read_in_place_and_cannot_be_written(self):
        chain = self.client.load(self.model, keys(5))

        views = chain.views()

        self.assertEqual((chain.blocks, chain.parts, chain.verify()), (3, 1, [True] * 3))
        self.assertEqual([bytes(view) for view in views], [page(i) for i in range(3)])
        with self.assertRaises(TypeError):
            views[0][0] = 1

    def test_a_view_keeps_the_chain_and_the_chain_outlives_client_and_daemon(self):
        view = self.client.load(self.model, keys(1)).views()[0]
        del self.client, self.model
        gc.collect()
        self.daemon.kill()

        self.assertEqual(bytes(view), page(0))

    def test_a_range_of_every_part(self):
        chain = self.client.load(self.model, keys(2), range_offset=256, range_bytes=8)

        self.assertEqual([bytes(view) for view in chain.views()],
                         [page(i)[256:264] for i in range(2)])

    def test_a_part_that_is_not_there_is_none(self):
        model = self.client.register(WINDOWED)
        self.client.put(model, keys(1, 3), [page(1)], parts=[(0, 0)])

        chain = self.client.load(model, keys(1, 3), parts=[(0, 0), (1, 0)])

        self.assertIn(chain.blocks, (0, 1))
        if chain.blocks:
            self.assertIsNone(chain.views()[1])
            self.assertEqual(chain.verify(), [True, False])


class LookupsTest(WithDaemon):
    def await_answer(self, pending):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            answer = pending.poll()
            if answer is not None:
                return answer
        self.fail("no answer")

    def test_one_that_nobody_sits_out(self):
        model = self.client.register(MODEL)
        self.client.put(model, keys(3), [page(i) for i in range(3)])

        pending = self.client.start_lookup(model, keys(5), lease=60)
        answer = self.await_answer(pending)

        self.assertEqual((answer.blocks, answer.tiers), (3, {kvd.Tier.DRAM: 3}))
        self.assertEqual(pending.poll(), answer)
        self.client.release_lease(answer.lease)

    def test_it_returns_at_once_from_a_daemon_that_does_not_answer(self):
        model = self.client.register(MODEL)
        self.daemon.freeze()

        pending = self.client.start_lookup(model, keys(1), timeout=0.05)

        with self.assertRaises(kvd.DeadlineExceeded):
            self.await_answer(pending)
        self.daemon.thaw()

    def test_what_is_dropped_ends_by_itself(self):
        model = self.client.register(MODEL)
        pending = self.client.start_lookup(model, keys(1))
        del self.client
        del pending


class TroubleTest(WithDaemon):
    def test_a_daemon_that_is_away_is_an_exception_at_once_and_forgotten_when_it_is_back(self):
        model = self.client.register(MODEL)
        self.daemon.kill()
        for call in (lambda: self.client.lookup(model, keys(1)),
                     lambda: self.client.get(model, keys(1), bytearray(PART)),
                     lambda: self.client.put(model, keys(1), page(0)),
                     lambda: self.client.load(model, keys(1)),
                     lambda: self.client.connect()):
            with self.assertRaises(kvd.Unavailable) as raised:
                call()
            self.assertIsInstance(raised.exception, (kvd.KvdError, ConnectionError))
        self.daemon.start()

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                self.client.connect()
                break
            except kvd.Unavailable:
                pass
        self.assertEqual(self.client.put(model, keys(1), page(0)).stored, 1)
        self.assertEqual(self.client.stats().reconnects, 1)

    def test_a_daemon_that_does_not_answer_costs_the_timeout(self):
        model = self.client.register(MODEL)
        self.daemon.freeze()
        begin = time.monotonic()
        with self.assertRaises(kvd.DeadlineExceeded) as raised:
            self.client.lookup(model, keys(1), timeout=0.05)
        self.assertLess(time.monotonic() - begin, PATIENCE / 2)
        self.assertIsInstance(raised.exception, TimeoutError)
        self.daemon.thaw()

    def test_mistakes_in_a_descriptor_name_the_field(self):
        for wrong, descriptor in [
                ("hash_bytes", kvd.Descriptor("m", groups=MODEL.groups, hash_bytes=3)),
                ("block_tokens", kvd.Descriptor("m", groups=[kvd.Group(0, 1)])),
                ("model", kvd.Descriptor("m" * 300, groups=MODEL.groups))]:
            with self.subTest(wrong), self.assertRaisesRegex(kvd.InvalidArgument, wrong):
                self.client.register(descriptor)
        with self.assertRaisesRegex(ValueError, "zero byte"):
            self.client.register(kvd.Descriptor("a\0b", groups=MODEL.groups))
        with self.assertRaisesRegex(kvd.InvalidArgument, "staging_bytes"):
            kvd.Client(self.daemon.endpoint, staging_bytes=1 << 40)

    def test_the_files_of_tls_are_looked_for_when_the_client_connects(self):
        tls = kvd.Tls("/nowhere/chat.pem", "/nowhere/chat.key", "/nowhere/ca.pem")
        with self.assertRaisesRegex(kvd.KvdError, "/nowhere/"):
            kvd.Client("tcp:localhost:1", tls=tls).connect()

    def test_a_client_may_look_for_its_answers_before_it_sleeps(self):
        kvd.Client(self.daemon.endpoint, timeout=PATIENCE, spin=60e-6).register(MODEL)
        with self.assertRaisesRegex(kvd.InvalidArgument, "spin_us"):
            kvd.Client(self.daemon.endpoint, spin=1)

    def test_every_field_of_a_descriptor_counts(self):
        """Two that differ in one field share nothing."""
        self.client.put(self.client.register(MODEL), keys(1), page(0))
        texts = ["weights_revision", "kv_dtype", "quantization", "page_layout", "engine_family",
                 "draft_model", "hash_algorithm", "hash_seed"]
        others = [{name: "x"} for name in texts] + [
            {"tensor_parallel": 2}, {"pipeline_parallel": 2}, {"context_parallel": 2},
            {"extra": {"a": "b"}}]
        for other in others:
            with self.subTest(other):
                model = self.client.register(kvd.Descriptor("test/model", groups=MODEL.groups, **other))
                self.assertEqual(self.client.lookup(model, keys(1)).blocks, 0)
        self.assertEqual(self.client.lookup(self.client.register(MODEL), keys(1)).blocks, 1)

    def test_a_client_is_refused_in_a_child_of_fork(self):
        self.client.connect()
        child = os.fork()
        if child == 0:
            try:
                self.client.connect()
            except kvd.FailedPrecondition:
                os._exit(0)
            os._exit(1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.client.connect()

    def test_other_threads_run_while_a_call_waits(self):
        model = self.client.register(MODEL)
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        begun = threading.Event()
        helper = threading.Thread(target=lambda: begun.wait() and self.daemon.thaw())
        helper.start()
        self.daemon.freeze()

        sys.setswitchinterval(2 * PATIENCE)  # Nobody runs unless this thread lets go of the GIL.
        begun.set()
        found = self.client.lookup(model, keys(1), timeout=PATIENCE)

        self.assertEqual(found.blocks, 0)
        sys.setswitchinterval(interval)
        helper.join(PATIENCE)

    def test_no_other_thread_runs_in_a_call_that_never_waits(self):
        model = self.client.register(MODEL)
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        begun, ran = threading.Event(), []
        helper = threading.Thread(target=lambda: begun.wait() and ran.append(1))
        helper.start()

        sys.setswitchinterval(2 * PATIENCE)  # Nobody runs unless this thread lets go of the GIL.
        begun.set()
        for _ in range(100):
            pending = self.client.start_lookup(model, keys(1), lease=1)
            pending.poll()
            self.client.release_lease(0)
            del pending

        self.assertEqual(ran, [])
        sys.setswitchinterval(interval)
        helper.join(PATIENCE)

    def test_every_status_has_an_exception_of_its_own(self):
        names = {code: library.kvd.kvd_status_name(code).decode() for code in range(1, 17)}
        for code, name in names.items():
            with self.subTest(name):
                error = kvd.errors.of(code)
                self.assertEqual(error.code, code)
                self.assertEqual(error.__name__, "KvdError" if name == "UNKNOWN" else
                                 "".join(word.capitalize() for word in name.split("_")))
        self.assertIs(kvd.errors.of(99), kvd.KvdError)


class LibraryTest(unittest.TestCase):
    """The header is the truth."""
    STRUCTURES = {"kvd_buffer": library.Buffer, "kvd_const_buffer": library.Buffer,
                  "kvd_part": library.Part, "kvd_group": library.Group, "kvd_extra": library.Extra,
                  **{"kvd_" + re.sub("(?<!^)(?=[A-Z])", "_", c.__name__).lower(): c
                     for c in library.Growing.__subclasses__()}}

    def test_every_structure_is_that_of_the_header(self):
        lines = []
        for name, structure in self.STRUCTURES.items():
            lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
            for field, _ in structure._fields_:
                lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "layout")
            source = program.with_suffix(".c")
            source.write_text('#include <stdio.h>\n#include "kvd.h"\nint main(void) {\n'
                              + "\n".join(lines) + "\nreturn 0; }\n")
            subprocess.run([CC, "-I", ROOT / "client", "-o", program, source], check=True)
            told = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in told.splitlines():
            name, number = line.split()
            structure, _, field = name.partition(".")
            ours = self.STRUCTURES[structure]
            with self.subTest(name):
                self.assertEqual(int(number), getattr(ours, field).offset if field
                                 else ctypes.sizeof(ours))
        header = (ROOT / "client/kvd.h").read_text()
        self.assertEqual(set(self.STRUCTURES), set(re.findall(r"^} (kvd_\w+);", header, flags=re.M)))

    def test_the_functions_of_the_header_are_there(self):
        header = re.sub(r"/\*.*?\*/", "", (ROOT / "client/kvd.h").read_text(), flags=re.S)
        declared = set(re.findall(r"^KVD_API [^;]*?\b(\w+)\(", header, flags=re.M))
        copies_in_c_only = {"kvd_chain_copy"}
        self.assertEqual(set(library._FUNCTIONS), declared - copies_in_c_only)

    def test_a_library_that_is_not_there_is_named(self):
        ran = subprocess.run([sys.executable, "-B", "-c", "import kvd; kvd.Client()"], stderr=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT / "client/python"),
                                  "KVD_LIBRARY": "/nowhere/libkvd.so.0"})
        self.assertIn("ImportError: kvd: cannot use /nowhere/libkvd.so.0", ran.stderr)
        self.assertIn("KVD_LIBRARY", ran.stderr)

    def test_version_is_the_librarys(self):
        self.assertRegex(kvd.version(), r"^\d+\.\d+\.\d+$")

    def test_importing_needs_nothing_but_python(self):
        ran = subprocess.run(
            [sys.executable, "-B", "-S", "-c",  # -S: without site-packages.
             "import sys, kvd; print([m for m in ('numpy', 'torch', 'google') if m in sys.modules])"],
            stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "client/python")})
        self.assertEqual(ran.stdout, "[]\n")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[4:])
