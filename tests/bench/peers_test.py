#!/usr/bin/env python3
"""The arithmetic and the report of bench/peers, and how it reaches into other processes.

  peers_test.py [KVD_BENCH]    with the program, its driver is tested too
"""

import copy
import hashlib
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench" / "peers"))
import figures  # pylint: disable=wrong-import-position
import peers  # pylint: disable=wrong-import-position
import processes  # pylint: disable=wrong-import-position
import report  # pylint: disable=wrong-import-position
import stores  # pylint: disable=wrong-import-position

KVD_BENCH = None


class FiguresTest(unittest.TestCase):
    def test_percentile_lies_between_neighbours(self):
        self.assertEqual(figures.percentile([4, 1, 3, 2], 50), 2.5)
        self.assertEqual(figures.percentile([4, 1, 3, 2], 0), 1)
        self.assertEqual(figures.percentile([4, 1, 3, 2], 100), 4)
        self.assertIsNone(figures.percentile([], 50))

    def test_spread_leaves_out_what_was_not_measured(self):
        self.assertEqual(figures.spread([3.0, None, 1.0, 2.0]),
                         {"min": 1.0, "median": 2.0, "max": 3.0})
        self.assertIsNone(figures.spread([None]))

    def test_rate_is_bytes_by_nanosecond(self):
        self.assertEqual(figures.rate(1000, 6, [1000, 2000]), 2.0)  # 6,000 bytes in 3 us: 2 GB/s.
        self.assertIsNone(figures.rate(1000, 0, []))

    def test_ratios_pair_rounds(self):
        self.assertEqual(figures.ratios([4, None, 9], [2, 5, 3]), [2, 3])
        self.assertEqual(figures.ratios([4], []), [])

    def test_marks_count_each_outcome(self):
        self.assertEqual(figures.marks("110x-"),
                         {"right": 2, "wrong": 1, "missing": 1, "not_tried": 1})

    def test_overload_of_an_exact_lru(self):
        seen = figures.overload("0000" + "11", acked=6, room_blocks=2)
        self.assertAlmostEqual(seen["hit_ratio"], 1 / 3)
        self.assertAlmostEqual(seen["hit_ratio_of_lru"], 1 / 3)
        self.assertEqual((seen["newest_kept"], seen["older_kept"]), (1.0, 0.0))
        self.assertEqual((seen["refused"], seen["acked_and_gone"]), (0, 4))

    def test_overload_that_keeps_the_oldest(self):
        seen = figures.overload("11" + "0000", acked=6, room_blocks=2)
        self.assertAlmostEqual(seen["hit_ratio"], 1 / 3)
        self.assertEqual((seen["newest_kept"], seen["older_kept"]), (0.0, 0.5))

    def test_overload_tells_wrong_bytes_from_kept_ones(self):
        seen = figures.overload("00x1", acked=3, room_blocks=2)
        self.assertEqual((seen["kept"], seen["wrong"], seen["refused"]), (1, 1, 1))


def some_result():
    """A result with kvd and Mooncake, as `run` makes it."""
    def row(store, operation, size, batch, speed):
        return {"store": store, "operation": operation, "bytes": size, "batch": batch,
                "speed": speed, "gb_s": figures.spread(speed), "ratio": figures.spread(speed),
                "p50_us_of_rounds": [12.0 / one for one in speed],
                "call_us": {"p50": 10.0, "p99": 20.0}, "wrong": 0, "missing": 0, "why": "",
                "foreign_cpus": [0.1]}

    def asked(store, p50):
        return {"store": store, "keys": 256, "p50_us_of_rounds": p50, "p99_us_of_rounds": p50,
                "p50_us": figures.spread(p50), "p99_us": figures.spread(p50), "missing": 0}

    cases = (("get", 2 << 20, 16), ("put", 2 << 20, 16), ("get", 256 << 10, 1))
    return {
        "machine": {"cpu": "a CPU", "cpus": [0, 1], "cpus_of_machine": 2, "kernel": "6"},
        "date": "today", "options": {"rounds": 2, "volume": 1 << 20},
        "stores": [{"name": "kvd", "title": "kvd", "version": "", "mode": "m", "error": None},
                   {"name": "mooncake", "title": "Mooncake Store", "version": "1", "mode": "m",
                    "error": None}],
        "throughput": [row("kvd", *case, [3.0, 2.0]) for case in cases]
                      + [row("mooncake", *case, [2.0, 2.0]) for case in cases],
        "existence": [asked("kvd", [40.0, 50.0]), asked("mooncake", [120.0, 90.0])]}


class AgainstTest(unittest.TestCase):
    def rows(self, result):
        return {row["what"]: row for row in figures.against(result)}

    def test_ratio_is_of_the_same_round(self):
        rows = self.rows(some_result())
        self.assertEqual(rows["get, batches of 16 x 2 MiB"]["ratio"],
                         {"min": 1.0, "median": 1.25, "max": 1.5})

    def test_time_is_turned_into_speed(self):
        row = self.rows(some_result())["existence of 256 keys"]
        self.assertAlmostEqual(row["ratio"]["min"], 90 / 50)
        self.assertAlmostEqual(row["ratio"]["max"], 3.0)

    def test_median_decides(self):
        rows = self.rows(some_result())
        self.assertFalse(rows["get, batches of 16 x 2 MiB"]["met"])  # 1.25 < 1.3.
        self.assertTrue(rows["put, batches of 16 x 2 MiB"]["met"])
        self.assertFalse(rows["get, one by one, 256 KiB"]["met"])
        self.assertTrue(rows["existence of 256 keys"]["met"])

    def test_without_the_peer_nothing_is_decided(self):
        result = some_result()
        result["throughput"] = [row for row in result["throughput"] if row["store"] == "kvd"]
        row = self.rows(result)["put, batches of 16 x 2 MiB"]
        self.assertIsNone(row["ratio"])
        self.assertIsNone(row["met"])


class ReportTest(unittest.TestCase):
    def report(self, change=lambda result: None):
        result = copy.deepcopy(some_result())
        change(result)
        result["against_mooncake"] = figures.against(result)
        return report.markdown(result)

    def test_missed_bar_is_said(self):
        self.assertIn("| get, one by one, 256 KiB | 2.5 | **1.25** (1.00-1.50) | **no** | ",
                      self.report())

    def test_wrong_bytes_of_anybody_are_said(self):
        def change(result):
            result["throughput"][0]["wrong"] = 3
        self.assertIn("3 wrong!", self.report(change))

    def test_store_that_did_not_run_is_listed_with_the_reason(self):
        def change(result):
            result["stores"][1]["error"] = "no wheel for this Python\nand more"
            result["throughput"] = result["throughput"][:3]
        text = self.report(change)
        self.assertIn("no: no wheel for this Python |", text)
        self.assertIn("not measured", text)

    def test_flip_that_was_served_stands_out(self):
        def change(result):
            marks = {"right": 0, "wrong": 4, "missing": 0, "not_tried": 0}
            result["behaviour"] = {"mooncake": {"flip": {
                "blocks": 4, "first_get": marks, "after_put_again": marks}}}
        self.assertIn("**wrong bytes given as right** (4 of 4)", self.report(change))

    def test_behaviour_that_could_not_be_tried_says_why(self):
        def change(result):
            result["behaviour"] = {"kvd": {"flip": {"error": "run as root"}}}
        self.assertIn("not done: run as root", self.report(change))

    def test_every_line_of_a_table_has_as_many_cells(self):
        width = None
        for line in self.report().splitlines():
            if not line.startswith("|"):
                width = None
                continue
            width = width or line.count("|")
            self.assertEqual(line.count("|"), width, line)


class CommandLineTest(unittest.TestCase):
    def test_unknown_store_is_refused(self):
        done = subprocess.run([sys.executable, "-B", ROOT / "bench/peers/peers.py", "--only", "x"],
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("invalid choice: 'x'", done.stderr)

    def test_list_names_every_store(self):
        done = subprocess.run([sys.executable, "-B", ROOT / "bench/peers/peers.py", "--list"],
                              capture_output=True, text=True, check=True)
        for kind in stores.MEASURED + stores.OBSERVED:
            self.assertIn(f"{kind.name} ", done.stdout)

    def test_store_that_cannot_be_had_is_an_error_of_its_own(self):
        errors = {}
        with tempfile.TemporaryDirectory() as folder:
            broken = stores.Kvd(stores.Environment(pathlib.Path(folder) / "none", folder))
            self.assertRaisesRegex(processes.Failure, "build it first", broken.install)
            self.assertEqual(peers.start_all([broken], pathlib.Path(folder), 1 << 30, errors), [])
        self.assertIn("kvd", errors)


class ProcessTest(unittest.TestCase):
    def test_bit_in_the_memory_of_a_child_is_flipped(self):
        child = ("import hashlib, sys\n"
                 "secret = bytearray(hashlib.sha512(b'secret').digest())\n"
                 "print('ready', flush=True)\n"
                 "sys.stdin.readline()\n"
                 "right = hashlib.sha512(b'secret').digest()\n"
                 "print(sum((a ^ b).bit_count() for a, b in zip(secret, right)))\n")
        with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            try:
                pattern = hashlib.sha512(b"secret").digest()
                places = processes.flip_in_memory(process.pid, pattern)
            except processes.Failure as failure:
                process.kill()
                self.skipTest(str(failure))
            bits, _ = process.communicate("go\n")
        self.assertGreaterEqual(places, 1)  # The dead copy that digest() returned may be another.
        self.assertEqual(int(bits), 1)

    def test_driver_that_dies_is_a_failure_with_its_last_words(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c",
                       "import sys; print('{}', flush=True); sys.stdin.readline(); "
                       "sys.exit('out of luck')"]
            driver = processes.Driver(command, pathlib.Path(folder) / "log")
            self.addCleanup(driver.close)
            self.assertRaisesRegex(processes.Failure, "out of luck", driver.ask, "put", 1)

    def test_driver_that_hangs_is_a_failure(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", "print('{}', flush=True); input(); input()"]
            driver = processes.Driver(command, pathlib.Path(folder) / "log")
            self.addCleanup(driver.close)
            with self.assertRaisesRegex(processes.Failure, "said nothing"):
                driver.ask("put", 1, seconds=0.2)

    def test_server_that_ends_says_why(self):
        with tempfile.TemporaryDirectory() as folder:
            server = processes.Process([sys.executable, "-c", "raise SystemExit('no room')"],
                                       pathlib.Path(folder) / "log")
            with self.assertRaisesRegex(processes.Failure, "no room"):
                server.wait_until(lambda: False, 60, "the server")


class NativeDriverTest(unittest.TestCase):
    def setUp(self):
        if KVD_BENCH is None:
            self.skipTest("no kvd-bench named")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def driver(self, *arguments):
        made = processes.Driver([KVD_BENCH, "peer-driver", *arguments], self.folder / "log")
        self.addCleanup(made.close)
        return made

    def test_memcpy_gives_back_what_it_took(self):
        driver = self.driver("memcpy")
        put = driver.ask("put", 4096, 16, 0, 40, 10)
        self.assertEqual((put["acked"], len(put["ns"])), (40, 3))  # 16, 16 and 8.
        self.assertEqual(driver.ask("get", 4096, 16, 0, 40, 10)["got"], "1" * 40)

    def test_bytes_of_other_blocks_are_wrong(self):
        driver = self.driver("memcpy")
        driver.ask("put", 4096, 1, 0, 4, 10)
        self.assertEqual(driver.ask("get", 4096, 1, 2, 4, 10)["got"], "xxxx")

    def test_pattern_is_of_the_block(self):
        driver = self.driver("memcpy")
        one, other = (driver.ask("pattern", 4096, block) for block in (1, 2))
        self.assertEqual((one["offset"], len(one["hex"])), (2048, 128))
        self.assertNotEqual(one["hex"], other["hex"])

    def test_unknown_command_is_an_answer(self):
        self.assertRaisesRegex(processes.Failure, "unknown command: jump",
                               self.driver("memcpy").ask, "jump")

    def test_size_without_words_is_refused(self):
        self.assertRaisesRegex(processes.Failure, "no such size",
                               self.driver("memcpy").ask, "put", 7, 1, 0, 1, 1)

    def test_store_that_is_away_is_a_miss_with_a_reason(self):
        driver = self.driver("redis", str(self.folder / "nobody.sock"))
        self.assertIn("No such file", driver.ask("put", 4096, 1, 0, 1, 1)["why"])

    def test_unknown_store_is_refused(self):
        self.assertRaisesRegex(processes.Failure, "no driver for 'tape'", self.driver, "tape")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        KVD_BENCH = sys.argv.pop(1)
    unittest.main()
