#!/usr/bin/env python3
"""A cache-aware router against a real daemon: router_test.py KVD KVCTL SOURCE_ROOT [unittest arguments].

No code of ours on the router's side: ZeroMQ and MessagePack by Debian's Python, as a router has them. It
loses one message in twenty, asks for those again or for a snapshot, and has to end with what the daemon
says of its blocks itself, tier by tier, after puts, evictions, moves to NVMe and back, damage in both
tiers and a dropped namespace.
"""

import glob
import json
import mmap
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import msgpack
import zmq

KVD, KVCTL, ROOT = (pathlib.Path(path).resolve() for path in sys.argv[1:4])
sys.path[:0] = [str(ROOT / "client/python"), str(ROOT / "tests/client/python")]

import kvd  # noqa: E402
from daemon import PATIENCE, Daemon  # noqa: E402

PART = 64 << 10
TOKENS = 16
END = b"\xff" * 8


def hash_of(key):
    return int.from_bytes(key[-8:], "big")  # As vLLM's events have it.


class Router:
    """Blocks by hash, with the media that have them."""

    def __init__(self, ready, topic=b"", loses=0.0, seed=0):
        self.context = zmq.Context()
        self.subscription = self.context.socket(zmq.SUB)
        self.subscription.setsockopt(zmq.SUBSCRIBE, topic)
        self.subscription.connect(ready["events"])
        self.asking = self.context.socket(zmq.DEALER)
        self.asking.RCVTIMEO = PATIENCE * 1000
        self.asking.connect(ready["events_replay"])
        self.random, self.loses = random.Random(seed), loses
        self.blocks, self.tokens, self.next = {}, {}, None
        self.lost = self.replays = self.snapshots = 0

    def close(self):
        self.context.destroy(linger=0)

    def ask(self, *request):
        self.asking.send_multipart([b"", *request])
        while True:
            delimiter, topic, sequence, payload = self.asking.recv_multipart()
            assert delimiter == b""
            if sequence == END:
                return
            yield topic, int.from_bytes(sequence, "big"), payload

    def listen(self, seconds):
        """Until nothing came for so long."""
        while self.subscription.poll(seconds * 1000):
            _, sequence, payload = self.subscription.recv_multipart()
            if self.random.random() < self.loses:
                self.lost += 1
                continue
            self.hear(int.from_bytes(sequence, "big"), payload)

    def hear(self, sequence, payload):
        if self.next is None or sequence > self.next:
            self.catch_up()
        if sequence == self.next:
            self.apply(payload)

    def catch_up(self):
        if self.next is None:
            return self.snapshot()
        missed = list(self.ask(self.next.to_bytes(8, "big")))
        if missed and missed[0][1] != self.next:  # What comes next is not kept any more.
            return self.snapshot()
        for _, sequence, payload in missed:
            assert sequence == self.next
            self.apply(payload)
        self.replays += 1

    def snapshot(self):
        sequence = -1
        for _, sequence, payload in self.ask(b"snapshot-v1"):
            self.apply(payload)
        self.next = sequence + 1
        self.snapshots += 1

    def apply(self, payload):
        _, events, rank = msgpack.unpackb(payload)
        assert rank is None
        for event in events:
            if event["type"] == "AllBlocksCleared":
                self.blocks.clear()
                continue
            assert event["locality"] == "LOCAL" and event["backend_id"].startswith("kvd@")
            assert event["seq_hashes"] == event["block_hashes"]
            for block in event["block_hashes"]:
                media = self.blocks.setdefault(block, set())
                if event["type"] == "BlockStored":
                    assert event["medium"] not in media, "stored twice"
                    assert event["block_size"] == TOKENS and len(event["token_ids"]) == TOKENS
                    media.add(event["medium"])
                    self.tokens[block] = (event["parent_block_hash"], event["token_ids"])
                else:
                    media.remove(event["medium"])
                    if not media:
                        del self.blocks[block]
        self.next = 0 if self.next is None else self.next + 1


class WithDaemon(unittest.TestCase):
    arguments = ()

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvd-router-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.arena = tempfile.mkdtemp(prefix="kvd-router-", dir="/dev/shm")  # Memory alone will do.
        self.addCleanup(shutil.rmtree, self.arena, ignore_errors=True)
        self.daemon = Daemon(
            KVD, "--data", f"{self.folder}/data", "--arena-directory", self.arena, "--nvme",
            f"{self.folder}/nvme:64MiB", "--admission", "all", "--events", "tcp://127.0.0.1:0",
            "--events-replay", "tcp://127.0.0.1:0", *self.arguments, dram="8MiB")
        self.daemon.start()
        self.addCleanup(self.daemon.__exit__)
        self.client = kvd.Client(self.daemon.endpoint)
        self.model = self.client.register(
            kvd.Descriptor("org/model", groups=[kvd.Group(block_tokens=TOKENS, part_bytes=PART)]))

    def router(self, **options):
        router = Router(self.daemon.ready, **options)
        self.addCleanup(router.close)
        return router

    def kvctl(self, *arguments):
        done = subprocess.run([KVCTL, "--endpoint", self.daemon.endpoint, "-o", "json", "--yes", *arguments],
                              check=True, capture_output=True, timeout=PATIENCE)
        return json.loads(done.stdout)

    def truth(self):
        """Of all blocks, by the daemon's own word."""
        blocks = {}
        for block in self.kvctl("ls", "--limit", "0", "--full")["blocks"]:
            if block["state"] != "visible":
                continue
            media = {medium for medium, size in (("CPU", block["bytes"]), ("STORAGE", block["nvme_bytes"]))
                     if int(size) == PART}
            blocks[hash_of(bytes.fromhex(block["key"]))] = media
        return blocks

    def keys(self, chain, blocks):
        return [chain.to_bytes(24, "big") + (chain << 16 | block).to_bytes(8, "big") for block in range(blocks)]

    def payload(self, key):
        return random.Random(key).randbytes(64) * (PART // 64)

    def put(self, chain, blocks, model=None):
        keys = self.keys(chain, blocks)
        hashes = [hash_of(key) for key in keys]
        announced = [kvd.announcement([hashes[i]], hashes[i - 1] if i else None,
                                      range(i * TOKENS, (i + 1) * TOKENS), TOKENS) for i in range(blocks)]
        self.client.put(model or self.model, keys, [self.payload(key) for key in keys], announce=announced)
        return keys

    def get(self, keys):
        return self.client.get(self.model, keys, bytearray(PART * len(keys))).blocks

    def settled(self, router, patience=PATIENCE):
        """The router knows what the daemon says; told apart from "not yet" by the time it takes."""
        end = time.monotonic() + patience
        while True:
            router.listen(0.05)
            truth = self.truth()
            if router.blocks == truth:
                return truth
            if time.monotonic() > end:
                self.assertEqual(router.blocks, truth)
            router.catch_up()  # The last message may be lost, or older than the subscription.

    def damage(self, files, key):
        """Turns a byte of the block's payload around, wherever it is in `files`. True: it was there."""
        wanted, found = self.payload(key)[:64] * 16, False
        for name in files:
            with open(name, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
                at = memory.find(wanted)
                while at >= 0:
                    memory[at] ^= 0x20
                    found = True
                    at = memory.find(wanted, at + 1)
                memory.flush()
        return found


class ResidencyTest(WithDaemon):
    def test_a_router_that_loses_messages_ends_with_the_daemons_truth(self):
        router = self.router(loses=0.05, seed=1)
        rng = random.Random(2)
        chains = {}
        for round_ in range(500):
            chain = rng.randrange(1, 60)
            if chain in chains and rng.random() < 0.4:
                self.get(chains[chain])  # From NVMe, if it has left: a promotion.
            else:
                chains[chain] = self.put(chain, 1 + rng.randrange(8))
            if round_ % 97 == 96:
                self.kvctl("evict", self.put(chain, 2)[0].hex())
            router.listen(0.001)
        truth = self.settled(router)

        media = {medium for where in truth.values() for medium in where}
        self.assertEqual(media, {"CPU", "STORAGE"})
        self.assertGreater(router.lost, 5)
        self.assertGreater(router.replays, 1)
        for block, (parent, tokens) in router.tokens.items():
            depth = block & 0xffff
            self.assertEqual(parent, block - 1 if depth else None)
            self.assertEqual(tokens, list(range(depth * TOKENS, (depth + 1) * TOKENS)))

    def test_damage_in_either_tier_is_told(self):
        router = self.router()
        cold = self.put(1, 3)
        for chain in range(100, 120):
            self.put(chain, 8)
        warm = self.put(200, 3)
        truth = self.settled(router)
        self.assertEqual(truth[hash_of(cold[2])], {"STORAGE"})
        self.assertIn("CPU", truth[hash_of(warm[2])])

        self.assertTrue(self.damage([f"{self.folder}/nvme"], cold[2]))
        self.read_until_shorter(cold)
        arena = [name for name in glob.glob(f"{self.arena}/**", recursive=True) if os.path.isfile(name)]
        self.assertTrue(self.damage(arena, warm[2]))
        self.read_until_shorter(warm)
        truth = self.settled(router)
        self.assertNotIn(hash_of(cold[2]), truth)
        told = {event["tier"] for event in self.events() if event["kind"] == "damaged"}
        self.assertIn("nvme", told)

    def read_until_shorter(self, keys):
        """Somebody reads, finds the damage and says so; on a slow machine not at the first try."""
        end = time.monotonic() + PATIENCE
        while self.client.lookup(self.model, keys).blocks == len(keys) and time.monotonic() < end:
            self.get(keys)
        self.assertEqual(self.client.lookup(self.model, keys).blocks, len(keys) - 1)

    def events(self):
        done = subprocess.run([KVCTL, "--endpoint", self.daemon.endpoint, "-o", "json", "events"],
                              check=True, capture_output=True, timeout=PATIENCE, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_a_dropped_namespace_and_a_flush_leave_nothing(self):
        router = self.router()
        other = self.client.register(
            kvd.Descriptor("org/other", groups=[kvd.Group(block_tokens=TOKENS, part_bytes=PART)]))
        self.put(1, 4)
        self.put(2, 4, model=other)
        self.assertEqual(len(self.settled(router)), 8)
        rows = self.kvctl("namespaces")["namespaces"]
        number = next(row["namespace_id"] for row in rows if row["describes"]["model"] == "org/other")
        self.kvctl("namespaces", "drop", str(number))
        self.assertEqual(len(self.settled(router)), 4)
        self.kvctl("flush", "dram")
        self.kvctl("flush", "nvme")
        self.assertEqual(self.settled(router), {})

    def test_a_restart_is_a_new_stream_that_begins_cleared(self):
        router = self.router()
        self.put(1, 4)
        self.settled(router)
        self.daemon.stop()
        self.daemon.start()
        again = self.router()
        answers = list(again.ask((0).to_bytes(8, "big")))
        self.assertEqual(answers[0][1], 0)
        self.assertEqual(msgpack.unpackb(answers[0][2])[1][0]["type"], "AllBlocksCleared")
        # What came back is told when somebody announces it anew.
        self.client = kvd.Client(self.daemon.endpoint)
        self.model = self.client.register(
            kvd.Descriptor("org/model", groups=[kvd.Group(block_tokens=TOKENS, part_bytes=PART)]))
        self.put(1, 4)
        self.assertEqual(len(self.settled(again)), 4)


class TopicTest(WithDaemon):
    arguments = ("--events-topic", "kv@pod-1@{model}")

    def test_each_model_has_a_topic_with_numbers_of_its_own(self):
        other = self.client.register(
            kvd.Descriptor("org/other", groups=[kvd.Group(block_tokens=TOKENS, part_bytes=PART)]))
        for chain in range(5):
            self.put(10 + chain, 2)
        self.put(2, 3, model=other)
        router = self.router(topic=b"kv@pod-1@org/other")
        end = time.monotonic() + PATIENCE
        while len(router.blocks) < 3 and time.monotonic() < end:
            router.next = router.next or 0
            for topic, sequence, payload in router.ask(router.next.to_bytes(8, "big"), b"kv@pod-1@org/other"):
                self.assertEqual(topic, b"kv@pod-1@org/other")
                self.assertEqual(sequence, router.next)
                router.apply(payload)
        self.assertEqual(set(router.blocks), {hash_of(key) for key in self.keys(2, 3)})


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
