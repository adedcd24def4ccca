"""Throughput and existence of all stores in one interleaved run.

Within a size, each round asks every store in turn for the same work, beginning with another one
each time, so that whatever else the machine does meets all of them. The first round only warms up.
"""

import time

import figures
from processes import Failure, busy_seconds, cpu_seconds

SIZES = (256 << 10, 1 << 20, 2 << 20, 4 << 20)
BATCHES = (1, 16)
KEYS = (64, 256, 512)
CALL_LIMIT = 20  # Seconds for one operation of one round; a store that hangs loses the rest.


class Contestant:
    """A store that runs, its client, and what was measured of it."""

    def __init__(self, store, running):
        self.store = store
        self.running = running
        self.driver = running.driver()
        self.trouble = None  # Why it is out of the race.

    def pids(self):
        return [process.pid for process in self.running.processes] + [self.driver.pid]


def throughput(contestants, sizes, rounds, volume, seconds, cpus, say):
    """A list of rows, one for each store, operation, size and batch.

    `volume` is the bytes of one operation of one round; `seconds` bound all of it: rounds that no
    longer fit are left out, but three of each size are always taken.
    """
    rows = {}
    share = seconds / len(sizes)
    for number, size in enumerate(sizes):
        end = time.monotonic() + share
        taken = 0
        for turn in range(rounds + 1):
            if taken >= 3 and time.monotonic() > end:
                break
            say(f"{size >> 10} KiB, round {turn} of {rounds}")
            order = contestants[turn % len(contestants):] + contestants[:turn % len(contestants)]
            foreign = _Foreign(contestants, cpus)
            results = {one.store.name: _round(one, size, volume) for one in order}
            if turn == 0:
                continue
            taken += 1
            disturbance = foreign.cpus()
            for one in contestants:
                for case, result in results[one.store.name].items():
                    key = (one.store.name, size, *case)
                    row = rows.setdefault(key, _new_row(one.store.name, size, *case))
                    row["speed"].append(result["speed"])
                    row["ns"] += result["ns"]
                    row["p50_us_of_rounds"].append(
                        figures.percentile(result["ns"], 50) / 1e3 if result["ns"] else None)
                    row["wrong"] += result["wrong"]
                    row["missing"] += result["missing"]
                    row["foreign_cpus"].append(round(disturbance, 2))
                    if result["why"] and not row["why"]:
                        row["why"] = result["why"]
    return _finish(list(rows.values()))


def _new_row(store, size, operation, batch):
    return {"store": store, "operation": operation, "bytes": size, "batch": batch, "speed": [],
            "p50_us_of_rounds": [], "ns": [], "wrong": 0, "missing": 0, "why": "",
            "foreign_cpus": []}


def _round(one, size, volume):
    """What one store did: {(operation, batch): ...}. Empty once it is out of the race."""
    results = {}
    if one.trouble:
        return results
    count = max(16, volume // size)
    try:
        one.driver.ask("forget", size, 0, 2 * count)
        for position, batch in enumerate(BATCHES):
            first = position * count
            put = one.driver.ask("put", size, batch, first, count, CALL_LIMIT)
            results["put", batch] = {
                "speed": figures.rate(size, put["acked"], put["ns"]), "ns": put["ns"], "wrong": 0,
                "missing": count - put["acked"], "why": put["why"]}
            got = one.driver.ask("get", size, batch, first, count, CALL_LIMIT)
            found = figures.marks(got["got"])
            results["get", batch] = {
                "speed": figures.rate(size, found["right"], got["ns"]), "ns": got["ns"],
                "wrong": found["wrong"], "missing": found["missing"] + found["not_tried"],
                "why": got["why"]}
    except Failure as failure:
        one.trouble = str(failure)
    return results


def _finish(rows):
    """Adds what a table shows, and drops the single times."""
    floors = {(row["operation"], row["bytes"], row["batch"]): row["speed"] for row in rows
              if row["store"] == "memcpy"}
    for row in rows:
        floor = floors.get((row["operation"], row["bytes"], row["batch"]), [])
        row["gb_s"] = figures.spread(row["speed"])
        row["ratio"] = figures.spread(figures.ratios(row["speed"], floor))
        times = row.pop("ns")
        row["call_us"] = {f"p{percent}": None if not times else
                          figures.percentile(times, percent) / 1e3 for percent in (50, 99)}
    return rows


def existence(contestants, rounds, times, say):
    """Rows of how long one call took that asks for n keys, all of which are there."""
    rows = {}
    ready = []
    for one in contestants:
        if one.trouble or not one.store.stores:
            continue
        try:
            one.driver.ask("seed", max(KEYS))
            ready.append(one)
        except Failure as failure:
            one.trouble = str(failure)
    for turn in range(rounds + 1):
        say(f"existence, round {turn} of {rounds}")
        for keys in KEYS:
            for one in ready[turn % len(ready):] + ready[:turn % len(ready)]:
                if one.trouble:
                    continue
                try:
                    answer = one.driver.ask("exists", keys, times)
                except Failure as failure:
                    one.trouble = str(failure)
                    continue
                if turn == 0:
                    continue
                row = rows.setdefault((one.store.name, keys), {
                    "store": one.store.name, "keys": keys, "p50_us_of_rounds": [],
                    "p99_us_of_rounds": [], "missing": 0})
                for percent in (50, 99):
                    row[f"p{percent}_us_of_rounds"].append(
                        figures.percentile(answer["ns"], percent) / 1e3)
                row["missing"] += keys * times - answer["found"]
    for row in rows.values():
        for percent in (50, 99):
            row[f"p{percent}_us"] = figures.spread(row[f"p{percent}_us_of_rounds"])
    return list(rows.values())


class _Foreign:
    """How many CPUs' worth of work others did on ours since it was made."""

    def __init__(self, contestants, cpus):
        self._contestants = contestants
        self._cpus = cpus
        self._start = time.monotonic()
        self._busy = busy_seconds(cpus)
        self._own = self._own_seconds()

    def _own_seconds(self):
        return time.process_time() + sum(
            cpu_seconds(pid) for one in self._contestants for pid in one.pids())

    def cpus(self):
        foreign = busy_seconds(self._cpus) - self._busy - (self._own_seconds() - self._own)
        return max(0.0, foreign / (time.monotonic() - self._start))
