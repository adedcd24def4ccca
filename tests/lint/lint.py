#!/usr/bin/env python3
"""What ./dev lint checks beside the compiler: that the tree keeps the shape its READMEs describe.

Each rule is a function Tree -> findings; a finding is a file, a line and one sentence that says
what is wrong and what to do. Exit status 1 where there is any. Python's standard library only.

  format    clang-format would change nothing
  includes  every #include follows the arrows between the folders; gRPC, protobuf, ZeroMQ, io_uring, RocksDB
            and CUDA are each included in their own place; policy/ stays pure
  sources   every source is in a target, and every header of a library in its file set
  readmes   every folder has its page
  prose     what pages name is there: links and their anchors, files, commands of ./dev
  comments  a TODO says of which kind it is
  tidy      clang-tidy, over the sources that ship; clean files are remembered by content
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

# Who may include whom. `proto` is the wire, `proto/types` the nouns in C++ without protobuf.
ARROWS = {
    "proto/types": {"proto/types"},
    "proto": {"proto", "proto/types"},
    "policy": {"policy", "proto/types"},
    "tiers": {"tiers", "proto/types"},
    "cuda": {"cuda", "proto/types"},
    "client": {"client", "proto", "proto/types"},
    "daemon": {"daemon", "policy", "tiers", "cuda", "proto", "proto/types"},
    "bench": {"bench", "client", "daemon", "policy", "tiers", "cuda", "proto", "proto/types"},
    "tests": {"tests", "bench", "client", "daemon", "policy", "tiers", "cuda", "proto",
              "proto/types"},
}

# Headers that only a few files may include: (what, pattern of the header, pattern of the files).
_WIRE_ENDS = r"daemon/(service|admin|gateway|control_call|grpc_status|reflection)[^/]*|client/.*|tests/.*|bench/.*"
PLACES = [
    ("gRPC", r"(grpcpp|grpc)/.*|.*\.grpc\.pb\.h", _WIRE_ENDS),
    ("protobuf", r"google/protobuf/.*|(?!.*\.grpc\.).*\.pb\.h", _WIRE_ENDS + r"|proto/[^/]*|daemon/methods.*"),
    ("ZeroMQ", r"zmq(_utils)?\.h(pp)?", r"daemon/event_publisher\.cc|tests/daemon/event_publisher_test\.cc"),
    ("io_uring", r"liburing(/.*|\.h)|linux/io_uring\.h", r"tiers/uring_device\.(h|cc)|bench/uring_floor\.cc"),
    ("RocksDB", r"rocksdb/.*", r"tiers/rocks_index\.(h|cc)"),
    ("CUDA", r"cuda\.h|cuda_[a-z0-9_]*\.h|cuda_runtime.*|driver_types\.h|nvml\.h|cub/.*|thrust/.*",
     r"cuda/cuda_[^/]*|cuda/[^/]*\.cu"),
    # A policy is given time and randomness and returns values, so the simulator can trust it.
    ("what does I/O, waits, locks or logs",
     r"thread|mutex|shared_mutex|condition_variable|future|iostream|fstream|cstdio|unistd\.h"
     r"|spdlog/.*|absl/synchronization/.*|absl/time/clock\.h|absl/log/.*",
     r"(?!policy/).*"),
]

CPP = (".h", ".cc", ".cu")
COMMENTED = CPP + (".proto", ".py", ".sh", ".cmake", ".yml", ".yaml", ".toml")
LIBRARIES = ("proto", "policy", "tiers", "cuda", "daemon", "client")
TIDIED = LIBRARIES  # Tests and bench are compiled with every warning; more does not pay there.


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    file: str
    line: int
    text: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.text}"


class Tree:
    """The files of a checkout: what git tracks, and what is new and not ignored, so that lint says
    before a commit what it would say after. A folder without .git is taken whole, for tests."""

    def __init__(self, root):
        self.root = pathlib.Path(root).resolve()
        self._lines = {}
        if (self.root / ".git").exists():
            listed = subprocess.run(
                ["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others",
                 "--exclude-standard"], check=True, stdout=subprocess.PIPE).stdout
            names = set(os.fsdecode(listed).split("\0")) - {""}
        else:
            names = {str(p.relative_to(self.root)) for p in self.root.rglob("*")}
        self.files = sorted(n for n in names if (self.root / n).is_file())

    def named(self, *suffixes):
        return [f for f in self.files if f.endswith(suffixes)]

    def lines(self, file):
        if file not in self._lines:
            text = (self.root / file).read_text(encoding="utf-8", errors="replace")
            self._lines[file] = text.split("\n")
        return self._lines[file]


def folder_of(path):
    """The node of ARROWS that `path`, relative to the root, belongs to; None for foreign paths."""
    first = path.split("/", 1)[0] if "/" in path else None
    if first == "proto" and path.startswith("proto/types/"):
        return "proto/types"
    return first if first in ARROWS else None


_INCLUDE = re.compile(r'\s*#\s*include\s*(["<])([^">]+)[">]')


def includes_of(tree, file):
    """Yields (line number, "<" or '"', path)."""
    for number, line in enumerate(tree.lines(file), 1):
        match = _INCLUDE.match(line)
        if match:
            yield number, match[1], match[2]


def check_includes(tree):
    for file in tree.named(*CPP):
        folder = folder_of(file)
        for line, quote, path in includes_of(tree, file):
            target = folder_of(path)
            if folder and target and target not in ARROWS[folder]:
                known = ", ".join(sorted(ARROWS[folder] - {folder})) or "nobody"
                yield Finding(file, line, f'{folder} must not know {target}: "{path}"; '
                                          f"it may include {known}")
            if quote == '"' and target is None and (
                    path.startswith(".") or ((tree.root / file).parent / path).is_file()):
                yield Finding(file, line, f'name "{path}" by its path from the root')
            if folder is None:
                continue
            for what, header, files in PLACES:
                if target not in (None, "proto") or not re.fullmatch(header, path):
                    continue
                if not re.fullmatch(files, file):
                    yield Finding(file, line, f"{what} has its own place and this is not it: "
                                              f"<{path}>")


def check_sources(tree):
    """By the text of the CMakeLists.txt: a name relative to its folder, or below a variable that
    stands for the root."""
    words = {}
    for listing in tree.files:
        if pathlib.PurePath(listing).name == "CMakeLists.txt":
            text = "\n".join(line.split("#", 1)[0] for line in tree.lines(listing))
            words[os.path.dirname(listing)] = set(re.split(r'[\s()"]+', text))
    anywhere = set().union(*words.values()) if words else set()

    def in_target(file):
        if any(f"${{{variable}}}/{file}" in anywhere
               for variable in ("PROJECT_SOURCE_DIR", "CMAKE_SOURCE_DIR", "kvd_SOURCE_DIR")):
            return True
        return any(os.path.relpath(file, folder or ".") in names
                   for folder, names in words.items()
                   if not folder or file.startswith(folder + "/"))

    for file in tree.named(".cc", ".cu"):
        if folder_of(file) and not in_target(file):
            yield Finding(file, 1, "this source is in no target: name it in a CMakeLists.txt")
    for file in tree.named(".h"):
        # The programs below client/ (kvctl) are no libraries, so they have no file sets.
        if (file.startswith(tuple(f"{f}/" for f in LIBRARIES))
                and not re.match(r"client/[^/]+/", file) and not in_target(file)):
            yield Finding(file, 1, "this header is in no file set, so nobody checks that it "
                                   "compiles alone: name it under HDRS of its library")


def check_readmes(tree):
    folders = {f.split("/", 1)[0] for f in tree.files if "/" in f}
    for folder in sorted(folders):
        if not folder.startswith(".") and f"{folder}/README.md" not in tree.files:
            yield Finding(f"{folder}/README.md", 1, "every folder has a page: purpose, map, "
                                                    "invariants, decisions")


_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")
_DEV = re.compile(r"(?<![\w./])\./dev ([a-z]+)")
# `tiers/arena.h`, `tests/e2e/`, `metrics.h`, `lru.{h,cc}`; no wildcards.
_PATH = re.compile(r"(?:\.\./)*[\w.-]+(?:/[\w.-]+)*/?(?:\{[\w,]+\})?")
_SOURCES = (".h", ".cc", ".c", ".py", ".proto", "}")
_NAMED = _SOURCES + (".md", ".toml", ".yml", ".service", ".socket", ".cmake", ".kvtrace", "/")
# What a build or somebody else makes, and the names that stand for any.
_NOT_OURS = re.compile(r"build/|include/kvd/|(tests/)?a/b")


def _anchor(heading):
    """As hosts of repositories make it: lower case, hyphens for spaces, no other punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.strip("# ").lower()).replace(" ", "-")


def _spellings(path):
    match = re.fullmatch(r"(.*)\{(.*)\}", path)
    return [match[1] + end for end in match[2].split(",")] if match else [path]


def check_prose(tree):
    """A path counts from the root or from the page's folder; a source without a folder may lie
    anywhere. Code blocks are commands and text of all kinds: of them only ./dev is looked at."""
    known = set(tree.files)
    for file in tree.files:
        known.update(map(str, pathlib.PurePosixPath(file).parents))
    names = {os.path.basename(file) for file in tree.files}
    dev = "\n".join(tree.lines("dev")) if "dev" in tree.files else ""
    commands = set(re.findall(r"^  ([a-z]+) ", dev, re.M)) | {"help"}

    for page in tree.named(".md"):
        folder = os.path.dirname(page)

        def from_page(path):
            return os.path.normpath(os.path.join(folder, path))

        fenced = False
        for number, line in enumerate(tree.lines(page), 1):
            if line.startswith("```"):
                fenced = not fenced
            for command in _DEV.findall(line):
                if command not in commands:
                    yield Finding(page, number, f"there is no ./dev {command}")
            if fenced or line.startswith("    "):
                continue
            for link in _LINK.findall(line):
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = link.partition("#")
                target = from_page(path) if path else page
                if target not in known:
                    yield Finding(page, number, f"the link {link} leads nowhere")
                elif anchor and anchor not in {_anchor(text) for text in tree.lines(target)
                                               if text.startswith("#")}:
                    yield Finding(page, number, f"{target} has no heading #{anchor}")
            for code in _CODE.findall(line):
                if (not _PATH.fullmatch(code) or not code.endswith(_NAMED)
                        or _NOT_OURS.match(code)):
                    continue
                for path in _spellings(code):
                    # `.proto` alone is a kind of file.
                    if "/" not in path and (not code.endswith(_SOURCES) or path in names
                                            or path.startswith(".")):
                        continue
                    if from_page(path) not in known and os.path.normpath(path) not in known:
                        yield Finding(page, number, f"there is no {path}")


_LATER = re.compile(r"\b(TODO|FIXME)\b")
_KIND = re.compile(r"TODO\((perf|cleanup|limit)\): \S")


def check_comments(tree):
    for file in tree.files:
        name = pathlib.PurePath(file).name
        if file.startswith("tests/lint/"):  # Speaks of the word itself.
            continue
        if not (name.endswith(COMMENTED) or name in ("CMakeLists.txt", "dev")
                or file.startswith(".ci/")):
            continue
        for number, line in enumerate(tree.lines(file), 1):
            for match in _LATER.finditer(line):
                if not _KIND.match(line, match.start()):
                    yield Finding(file, number, f"{match[1]} says neither its kind nor what: write "
                                                "TODO(perf|cleanup|limit): what, and when it "
                                                "matters")


# Version 14 is what the sources are formatted by; others break lines elsewhere.
CLANG_FORMATS = ("clang-format-14", "clang-format")


def check_format(tree, fix=False):
    program = next(filter(None, map(shutil.which, CLANG_FORMATS)), None)
    files = tree.named(*CPP)
    if program is None:
        yield Finding(".clang-format", 1, f"there is no {CLANG_FORMATS[0]} on this machine")
        return
    if not files:
        return
    mode = ["-i"] if fix else ["--dry-run", "-Werror", "--ferror-limit=1"]
    ran = subprocess.run([program, *mode, *files], cwd=tree.root, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
    found = False
    for match in re.finditer(r"^(.+?):(\d+):\d+: error: .*$", ran.stdout, re.M):
        found = True
        yield Finding(match[1], int(match[2]), "not formatted: run ./dev format")
    if ran.returncode != 0 and not found:
        yield Finding(".clang-format", 1, f"{program} failed: {ran.stdout.strip()}")


class TidyCache:
    """Remembers which files were clean, by everything that could change the verdict: the program,
    its configuration, the compile command, the file, and our headers and .proto files below it.
    System headers are not hashed; they change with the release that brings the program, too."""

    KEEP_SECONDS = 30 * 86400

    def __init__(self, folder, tree, program):
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tree = tree
        self._digests = {}
        version = subprocess.run([program, "--version"], stdout=subprocess.PIPE).stdout
        self._base = hashlib.sha256(version)
        if ".clang-tidy" in tree.files:
            self._base.update((tree.root / ".clang-tidy").read_bytes())

    def key(self, file, command):
        digest = self._base.copy()
        digest.update(json.dumps([file, command]).encode())
        for name in self._reach(file):
            digest.update(f"{name} {self._digest(name)}\n".encode())
        return digest.hexdigest()

    def is_clean(self, key):
        entry = self._folder / key
        if not entry.exists():
            return False
        entry.touch()
        return True

    def set_clean(self, key):
        (self._folder / key).touch()

    def prune(self):
        oldest = time.time() - self.KEEP_SECONDS
        for entry in self._folder.iterdir():
            if entry.stat().st_mtime < oldest:
                entry.unlink()

    def _reach(self, file):
        """`file` and what it includes of ours, over all steps."""
        seen, waiting = set(), [file]
        while waiting:
            name = waiting.pop()
            if name in seen or not (self._tree.root / name).is_file():
                continue
            seen.add(name)
            if not name.endswith(CPP):
                continue
            for _, _, path in includes_of(self._tree, name):
                waiting.append(re.sub(r"(\.grpc)?\.pb\.h$", ".proto", path))
        return sorted(seen)

    def _digest(self, name):
        if name not in self._digests:
            content = (self._tree.root / name).read_bytes()
            self._digests[name] = hashlib.sha256(content).hexdigest()
        return self._digests[name]


def check_tidy(tree, build, jobs, program="clang-tidy", report=print):
    """Runs clang-tidy by the compile commands of `build`. What has none is for `sources`."""
    build = tree.root / build
    database = build / "compile_commands.json"
    if shutil.which(program) is None:
        yield Finding(".clang-tidy", 1, f"there is no {program} on this machine")
        return
    if not database.is_file():
        yield Finding(".clang-tidy", 1, f"{database} is missing: configure the build first")
        return
    commands = {}
    for entry in json.loads(database.read_text()):
        path = pathlib.Path(entry["directory"], entry["file"])
        commands[os.path.relpath(path, tree.root)] = entry.get("command") or entry["arguments"]

    cache = TidyCache(build.parent / "lint-cache", tree, program)
    keys = {}
    for file in tree.named(".cc"):
        if file in commands and file.split("/", 1)[0] in TIDIED:
            key = cache.key(file, commands[file])
            if not cache.is_clean(key):
                keys[file] = key
    report(f"clang-tidy: {len(keys)} new or changed")

    def run(file):
        # Thread-safety annotations are checked by Clang only, and this is a GCC build's database.
        return subprocess.run(
            [program, "-p", str(build), "--quiet", "--extra-arg=-Wno-unknown-warning-option",
             "--extra-arg=-Wthread-safety", str(tree.root / file)],
            cwd=tree.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        for file, ran in zip(keys, pool.map(run, keys)):
            found = False
            for match in re.finditer(r"^(/[^:\n]+):(\d+):\d+: (?:error|warning): (.*)$", ran.stdout,
                                     re.M):
                found = True
                yield Finding(os.path.relpath(match[1], tree.root), int(match[2]),
                              match[3].replace(",-warnings-as-errors]", "]"))
            if ran.returncode != 0 and not found:
                yield Finding(file, 1, f"{program} failed: {(ran.stdout + ran.stderr).strip()}")
            if ran.returncode == 0 and not found:
                cache.set_clean(keys[file])
    cache.prune()


def main(arguments=None):
    here = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=here, type=pathlib.Path)
    parser.add_argument("--build", default="build/release", help="whose compile commands tidy uses")
    parser.add_argument("--jobs", default=os.cpu_count(), type=int)
    parser.add_argument("--only", action="append", default=[], help="a rule; may be repeated")
    parser.add_argument("--skip", action="append", default=[], help="a rule; may be repeated")
    parser.add_argument("--fix", action="store_true", help="`format` rewrites the files")
    options = parser.parse_args(arguments)

    tree = Tree(options.root)
    rules = {
        "format": lambda: check_format(tree, options.fix),
        "includes": lambda: check_includes(tree),
        "sources": lambda: check_sources(tree),
        "readmes": lambda: check_readmes(tree),
        "prose": lambda: check_prose(tree),
        "comments": lambda: check_comments(tree),
        "tidy": lambda: check_tidy(tree, options.build, options.jobs),
    }
    for name in options.only + options.skip:
        if name not in rules:
            parser.error(f"no rule {name!r}; there are {', '.join(rules)}")
    findings = set()  # A header's finding comes from every source that includes it.
    for name, rule in rules.items():
        if name in options.skip or (options.only and name not in options.only):
            continue
        for finding in rule():
            if finding not in findings:
                findings.add(finding)
                print(f"{finding} [{name}]", flush=True)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
