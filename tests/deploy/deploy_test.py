"""What deploy/ promises to a monitor: promtool accepts it, and a real Prometheus that scrapes a
real daemon under load has data for every panel of the dashboard and sees alerts fire and clear.

    deploy_test.py KVD KVD_BENCH KVCTL

Ports are whatever is free; every wait asks again until it is answered or its time is over.
"""

import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/kvd.rules.yml"
RULES_TEST = ROOT / "deploy/prometheus/kvd.rules.test.yml"
RUNBOOK = ROOT / "deploy/RUNBOOK.md"
METRICS = ROOT / "deploy/METRICS.md"
DASHBOARD = ROOT / "deploy/grafana/kvd.json"
TRACE = ROOT / "bench/traces/mooncake_conversation.kvtrace"

KVD = KVD_BENCH = KVCTL = None  # Set by main().
PATIENCE = 40.0  # Seconds, of one wait.


def run(*command, **options):
    return subprocess.run([str(c) for c in command], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=60, **options)


def panels():
    """Panels that show something, rows left out."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [p for p in dashboard["panels"] if p["type"] != "row"]


def alerts():
    return re.findall(r"^ *- alert: (\w+)$", RULES.read_text(), re.MULTILINE)


def metric_names(expression):
    return set(re.findall(r"\b(?:kvd|process)_[a-z0-9_]+\b", expression))


def get(url, timeout=5):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


class FilesTest(unittest.TestCase):
    """What can be said without starting anything."""

    def test_promtool_accepts_the_rules(self):
        done = run("promtool", "check", "rules", RULES)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_every_alert_fires_and_clears(self):
        done = run("promtool", "test", "rules", RULES_TEST.name, cwd=RULES_TEST.parent)
        self.assertEqual(done.returncode, 0, done.stdout)
        tested = RULES_TEST.read_text()
        for alert in alerts():
            self.assertIn(f'alertname="{alert}"', tested)
            section = tested.split(f"- name: {alert}\n")[1].split("- name:")[0]
            self.assertIn("exp_samples: []", section, f"{alert} is not shown to clear")

    def test_every_alert_has_its_page_in_the_run_book(self):
        sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK.read_text(),
                                   re.MULTILINE | re.DOTALL))
        self.assertEqual(set(sections), set(alerts()))
        for alert, text in sections.items():
            for part in ("**Means:**", "**Look:**", "**Do:**"):
                self.assertIn(part, text, alert)
        for alert, url in re.findall(r"- alert: (\w+)\n.*?runbook_url: \"([^\"]+)\"",
                                     RULES.read_text(), re.DOTALL):
            self.assertEqual(url, f"deploy/RUNBOOK.md#{alert.lower()}")

    def test_the_dashboard_has_its_rows_and_variables(self):
        dashboard = json.loads(DASHBOARD.read_text())
        self.assertEqual([p["title"] for p in dashboard["panels"] if p["type"] == "row"],
                         ["Value", "Tiers", "NVMe", "Latency", "Eviction", "Tenants", "Errors"])
        self.assertEqual([v["name"] for v in dashboard["templating"]["list"]],
                         ["datasource", "instance", "tenant"])
        numbers = [p["id"] for p in dashboard["panels"]]
        self.assertEqual(len(numbers), len(set(numbers)))
        for panel in panels():
            self.assertTrue(panel["description"], panel["title"])


class Daemon:
    """A kvd with metrics and all its tiers, in folders of its own."""

    def __init__(self, *arguments):
        self.folder = tempfile.TemporaryDirectory(prefix="kvd-deploy-")
        self.memory = tempfile.TemporaryDirectory(prefix="kvd-deploy-", dir="/dev/shm")
        self.endpoint = f"unix:{self.folder.name}/kvd"
        self.log = open(f"{self.folder.name}/log", "w+")
        self.process = subprocess.Popen(
            [KVD, "--listen", self.endpoint, "--dram", "16MiB", "--metrics", "127.0.0.1:0",
             "--data", f"{self.folder.name}/data", "--arena-directory", self.memory.name,
             "--nvme", f"{self.folder.name}/nvme:64MiB", "--nvme-write-budget", "1TiB",
             "--events", f"ipc://{self.folder.name}/events", *arguments],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.ready = self.process.stdout.readline().strip()
        match = re.search(r" metrics=(\S+)", self.ready)
        if match is None:
            self.log.seek(0)
            raise RuntimeError(f"it said {self.ready!r} and {self.log.read()}")
        self.address = match[1]

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        status = self.process.wait(timeout=30)
        self.process.stdout.close()
        self.log.close()
        self.folder.cleanup()
        self.memory.cleanup()
        return status


class CommandLineTest(unittest.TestCase):

    def refuse(self, *arguments):
        with tempfile.TemporaryDirectory(prefix="kvd-deploy-") as folder:
            return run(KVD, "--listen", f"unix:{folder}/kvd", "--dram", "16MiB", *arguments)

    def test_the_ready_line_and_the_status_name_the_port_and_promtool_accepts_the_page(self):
        daemon = Daemon()
        try:
            status = run(KVCTL, "--endpoint", daemon.endpoint, "status", "-o", "json")
            self.assertIn(f'"{daemon.address}"', status.stdout)
            page = get(f"http://{daemon.address}/metrics")
            self.assertEqual(get(f"http://{daemon.address}/healthz"), "ok\n")
            self.assertEqual(get(f"http://{daemon.address}/readyz"), "ready\n")
        finally:
            self.assertEqual(daemon.stop(), 0)
        scraped = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
        listed = set(re.findall(r"^\| `(\w+)`", METRICS.read_text(), re.MULTILINE))
        self.assertEqual(scraped, listed, "deploy/METRICS.md")
        done = run("promtool", "check", "metrics", input=page)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(done.stdout, "")

    def test_a_port_in_use_is_named(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            done = self.refuse("--metrics", address)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn(f"cannot listen at {address}", done.stdout)
        self.assertIn("Address already in use", done.stdout)

    def test_mistakes_in_the_address_are_named(self):
        for address, why in (("127.0.0.1", ":PORT"), ("127.0.0.1:65536", ":PORT"),
                             ("no-such-host.invalid:9464", "no-such-host.invalid"),
                             ("0.0.0.0:0", "beyond.loopback")):
            done = self.refuse("--metrics", address)
            self.assertEqual(done.returncode, 2, done.stdout)
            self.assertRegex(done.stdout, why)

    def test_operations_are_not_counted_when_that_is_off(self):
        daemon = Daemon("--no-operation-metrics")
        try:
            page = get(f"http://{daemon.address}/metrics")
        finally:
            daemon.stop()
        self.assertNotIn("kvd_op_duration_seconds", page)
        self.assertIn("kvd_op_answers_total", page)


class Prometheus:
    """A Prometheus of our own that scrapes one address, with the rules in a hurry."""

    def __init__(self, target):
        self.folder = tempfile.TemporaryDirectory(prefix="kvd-prometheus-")
        folder = pathlib.Path(self.folder.name)
        rules = re.sub(r"\[\d+m\]", "[5s]", RULES.read_text())
        rules = re.sub(r"\bfor: \d+[mh]", "for: 1s", rules)
        (folder / "rules.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 500ms}\n"
            "rule_files: [rules.yml]\n"
            "scrape_configs:\n"
            "  - job_name: kvd\n"
            f"    static_configs: [{{targets: ['{target}']}}]\n")
        checked = run("promtool", "check", "config", folder / "prometheus.yml")
        if checked.returncode != 0:
            raise RuntimeError(checked.stdout)
        self.log = open(folder / "log", "w+")
        for _ in range(5):  # Somebody may take the free port before Prometheus does.
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={folder}/prometheus.yml",
                 f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
                stdout=self.log, stderr=subprocess.STDOUT)
            if self._came_up():
                return
        self.log.seek(0)
        raise RuntimeError(f"Prometheus does not start: {self.log.read()[-2000:]}")

    def _came_up(self):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                get(f"{self.url}/-/ready")
                return True
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        return False

    def query(self, expression):
        """The values that are numbers."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            answer = json.loads(get(f"{self.url}/api/v1/query?{query}"))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if value == value]

    def firing(self, alert):
        return bool(self.query(f'ALERTS{{alertname="{alert}",alertstate="firing"}}'))

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()
        self.folder.cleanup()


class Load:
    """Replays a trace against a daemon, again and again, until it is stopped."""

    def __init__(self, endpoint, *arguments):
        self.command = [KVD_BENCH, "replay", "--trace", str(TRACE), "--daemon", endpoint, "--json",
                        *arguments]
        self.over = threading.Event()
        self.process = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while not self.over.is_set():
            self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL)
            if self.over.is_set():
                self.process.kill()
            self.process.wait()

    def stop(self):
        self.over.set()
        if self.process is not None:
            self.process.kill()
        self.thread.join(timeout=30)


class Intruder:
    """Calls a daemon without a session that it knows."""

    def __init__(self, endpoint):
        import grpc  # python3-grpcio
        self.over = threading.Event()
        self.refused = grpc.StatusCode.UNAUTHENTICATED
        self.error = grpc.RpcError
        self.channel = grpc.insecure_channel(endpoint)
        # Bytes as they are: field 1, the session, of 16 bytes.
        self.lookup = self.channel.unary_unary("/kvd.v1.Engine/Lookup")
        self.wrong = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while not self.over.wait(0.05):
            try:
                self.lookup(b"\x0a\x10" + b"x" * 16, timeout=10)
                self.wrong.append("answered")
            except self.error as error:
                if error.code() != self.refused:
                    self.wrong.append(error.code())

    def stop(self):
        self.over.set()
        self.thread.join(timeout=30)
        self.channel.close()


class LiveTest(unittest.TestCase):
    """A real Prometheus beside a real daemon that works."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon()
        cls.addClassCleanup(cls.daemon.stop)
        cls.prometheus = Prometheus(cls.daemon.address)
        cls.addClassCleanup(cls.prometheus.stop)
        cls.load = Load(cls.daemon.endpoint, "--limit", "2000", "--clients", "2")
        cls.addClassCleanup(cls.load.stop)

    def wait(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"not within {PATIENCE} s: {what}")
            time.sleep(0.1)  # Between two questions.

    def fires(self, alert):
        self.wait(lambda: self.prometheus.firing(alert), f"{alert} fires")

    def clears(self, alert):
        self.wait(lambda: not self.prometheus.firing(alert), f"{alert} clears")

    def test_every_panel_has_data_and_intruders_are_told(self):
        intruder = Intruder(self.daemon.endpoint)  # Error panels have data only if there are any.
        try:
            waiting = {}
            for panel in panels():
                for target in panel["targets"]:
                    expression = target["expr"]
                    for name, value in (("$__rate_interval", "5s"), ("$__range", "30s"),
                                        ("$instance", ".*"), ("$tenant", ".*")):
                        expression = expression.replace(name, value)
                    self.assertNotIn("$", expression, panel["title"])
                    waiting[(panel["title"], target["refId"])] = expression
            self.assertGreater(len(waiting), 30)

            def answered():
                for key in [k for k, e in waiting.items() if self.prometheus.query(e)]:
                    del waiting[key]
                return not waiting

            deadline = time.monotonic() + PATIENCE
            while not answered():
                self.assertLess(time.monotonic(), deadline, f"no data: {waiting}")
                time.sleep(0.2)
            self.fires("KvdAuthFailures")
        finally:
            intruder.stop()
        self.assertEqual(intruder.wrong, [])
        self.clears("KvdAuthFailures")

    def test_puts_without_room_are_told(self):
        holder = Load(self.daemon.endpoint, "--hold-leases", "--limit", "3000")
        try:
            self.fires("KvdNoRoom")
        finally:
            holder.stop()
        self.clears("KvdNoRoom")

    def test_a_daemon_that_does_not_answer_is_told(self):
        self.wait(lambda: self.prometheus.query('up{job="kvd"}') == [1.0], "it is up")
        self.daemon.process.send_signal(signal.SIGSTOP)
        try:
            self.fires("KvdDown")
        finally:
            self.daemon.process.send_signal(signal.SIGCONT)
        self.clears("KvdDown")

    def test_rules_and_dashboard_name_only_what_is_scraped(self):
        self.wait(lambda: self.prometheus.query("kvd_build_info"), "the first scrape")
        page = get(f"http://{self.daemon.address}/metrics")
        shown = set(re.findall(r"^([a-z0-9_]+)[{ ]", page, re.MULTILINE))
        asked = set().union(*(metric_names(target["expr"]) for panel in panels()
                              for target in panel["targets"]))
        for expression in re.findall(r"expr: (.*?)\n(?=        \w|      -)", RULES.read_text(),
                                     re.DOTALL):
            asked |= metric_names(expression)
        self.assertEqual(asked - shown, set())


def main():
    global KVD, KVD_BENCH, KVCTL
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    KVD, KVD_BENCH, KVCTL = sys.argv[1:4]
    for program in ("promtool", "prometheus"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed: the package prometheus has it")
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]], verbosity=2)


if __name__ == "__main__":
    main()
