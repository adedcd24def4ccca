"""The arithmetic of the comparison. Pure functions on plain values; bench/peers_test tests them."""

import math


def percentile(values, percent):
    """Interpolated between neighbours; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = percent / 100 * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def spread(values):
    """Minimum, median and maximum; None of no values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"min": min(known), "median": percentile(known, 50), "max": max(known)}


def rate(size, blocks, nanoseconds):
    """GB/s of `blocks` blocks whose calls took these times; None when nothing was timed."""
    total = sum(nanoseconds)
    return size * blocks / total if total > 0 else None


def ratios(mine, theirs):
    """Round by round, mine / theirs, where both were measured."""
    return [a / b for a, b in zip(mine, theirs) if a is not None and b]


def marks(got):
    """How a series of blocks ended: `got` has a letter a block, see bench/peers_kvd.cc."""
    return {"right": got.count("1"), "wrong": got.count("x"), "missing": got.count("0"),
            "not_tried": got.count("-")}


def overload(got, acked, room_blocks):
    """What is left of blocks 0, 1, ... that were put in order, each once, into less room.

    An LRU keeps the newest `room_blocks`, and nothing else.
    """
    newest = got[-room_blocks:] if room_blocks < len(got) else got
    older = got[:len(got) - len(newest)]
    found = marks(got)
    return {
        "blocks": len(got),
        "acked": acked,
        "refused": len(got) - acked,
        "kept": found["right"],
        "wrong": found["wrong"],
        "hit_ratio": found["right"] / len(got) if got else None,
        "hit_ratio_of_lru": len(newest) / len(got) if got else None,
        "newest_kept": newest.count("1") / len(newest) if newest else None,
        "older_kept": older.count("1") / len(older) if older else None,
        "acked_and_gone": max(0, acked - found["right"]),
    }


# What kvd has to reach beside Mooncake Store's shared memory, in the same run. A bar on time is
# written as one on speed, so that more is better everywhere: half the time is twice as fast.
BARS = (
    {"what": "get, batches of 16 x 2 MiB", "case": ("get", 2 << 20, 16), "bar": 1.3},
    {"what": "put, batches of 16 x 2 MiB", "case": ("put", 2 << 20, 16), "bar": 1.0},
    {"what": "get, one by one, 256 KiB", "case": ("get", 256 << 10, 1), "bar": 2.5},
    {"what": "existence of 256 keys", "case": ("exists", 256), "bar": 2.0},
)


def against(result, ours="kvd", theirs="mooncake"):
    """The bars with what came out: [{what, bar, ratio: {min, median, max} or None, met}].

    `ratio` is of all that a round took, and decides; `ratio_of_median_calls` is what was left of it
    had nobody else run on these CPUs.
    """
    rows = []
    for bar in BARS:
        if bar["case"][0] == "exists":
            table, keys = result.get("existence", []), {"keys": bar["case"][1]}
        else:
            operation, size, batch = bar["case"]
            table = result.get("throughput", [])
            keys = {"operation": operation, "bytes": size, "batch": batch}

        def rounds_of(store, what):
            return next((row[what] for row in table if row["store"] == store
                         and what in row and all(row[key] == keys[key] for key in keys)), [])

        # A time against a time: the other way round, as more is better.
        calls = spread(ratios(rounds_of(theirs, "p50_us_of_rounds"),
                              rounds_of(ours, "p50_us_of_rounds")))
        ratio = calls
        if bar["case"][0] != "exists":
            ratio = spread(ratios(rounds_of(ours, "speed"), rounds_of(theirs, "speed")))
        rows.append({"what": bar["what"], "bar": bar["bar"], "ratio": ratio,
                     "ratio_of_median_calls": calls,
                     "met": None if ratio is None else ratio["median"] >= bar["bar"]})
    return rows
