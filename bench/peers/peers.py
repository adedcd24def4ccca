#!/usr/bin/env python3
"""kvd beside the stores that people use instead: the same work on all of them, in one run.

  ./dev bench peers                         everything; at most ten minutes once all is installed
  ./dev bench peers --quick                 a shorter look
  ./dev bench peers --only kvd --only redis
  ./dev bench peers --list

Leaves peers.json, peers.md and peers.png in build/peers/results and prints the table. README.md
beside this file says what is measured and how. A store that cannot be installed or started is reported as
such, with the reason, and the rest goes on; the exit status is 1 only when kvd itself could not be
measured, and 2 for a bad command line.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import behaviour
import figures
import measure
import report
import stores
from processes import Failure

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CPUS = 2
SCHEMA = 1


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="./dev bench peers", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__.split("\n\n")[0] + "\n\nMore is in bench/peers/README.md.")
    names = sorted({store.name for store in stores.MEASURED + stores.OBSERVED} - {"memcpy"})
    parser.add_argument("--json", metavar="FILE", help="write the result here too; - prints it "
                        "instead of the table")
    parser.add_argument("--only", metavar="NAME", action="append", choices=names,
                        help="this store (and memcpy); may be given again: " + ", ".join(names))
    parser.add_argument("--list", action="store_true", help="say what would run, and end")
    parser.add_argument("--quick", action="store_true", help="two sizes, three rounds, less data")
    parser.add_argument("--skip", metavar="PART", action="append", default=[],
                        choices=("speed", "existence", "behaviour"),
                        help="leave out speed, existence or behaviour")
    parser.add_argument("--results", metavar="FOLDER", default=ROOT / "build" / "peers" / "results",
                        type=pathlib.Path, help="where the table and the plot go")
    parser.add_argument("--programs", metavar="FOLDER", type=pathlib.Path,
                        default=ROOT / "build" / "release" / "bin", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def machine(cpus):
    model = next((line.split(":", 1)[1].strip()
                  for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cpus": cpus, "cpus_of_machine": os.cpu_count(),
            "kernel": platform.release(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


def say(text):
    print(f"\r\033[Kpeers: {text}" if sys.stderr.isatty() else f"peers: {text}",
          end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def start_all(chosen, folder, room_bytes, errors):
    contestants = []
    for store in chosen:
        if store.name in errors:
            continue
        say(f"starting {store.title}")
        place = folder / store.name
        place.mkdir()
        running = None
        try:
            running = store.start(place, room_bytes)
            contestants.append(measure.Contestant(store, running))
        except Failure as failure:
            errors[store.name] = str(failure)
            if running is not None:
                running.stop()
    return contestants


def run(options):
    cpus = sorted(os.sched_getaffinity(0))[:CPUS]
    os.sched_setaffinity(0, cpus)  # And all that is started from here on.
    environment = stores.Environment(options.programs, ROOT / "build" / "peers")
    wanted = [kind(environment) for kind in stores.MEASURED
              if not options.only or kind.name in options.only or not kind.stores]
    observed = [kind(environment) for kind in stores.OBSERVED
                if not options.only or kind.name in options.only]

    errors = {}
    for store in wanted + observed:
        try:
            store.install()
        except Failure as failure:
            errors[store.name] = str(failure)

    rounds = 3 if options.quick else 7
    volume = (64 if options.quick else 128) << 20
    sizes = (256 << 10, 2 << 20) if options.quick else measure.SIZES
    result = {
        "schema": SCHEMA,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": machine(cpus), "options": {
            "quick": options.quick, "rounds": rounds, "volume": volume, "sizes": list(sizes),
            "batches": list(measure.BATCHES), "room_bytes": 1 << 30,
            "room_bytes_of_trouble": 256 << 20 if options.quick else 512 << 20}}
    start = time.monotonic()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvd-peers."))
    try:
        if not {"speed", "existence"} <= set(options.skip):
            contestants = []
            try:
                contestants = start_all(wanted, folder, result["options"]["room_bytes"], errors)
                if "speed" not in options.skip:
                    result["throughput"] = measure.throughput(
                        contestants, sizes, rounds, volume, 60 if options.quick else 240, cpus, say)
                if "existence" not in options.skip:
                    result["existence"] = measure.existence(
                        contestants, rounds, 100 if options.quick else 400, say)
                for one in contestants:
                    if one.trouble:
                        errors[one.store.name] = one.trouble
            finally:
                for one in contestants:
                    one.running.stop()
        if "behaviour" not in options.skip:
            result["behaviour"] = {}
            for store in observed:
                if store.name in errors:
                    continue
                place = folder / f"trouble-{store.name}"
                place.mkdir()
                try:
                    result["behaviour"][store.name] = behaviour.observe(
                        store, place, result["options"]["room_bytes_of_trouble"], say)
                except Failure as failure:
                    result["behaviour"][store.name] = {"error": str(failure)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result["seconds"] = round(time.monotonic() - start)
    known = {store.name: store for store in observed + wanted}
    order = [kind.name for kind in stores.MEASURED] + [stores.KvdWithData.name,
                                                         stores.RedisWithLog.name]
    result["stores"] = [
        {"name": name, "title": known[name].title, "version": known[name].version,
         "mode": known[name].mode, "error": errors.get(name)} for name in order if name in known]
    result["against_mooncake"] = figures.against(result)
    return environment, result


def write(options, environment, result):
    options.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    source = options.results / "peers.json"
    source.write_text(text)
    table = report.markdown(result)
    (options.results / "peers.md").write_text(table)
    if options.json == "-":
        print(text, end="")
    else:
        print(table, end="")
        if options.json:
            pathlib.Path(options.json).write_text(text)
    if not result.get("throughput") or not result.get("existence"):
        return
    try:
        python = environment.venv("plot", "requirements-plot.txt")
        subprocess.run([python, "-B", pathlib.Path(__file__).with_name("plot.py"), source,
                        options.results / "peers.png"], check=True, timeout=120)
    except (Failure, subprocess.SubprocessError, OSError) as failure:
        say(f"no plot: {failure}\n")


def main(arguments):
    options = parse(arguments)
    if options.list:
        for kind in stores.MEASURED + (stores.KvdWithData, stores.RedisWithLog):
            print(f"{kind.name:10} {kind.title}: {kind.mode}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that what runs is ended.
    environment, result = run(options)
    write(options, environment, result)
    say(f"{result['seconds']} s; peers.json, peers.md, peers.png are in {options.results}\n")
    ours = next((store for store in result["stores"] if store["name"] == "kvd"), None)
    return 1 if ours is not None and ours["error"] is not None else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
