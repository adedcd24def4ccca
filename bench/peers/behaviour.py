"""What stores do when something goes wrong: a bit flipped in their memory, three times more data
than room, SIGKILL. Each on a store of its own with little room, one after the other."""

import time

import figures
from processes import Failure, flip_in_memory

BLOCK = 1 << 20
FLIPPED = 4        # Blocks for the flip.
KILLED = 64        # Blocks before SIGKILL.
AWAY_LIMIT = 6     # Seconds a client may spend on a store that is away.
BACK_SECONDS = 30  # How long a restarted store has to take and give back a block.


def observe(store, environment_folder, room_bytes, say):
    """{flip, overload, kill}, each what was seen or {error: why not}."""
    seen = {}
    # A store that has just been filled may refuse what is put before the kill, so that is another.
    for acts in ((("flip", _flip), ("overload", _overload)), (("kill", _kill),)):
        folder = environment_folder / acts[0][0]
        folder.mkdir()
        running = store.start(folder, room_bytes)
        try:
            driver = running.driver()
            for name, act in acts:
                say(f"{store.title}: {name}")
                try:
                    seen[name] = act(running, driver, room_bytes)
                except Failure as failure:
                    seen[name] = {"error": str(failure)}
        finally:
            running.stop()
    return seen


def _flip(running, driver, _room):
    first = 900_000
    put = driver.ask("put", BLOCK, 1, first, FLIPPED, 20)
    if put["acked"] != FLIPPED:
        raise Failure(f"only {put['acked']} of {FLIPPED} blocks were taken: {put['why']}")
    driver.ask("scrub")
    places = 0
    for block in range(first, first + FLIPPED):
        pattern = bytes.fromhex(driver.ask("pattern", BLOCK, block)["hex"])
        places += flip_in_memory(running.owner.pid, pattern)
    if places < FLIPPED:
        raise Failure(f"found {places} of {FLIPPED} blocks in the memory of the store")
    got = driver.ask("check", BLOCK, first, FLIPPED, 20)
    again = driver.ask("put", BLOCK, 1, first, FLIPPED, 20)
    healed = driver.ask("check", BLOCK, first, FLIPPED, 20)
    return {"blocks": FLIPPED, "first_get": figures.marks(got["got"]), "why": got["why"],
            "acked_again": again["acked"], "after_put_again": figures.marks(healed["got"])}


def _overload(_running, driver, room_bytes):
    room = room_bytes // BLOCK
    blocks = 3 * room
    driver.ask("forget", BLOCK, 0, blocks)
    start = time.monotonic()
    put = driver.ask("put", BLOCK, 1, 0, blocks, 90, seconds=150)
    taken = time.monotonic() - start
    got = driver.ask("check", BLOCK, 0, blocks, 60, seconds=150)
    return {**figures.overload(got["got"], put["acked"], room), "seconds": taken,
            "why": put["why"]}


def _kill(running, driver, _room):
    first = 800_000
    put = driver.ask("put", BLOCK, 1, first, KILLED, 30)
    before = figures.marks(driver.ask("check", BLOCK, first, KILLED, 30)["got"])
    if before["right"] == 0:
        raise Failure(f"nothing was stored: {put['why']}")
    running.kill_owner()
    seen = {"stored": before["right"], "away": _while_away(driver, first)}

    start = time.monotonic()
    running.restart_owner()
    seen["restart_seconds"] = time.monotonic() - start
    seen["old_client"] = _comes_back(driver, 810_000, start)
    start = time.monotonic()  # Of its own: how long the old one tried says nothing about it.
    newcomer = running.driver()
    seen["new_client"] = _comes_back(newcomer, 820_000, start)
    try:
        left = newcomer.ask("check", BLOCK, first, KILLED, 30, seconds=60)
        seen["after"] = {**figures.marks(left["got"]), "said_to_exist": left["exists"]}
    except Failure as failure:
        seen["after"] = {"error": str(failure)}
    return seen


def _while_away(driver, first):
    """What a client is told between the kill and the restart."""
    try:
        got = driver.ask("check", BLOCK, first, KILLED, AWAY_LIMIT, seconds=60)
        put = driver.ask("put", BLOCK, 1, first, 8, AWAY_LIMIT, seconds=60)
    except Failure as failure:
        return {"error": str(failure)}
    return {**figures.marks(got["got"]), "said_to_exist": got["exists"],
            "puts_acked": put["acked"], "slowest_ms": got["slowest_ms"], "why": got["why"]}


def _comes_back(driver, first, start):
    """Seconds after `start` until a new block was taken and given back; None: never."""
    why = ""
    for attempt in range(10_000):
        if attempt > 0 and time.monotonic() - start > BACK_SECONDS:
            break
        try:
            driver.ask("put", BLOCK, 1, first + attempt, 1, 5, seconds=30)
            got = driver.ask("check", BLOCK, first + attempt, 1, 5, seconds=30)
        except Failure as failure:
            return {"seconds": None, "why": str(failure)}
        if got["got"] == "1":
            return {"seconds": time.monotonic() - start}
        why = got["why"] or "no block was given back"
        time.sleep(0.1)
    return {"seconds": None, "why": why}
