#!/usr/bin/env python3
"""Small made-up trees that must go red, rule by rule, beside their like that must not."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lint  # pylint: disable=wrong-import-position


class LintTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name).resolve()

    def write(self, name, content=""):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def tree(self, files=None):
        for name, content in (files or {}).items():
            self.write(name, content)
        return lint.Tree(self.root)

    def found(self, rule, files, *arguments):
        """Where `rule` finds something, as file:line."""
        return [f"{f.file}:{f.line}" for f in rule(self.tree(files), *arguments)]

    def text(self, rule, files):
        return " ".join(f.text for f in rule(self.tree(files)))


class TreeTest(LintTest):
    def test_takes_tracked_and_new_files_but_neither_ignored_nor_deleted_ones(self):
        subprocess.run(["git", "init", "-q", str(self.root)], check=True)
        for name in ("tracked.cc", "deleted.cc"):
            self.write(name)
        subprocess.run(["git", "-C", str(self.root), "add", "."], check=True)
        (self.root / "deleted.cc").unlink()

        tree = self.tree({"new.cc": "", "build/made.cc": "", ".gitignore": "/build/\n"})

        self.assertEqual(tree.named(".cc"), ["new.cc", "tracked.cc"])


class IncludesTest(LintTest):
    def includes(self, file, *headers):
        text = "".join(f"#include {h if h[0] == '<' else chr(34) + h + chr(34)}\n" for h in headers)
        found = self.found(lint.check_includes, {file: text})
        (self.root / file).unlink()  # The next call is about another file.
        return found

    def test_each_arrow_that_is_not_drawn_is_red(self):
        folders = ("proto", "policy", "tiers", "cuda", "daemon", "client", "bench", "tests")
        drawn = {
            "proto/types": {"proto/types"},
            "proto": {"proto", "proto/types"},
            "policy": {"policy", "proto/types"},
            "tiers": {"tiers", "proto/types"},
            "cuda": {"cuda", "proto/types"},
            "client": {"client", "proto", "proto/types"},
            "daemon": {"daemon", "policy", "tiers", "cuda", "proto", "proto/types"},
            "bench": {*folders, "proto/types"} - {"tests"},
            "tests": {*folders, "proto/types"},
        }
        for folder, allowed in drawn.items():
            for target in drawn:
                with self.subTest(folder=folder, target=target):
                    expected = [] if target in allowed else [f"{folder}/a.cc:1"]
                    self.assertEqual(self.includes(f"{folder}/a.cc", f"{target}/b.h"), expected)

    def test_the_finding_names_the_line_and_both_folders(self):
        (finding,) = lint.check_includes(self.tree(
            {"tiers/a.h": '#pragma once\n\n  #  include "policy/eviction.h"\n'}))

        self.assertEqual((finding.file, finding.line), ("tiers/a.h", 3))
        self.assertIn("tiers must not know policy", finding.text)

    def test_angle_brackets_cross_arrows_no_better(self):
        self.assertEqual(self.includes("tiers/a.cc", "<policy/eviction.h>"), ["tiers/a.cc:1"])

    def test_foreign_folders_and_comments_are_no_arrows(self):
        self.assertEqual(self.found(lint.check_includes, {
            "policy/a.cc": '// #include "tiers/b.h"\n#include "absl/types/span.h"\n#include <map>\n'
        }), [])

    def test_our_own_headers_are_named_from_the_root(self):
        self.write("tiers/b.h")

        self.assertEqual(self.includes("tiers/a.cc", "b.h"), ["tiers/a.cc:1"])
        self.assertEqual(self.includes("tiers/a.cc", "../tiers/b.h"), ["tiers/a.cc:1"])
        self.assertEqual(self.includes("tiers/a.cc", "tiers/b.h"), [])

    def test_grpc_is_included_at_the_ends_of_the_wire_only(self):
        for header in ("grpcpp/grpcpp.h", "<grpc/grpc.h>", "proto/kvd.grpc.pb.h"):
            for file in ("daemon/service.h", "daemon/service_test_support.cc", "daemon/admin.cc",
                         "client/client.cc", "client/kvctl/main.cc", "tests/a.cc", "bench/a.cc"):
                with self.subTest(header=header, file=file):
                    self.assertEqual(self.includes(file, header), [])
            for file in ("daemon/control.cc", "daemon/main.cc"):
                with self.subTest(header=header, file=file):
                    self.assertEqual(self.includes(file, header), [f"{file}:1"])

    def test_messages_stop_at_the_service(self):
        self.assertEqual(self.includes("daemon/control.h", "proto/kvd.pb.h"),
                         ["daemon/control.h:1"])
        self.assertEqual(self.includes("proto/types/block.h", "google/protobuf/message.h"),
                         ["proto/types/block.h:1"])
        self.assertEqual(self.includes("proto/limits.cc", "proto/kvd.pb.h"), [])
        self.assertEqual(self.includes("daemon/service.cc", "proto/kvd.pb.h"), [])

    def test_libraries_of_one_place_are_red_elsewhere(self):
        for header, home in (("<liburing.h>", "tiers/uring_device.cc"),
                             ("<liburing.h>", "bench/uring_floor.cc"),
                             ("<zmq.h>", "daemon/event_publisher.cc"),
                             ("rocksdb/db.h", "tiers/rocks_index.h"),
                             ("<cuda_runtime.h>", "cuda/cuda_copier.cc"),
                             ("<cuda.h>", "cuda/gather.cu")):
            for other in ("tiers/dram_tier.cc", "cuda/copier.h", "daemon/service.cc", "tests/a.cc"):
                with self.subTest(header=header, other=other):
                    self.assertEqual(self.includes(home, header), [])
                    self.assertEqual(self.includes(other, header), [f"{other}:1"])

    def test_a_policy_neither_locks_nor_logs(self):
        for header in ("<mutex>", "<thread>", "<iostream>", "spdlog/spdlog.h",
                       "absl/synchronization/mutex.h", "absl/time/clock.h"):
            with self.subTest(header=header):
                self.assertEqual(self.includes("policy/lru.cc", header), ["policy/lru.cc:1"])
                self.assertEqual(self.includes("daemon/control.cc", header), [])
        self.assertEqual(self.includes("policy/lru.cc", "absl/time/time.h", "<random>"), [])


class SourcesTest(LintTest):
    def test_a_source_that_no_listing_names_is_red(self):
        self.assertEqual(self.found(lint.check_sources, {
            "tiers/CMakeLists.txt": "kvd_library(kvd_tiers\n  SRCS a.cc sub/c.cc)\n",
            "tiers/a.cc": "", "tiers/b.cc": "", "tiers/sub/c.cc": ""}), ["tiers/b.cc:1"])

    def test_a_name_in_a_comment_or_within_another_name_does_not_count(self):
        self.assertEqual(self.found(lint.check_sources, {
            "tiers/CMakeLists.txt": "# a.cc\nkvd_library(kvd_tiers SRCS not_a.cc)\n",
            "tiers/a.cc": ""}), ["tiers/a.cc:1"])

    def test_the_same_name_in_another_folder_does_not_count(self):
        self.assertEqual(self.found(lint.check_sources, {
            "tiers/CMakeLists.txt": "", "cuda/CMakeLists.txt": "kvd_library(kvd_cuda SRCS a.cc)\n",
            "tiers/a.cc": "", "cuda/a.cc": ""}), ["tiers/a.cc:1"])

    def test_a_name_from_the_root_counts_anywhere(self):
        self.assertEqual(self.found(lint.check_sources, {
            "tests/CMakeLists.txt": "kvd_binary(x SRCS ${PROJECT_SOURCE_DIR}/bench/a.cc)\n",
            "bench/a.cc": ""}), [])

    def test_a_library_header_outside_every_file_set_is_red(self):
        self.assertEqual(self.found(lint.check_sources, {
            "tiers/CMakeLists.txt": "kvd_library(kvd_tiers HDRS a.h)\n", "tests/CMakeLists.txt": "",
            "tiers/a.h": "", "tiers/b.h": "", "tests/fake.h": "", "client/kvctl/table.h": ""}),
            ["tiers/b.h:1"])


class ReadmesTest(LintTest):
    def test_a_folder_without_its_page_is_red(self):
        self.assertEqual(self.found(lint.check_readmes, {
            "tiers/a.cc": "", "daemon/README.md": "", "daemon/main.cc": "", ".ci/run": "",
            "top": ""}), ["tiers/README.md:1"])


class ProseTest(LintTest):
    DEV = {"dev": "./dev COMMAND\n\n  run [args]   start\n  docs         write\n"}

    def prose(self, text, files=()):
        return self.found(lint.check_prose, {
            **self.DEV, **dict.fromkeys(files, ""), "tiers/README.md": text,
            "tiers/arena.h": "", "tests/e2e/a.cc": "", "SECURITY.md": "# How to audit, and why\n"})

    def test_links_count_from_the_page_and_must_lead_somewhere(self):
        self.assertEqual(self.prose("[a](arena.h) [b](../SECURITY.md) [c](../tests/e2e)\n"
                                    "[d](https://example.org/nowhere.md) [e](#here)\n## Here\n"), [])
        self.assertEqual(self.prose("good\n[a](SECURITY.md)"), ["tiers/README.md:2"])

    def test_an_anchor_must_be_a_heading(self):
        self.assertEqual(self.prose("[a](../SECURITY.md#how-to-audit-and-why)"), [])
        self.assertEqual(self.prose("[a](../SECURITY.md#how)\n[b](#there)"),
                         ["tiers/README.md:1", "tiers/README.md:2"])

    def test_files_that_prose_names_must_be_there(self):
        self.assertEqual(self.prose("`arena.h` `tiers/arena.h` `../SECURITY.md` `tests/e2e/` `a.cc`"),
                         [])
        self.assertEqual(self.prose("`arena.{h,cc}`\n`tiers/gone.h`\n`gone.h`\n`tests/gone/`\n"
                                    "`../arena.h`"),
                         [f"tiers/README.md:{n}" for n in (1, 2, 3, 4, 5)])

    def test_what_is_no_file_of_ours_does_not_count(self):
        self.assertEqual(self.prose("`PATH.admin` `build/package/*.deb` `build/x/` `kvd.toml`\n"
                                    "    gone/x.h\n```\n`gone.h`\n```\n`.proto` `a/b.cc` `x.y()`\n"),
                         [])

    def test_commands_of_dev_must_be_there_also_in_code(self):
        self.assertEqual(self.prose("`./dev run`, ./dev help\n\n    ./dev docs\n"), [])
        self.assertEqual(self.prose("`./dev rum`\n\n    ./dev doc\n```\n./dev gone\n```\n"),
                         [f"tiers/README.md:{n}" for n in (1, 3, 5)])


class CommentsTest(LintTest):
    def test_only_a_todo_with_its_kind_and_text_is_green(self):
        lines = ["// TODO(perf): batch these once there are ten",
                 "// TODO: later",
                 "// TODO(somebody): later",
                 "// TODO(limit):",
                 "int x;  // FIXME",
                 "MY_TODO_LIST"]
        self.assertEqual(self.found(lint.check_comments, {"tiers/a.cc": "\n".join(lines)}),
                         [f"tiers/a.cc:{n}" for n in (2, 3, 4, 5)])

    def test_every_kind_of_source_is_read_but_prose_is_not(self):
        self.assertEqual(self.found(lint.check_comments, {
            name: "TODO\n" for name in ("CMakeLists.txt", "dev", ".ci/run", "proto/kvd.proto",
                                        "client/a.py", "README.md")}),
            [".ci/run:1", "CMakeLists.txt:1", "client/a.py:1", "dev:1", "proto/kvd.proto:1"])


class FormatTest(LintTest):
    def test_a_file_that_clang_format_would_change_is_red_until_fixed(self):
        if not any(map(shutil.which, lint.CLANG_FORMATS)):
            self.skipTest("no clang-format here")
        files = {".clang-format": "BasedOnStyle: Google\n", "a.cc": "int x;\n",
                 "b.cc": "int   x;\n"}
        self.assertEqual(self.found(lint.check_format, files), ["b.cc:1"])
        self.assertEqual(self.found(lint.check_format, {}, True), [])
        self.assertEqual(self.found(lint.check_format, {}), [])

    def test_a_machine_without_clang_format_is_red(self):
        programs, lint.CLANG_FORMATS = lint.CLANG_FORMATS, ("no-such-clang-format",)
        try:
            self.assertEqual(self.found(lint.check_format, {"a.cc": ""}), [".clang-format:1"])
        finally:
            lint.CLANG_FORMATS = programs


class TidyTest(LintTest):
    """With a stand-in for clang-tidy that dislikes the word `bad` and keeps a list of its runs."""

    def setUp(self):
        super().setUp()
        self.runs = self.root / "runs"
        self.program = self.write("tidy", f"""#!/bin/sh
[ "$1" = --version ] && echo 1 && exit
for file; do :; done
echo "${{file##*/}}" >> {self.runs}
grep -n bad "$file" | sed "s|^\\([0-9]*\\):.*|$file:\\1:1: error: bad word [word]|"
! grep -q bad "$file"
""")
        self.program.chmod(0o755)
        self.write("tiers/a.h", "")
        self.write("proto/kvd.proto", "")
        self.write("tiers/a.cc", '#include "tiers/a.h"\n')
        self.write("client/b.cc", '#include "client/b.h"\n')
        self.write("client/b.h", '#include "proto/kvd.pb.h"\n')
        self.write("bench/c.cc", "bad\n")
        self.commands("-O2")

    def commands(self, flags):
        self.write("build/release/compile_commands.json", json.dumps([
            {"directory": str(self.root / "build/release"), "file": str(self.root / file),
             "command": f"c++ {flags} {file}"}
            for file in ("tiers/a.cc", "client/b.cc", "bench/c.cc")]))

    def tidy(self):
        """Returns (findings, files that were run)."""
        self.runs.write_text("")
        findings = list(lint.check_tidy(self.tree(), "build/release", 2, str(self.program),
                                        report=lambda line: None))
        return [f"{f.file}:{f.line}" for f in findings], sorted(self.runs.read_text().split())

    def test_a_clean_file_is_run_once(self):
        self.assertEqual(self.tidy(), ([], ["a.cc", "b.cc"]))
        self.assertEqual(self.tidy(), ([], []))

    def test_a_file_with_a_finding_is_run_until_it_is_clean(self):
        self.write("tiers/a.cc", "fine\nbad\n")
        self.assertEqual(self.tidy(), (["tiers/a.cc:2"], ["a.cc", "b.cc"]))
        self.assertEqual(self.tidy(), (["tiers/a.cc:2"], ["a.cc"]))

    def test_a_change_below_a_file_runs_it_again(self):
        for changed, run in (("tiers/a.h", ["a.cc"]), ("client/b.h", ["b.cc"]),
                             ("proto/kvd.proto", ["b.cc"]), (".clang-tidy", ["a.cc", "b.cc"])):
            with self.subTest(changed=changed):
                self.tidy()
                self.write(changed, f"{(self.root / 'runs').stat().st_mtime_ns}\n"
                           + ('#include "proto/kvd.pb.h"\n' if changed == "client/b.h" else ""))
                self.assertEqual(self.tidy(), ([], run))

    def test_another_compile_command_runs_it_again(self):
        self.tidy()
        self.commands("-O3")
        self.assertEqual(self.tidy(), ([], ["a.cc", "b.cc"]))

    def test_a_crash_of_the_program_is_red(self):
        self.write("tidy", "#!/bin/sh\n[ \"$1\" = --version ] || exit 3\n")
        self.assertEqual(self.tidy()[0], ["tiers/a.cc:1", "client/b.cc:1"][::-1])

    def test_a_build_that_was_never_configured_is_red(self):
        (self.root / "build/release/compile_commands.json").unlink()
        self.assertEqual(self.tidy()[0], [".clang-tidy:1"])


class MainTest(LintTest):
    def lint(self, *arguments):
        ran = subprocess.run([sys.executable, "-B", lint.__file__, "--root", str(self.root),
                              *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
        return ran.returncode, ran.stdout

    def test_prints_file_line_and_sentence_and_fails(self):
        self.tree({"tiers/README.md": "", "tiers/a.h": '#include "daemon/b.h"\n',
                   "tiers/CMakeLists.txt": "HDRS a.h"})
        status, output = self.lint("--skip", "tidy", "--skip", "format")
        self.assertEqual(status, 1)
        self.assertRegex(output, r'^tiers/a\.h:1: tiers must not know daemon: .*\n$')

    def test_a_clean_tree_is_green_and_silent(self):
        self.tree({"tiers/README.md": ""})
        self.assertEqual(self.lint("--skip", "tidy", "--skip", "format"), (0, ""))

    def test_an_unknown_rule_is_refused(self):
        self.assertEqual(self.lint("--only", "spelling")[0], 2)


if __name__ == "__main__":
    unittest.main()
