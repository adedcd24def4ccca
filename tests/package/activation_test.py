#!/usr/bin/env python3
"""A daemon under a service manager: sockets that were bound for it, and what it tells about itself.

activation_test.py KVD C_API_PROGRAM FIRST_STEPS KVCTL SYSTEMD_SOCKET_ACTIVATE

C_API_PROGRAM puts, finds, gets and reads in place by shared memory, over two sockets of the engines;
FIRST_STEPS puts and gets by the stream, over the third.
"""

import contextlib
import os
import pathlib
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import unittest

KVD, PROGRAM, FIRST_STEPS, KVCTL, ACTIVATE = sys.argv[1:6]
PATIENCE_S = 60
FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


class ActivationTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvd-activation-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.path = str(self.folder / "kvd.sock")
        self.endpoint = f"unix:{self.path}"
        self.arguments = [KVD, "--listen", self.endpoint, "--dram", "64MiB"]

    def listen(self, suffix="", kind=socket.SOCK_STREAM, path=None):
        listener = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(listener.close)
        listener.bind(path or self.path + suffix)
        listener.listen(16)
        return listener

    def notify_socket(self):
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(notify.close)
        notify.bind(str(self.folder / "notify"))
        notify.settimeout(PATIENCE_S)
        return notify

    def start(self, listeners=(), **environment):
        """The daemon as systemd would start it: LISTEN_PID is its own, the sockets are 3, 4, ..."""
        def become():
            # The descriptors may lie where others are to go: out of the way first.
            high = [os.dup2(l.fileno(), 100 + i) for i, l in enumerate(listeners)]
            for i, fd in enumerate(high):
                os.dup2(fd, FIRST_DESCRIPTOR + i)
        command = self.arguments
        if listeners:
            # A shell that replaces itself: its own process number is that of the daemon.
            command = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$0" "$@"', *command]
            environment["LISTEN_FDS"] = str(len(listeners))
        environment = {**os.environ, **environment}
        daemon = subprocess.Popen(command, env=environment, preexec_fn=become, close_fds=False,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.end, daemon)
        return daemon

    @staticmethod
    def end(daemon):
        with contextlib.suppress(ProcessLookupError):
            daemon.kill()
        daemon.wait(PATIENCE_S)
        daemon.stdout.close()
        daemon.stderr.close()

    def until_ready(self, daemon):
        self.assertTrue(select.select([daemon.stdout], [], [], PATIENCE_S)[0], "it says nothing")
        line = daemon.stdout.readline()
        self.assertRegex(line, "^kvd ready", daemon.stderr.read() if not line else "")

    def put_and_get(self):
        ran = subprocess.run([PROGRAM, self.endpoint], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertTrue(ran.stdout.startswith("good "))

    def put_and_get_by_stream(self):
        ran = subprocess.run([FIRST_STEPS, f"stream:{self.endpoint}"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        self.assertIn("got 2 equal", ran.stdout)

    def status(self):
        ran = subprocess.run([KVCTL, "--endpoint", self.endpoint, "status"], timeout=PATIENCE_S,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        return ran.stdout

    def refused(self, daemon):
        _, errors = daemon.communicate(timeout=PATIENCE_S)
        self.assertEqual(daemon.returncode, 1, errors)
        return errors

    def test_serves_the_sockets_that_were_passed_and_leaves_them_to_their_owner(self):
        listeners = [self.listen(), self.listen(".session", socket.SOCK_SEQPACKET),
                     self.listen(".stream"), self.listen(".admin")]
        for suffix in ("", ".session", ".stream", ".admin"):
            os.chmod(self.path + suffix, 0o640)
        daemon = self.start(listeners)
        self.until_ready(daemon)

        self.put_and_get()
        self.put_and_get()  # Over connections of its own.
        self.put_and_get_by_stream()
        self.assertIn("kvd", self.status())
        daemon.send_signal(signal.SIGTERM)

        self.assertEqual(daemon.wait(PATIENCE_S), 0)
        for suffix in ("", ".session", ".stream", ".admin"):
            mode = os.stat(self.path + suffix).st_mode
            self.assertTrue(stat.S_ISSOCK(mode))
            self.assertEqual(stat.S_IMODE(mode), 0o640, "the mode is the unit's")

    def test_another_daemon_goes_on_with_the_same_sockets(self):
        listeners = [self.listen(), self.listen(".session", socket.SOCK_SEQPACKET),
                     self.listen(".stream")]
        first = self.start(listeners)
        self.until_ready(first)
        first.kill()
        first.wait(PATIENCE_S)

        # Who comes while nobody is there waits for the next one, and is not refused.
        early = subprocess.Popen([PROGRAM, self.endpoint], stdout=subprocess.PIPE, text=True)
        self.addCleanup(early.stdout.close)
        self.until_ready(self.start(listeners))

        early.wait(PATIENCE_S)
        self.put_and_get()
        self.put_and_get_by_stream()

    def test_binds_itself_what_was_not_passed(self):
        daemon = self.start([self.listen(".session", socket.SOCK_SEQPACKET)])
        self.until_ready(daemon)

        self.put_and_get()
        self.put_and_get_by_stream()
        daemon.send_signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(PATIENCE_S), 0)

        self.assertFalse(os.path.exists(self.path))
        self.assertFalse(os.path.exists(self.path + ".stream"))
        self.assertTrue(os.path.exists(self.path + ".session"))

    def test_refuses_a_socket_that_is_elsewhere(self):
        elsewhere = str(self.folder / "other.sock")
        errors = self.refused(self.start([self.listen(path=elsewhere)]))

        self.assertIn(f"passed a socket at {elsewhere}, which is not of this endpoint", errors)
        self.assertIn(self.path, errors)

    def test_refuses_a_socket_of_another_kind(self):
        errors = self.refused(self.start([self.listen(".session", socket.SOCK_STREAM)]))

        self.assertIn(f"must say ListenSequentialPacket={self.path}.session", errors)

        errors = self.refused(self.start([self.listen(".stream", socket.SOCK_SEQPACKET)]))

        self.assertIn(f"must say ListenStream={self.path}.stream", errors)

    def test_refuses_a_socket_that_is_not_of_the_file_system(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        self.assertIn("a socket that has no path", self.refused(self.start([listener])))

    def test_says_when_it_is_ready_and_when_it_stops(self):
        notify = self.notify_socket()
        daemon = self.start(NOTIFY_SOCKET=str(self.folder / "notify"))

        self.assertEqual(notify.recv(4096), b"READY=1")
        self.until_ready(daemon)  # Said before or after, but said.
        daemon.send_signal(signal.SIGTERM)
        self.assertEqual(notify.recv(4096), b"STOPPING=1")
        self.assertEqual(daemon.wait(PATIENCE_S), 0)

    def test_says_that_it_lives_as_often_as_the_service_manager_wants(self):
        notify = self.notify_socket()
        self.start(NOTIFY_SOCKET=str(self.folder / "notify"), WATCHDOG_USEC="100000")

        self.assertEqual(notify.recv(4096), b"READY=1")
        self.assertEqual(notify.recv(4096), b"WATCHDOG=1")
        self.assertEqual(notify.recv(4096), b"WATCHDOG=1")

    def activate(self, *arguments):
        """systemd-socket-activate: it binds, and starts the daemon when somebody connects."""
        daemon = subprocess.Popen([ACTIVATE, *arguments, *self.arguments], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.end, daemon)
        while "Listening on" not in daemon.stderr.readline():
            self.assertIsNone(daemon.poll())
        return daemon

    @unittest.skipUnless(shutil.which(ACTIVATE), "no systemd-socket-activate")
    def test_the_first_engine_starts_the_daemon(self):
        daemon = self.activate("--seqpacket", "--listen", self.path + ".session")

        engine = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(engine.close)
        engine.connect(self.path + ".session")
        self.until_ready(daemon)
        self.put_and_get()

    @unittest.skipUnless(shutil.which(ACTIVATE), "no systemd-socket-activate")
    def test_the_first_operator_starts_the_daemon(self):
        daemon = self.activate("--listen", self.path, "--listen", self.path + ".admin")

        self.status()
        self.until_ready(daemon)
        self.put_and_get()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
