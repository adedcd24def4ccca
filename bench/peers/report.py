"""The result as Markdown, for people. The same figures as the JSON; nothing is left out of it that
speaks against kvd."""

SIZE_NAMES = {256 << 10: "256 KiB", 1 << 20: "1 MiB", 2 << 20: "2 MiB", 4 << 20: "4 MiB"}


def size_name(size):
    return SIZE_NAMES.get(size, f"{size >> 10} KiB")


def batch_name(batch):
    return "one by one" if batch == 1 else f"batches of {batch}"


def _table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _spread(values, form):
    """`median (minimum-maximum)`."""
    if values is None:
        return "-"
    return f"**{values['median']:{form}}** ({values['min']:{form}}-{values['max']:{form}})"


def markdown(result):
    parts = [_head(result), _stores(result)]
    if result.get("throughput"):
        parts += [_throughput(result), _latency(result)]
    if result.get("existence"):
        parts.append(_existence(result))
    if result.get("behaviour"):
        parts.append(_behaviour(result))
    if result.get("against_mooncake"):
        parts.append(_against(result))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(result):
    machine, options = result["machine"], result["options"]
    foreign = [cpus for row in result.get("throughput", []) for cpus in row["foreign_cpus"]]
    disturbed = f"; others used up to {max(foreign):.2f} CPUs meanwhile" if foreign else ""
    return (f"# Stores side by side\n\n{machine['cpu']}, CPUs {machine['cpus']} of "
            f"{machine['cpus_of_machine']}, Linux {machine['kernel']}, {result['date']}; "
            f"{options['rounds']} rounds of {options['volume'] >> 20} MiB each{disturbed}.\n\n"
            "Figures are **median** (minimum-maximum) over the rounds of one interleaved run.")


def _stores(result):
    rows = [[store["title"], store["version"] or "-", store["mode"],
             "yes" if store["error"] is None else "no: " + store["error"].splitlines()[0]]
            for store in result["stores"]]
    return "## What ran\n\n" + _table(["store", "version", "mode", "ran"], rows)


def _titles(result):
    return {store["name"]: store["title"] for store in result["stores"]}


def _cells(result, value):
    """Tables of the throughput rows: one row a store and operation, one column a size."""
    titles = _titles(result)
    rows = result["throughput"]
    sizes = sorted({row["bytes"] for row in rows})
    out = []
    for batch in sorted({row["batch"] for row in rows}):
        for operation in ("get", "put"):
            lines = []
            for store in titles:
                mine = {row["bytes"]: row for row in rows if row["store"] == store
                        and row["batch"] == batch and row["operation"] == operation}
                if mine:
                    lines.append([titles[store]] + [value(mine[size]) if size in mine else "-"
                                                    for size in sizes])
            out.append(f"**{operation}, {batch_name(batch)}**\n\n"
                       + _table(["store", *(size_name(size) for size in sizes)], lines))
    return "\n\n".join(out)


def _throughput(result):
    def value(row):
        text = _spread(row["ratio"], ".2f")
        if row["store"] == "memcpy" and row["gb_s"]:
            text = f"{row['gb_s']['median']:.1f} GB/s"
        if row["wrong"]:
            text += f"; {row['wrong']} wrong!"
        if row["missing"]:
            text += f"; {row['missing']} not done"
        return text
    return ("## Speed as a share of memcpy\n\nOf a memcpy of blocks of the same size in the same "
            "round, in one process.\n\n" + _cells(result, value))


def _latency(result):
    def value(row):
        call = row["call_us"]
        return "-" if call["p50"] is None else f"{call['p50']:,.0f} / {call['p99']:,.0f}"
    return "## Time of one call, p50 / p99 in us\n\n" + _cells(result, value)


def _existence(result):
    titles, rows = _titles(result), result["existence"]
    keys = sorted({row["keys"] for row in rows})
    lines = []
    for store in titles:
        mine = {row["keys"]: row for row in rows if row["store"] == store}
        if mine:
            lines.append([titles[store]] + [
                "-" if count not in mine else _spread(mine[count]["p50_us"], ".0f")
                + f", p99 {mine[count]['p99_us']['median']:.0f}"
                + (f"; {mine[count]['missing']} missing" if mine[count]["missing"] else "")
                for count in keys])
    return ("## Existence of n keys, us a call\n\n"
            + _table(["store", *(f"{count} keys" for count in keys)], lines))


def _behaviour(result):
    titles = _titles(result)
    lines = []
    for name, seen in result["behaviour"].items():
        lines.append([titles.get(name, name), _flip(seen.get("flip")), _kill(seen.get("kill")),
                      _overload(seen.get("overload"))]
                     if "error" not in seen else
                     [titles.get(name, name), seen["error"].splitlines()[0], "", ""])
    return ("## Trouble\n\n"
            + _table(["store", "a bit flipped in its memory", "SIGKILL and restart",
                      "three times more data than room"], lines))


def _first(text):
    return (text or "").splitlines()[0] if text else ""


def _flip(seen):
    if seen is None:
        return "-"
    if "error" in seen:
        return "not done: " + _first(seen["error"])
    first, after = seen["first_get"], seen["after_put_again"]
    if first["wrong"]:
        text = f"**wrong bytes given as right** ({first['wrong']} of {seen['blocks']})"
    elif first["missing"] == seen["blocks"]:
        text = "noticed: all misses"
    else:
        text = f"{first['right']} right, {first['missing']} misses"
    return text + f"; after another put {after['right']} of {seen['blocks']} right"


def _kill(seen):
    if seen is None:
        return "-"
    if "error" in seen:
        return "not done: " + _first(seen["error"])
    away, after = seen["away"], seen["after"]
    parts = []
    if "error" in away:
        parts.append("client while it is away: " + _first(away["error"])[:80])
    else:
        parts.append(f"while away {away['said_to_exist']} of {seen['stored']} said to exist, "
                     f"{away['puts_acked']} of 8 puts acknowledged, slowest call "
                     f"{away['slowest_ms']:,.0f} ms")
    if "error" in after:
        parts.append("afterwards: " + _first(after["error"])[:80])
    else:
        parts.append(f"**{after['right']} of {seen['stored']} survive**"
                     + (f", {after['wrong']} wrong" if after["wrong"] else "")
                     + (f", {after['said_to_exist']} said to exist"
                        if after["said_to_exist"] != after["right"] else ""))
    for who, text in (("old_client", "old client works"), ("new_client", "a new one works")):
        back = seen[who]["seconds"]
        parts.append(f"{text} " + ("no more" if back is None else f"after {back:.1f} s"))
    return "; ".join(parts)


def _overload(seen):
    if seen is None:
        return "-"
    if "error" in seen:
        return "not done: " + _first(seen["error"])
    return (f"{seen['acked']:,} of {seen['blocks']:,} acknowledged, {seen['kept']:,} kept: "
            f"hit ratio **{seen['hit_ratio']:.2f}** ({seen['hit_ratio_of_lru']:.2f} with an exact "
            f"LRU without overhead); of the newest third {seen['newest_kept']:.0%}"
            + (f"; {seen['wrong']} wrong" if seen["wrong"] else ""))


def _against(result):
    lines = []
    for row in result["against_mooncake"]:
        verdict = {None: "not measured", True: "yes", False: "**no**"}[row["met"]]
        lines.append([row["what"], f"{row['bar']:.1f}", _spread(row["ratio"], ".2f"), verdict,
                      _spread(row["ratio_of_median_calls"], ".2f")])
    return ("## kvd beside Mooncake Store's shared memory\n\nHow many times as fast, round by "
            "round; kvd sums and verifies every byte, Mooncake none. The last column leaves out what "
            "calls took that somebody else's work interrupted.\n\n"
            + _table(["what", "at least", "ratio", "reached", "of median calls"], lines))
