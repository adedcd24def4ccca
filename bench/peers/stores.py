"""The stores that are compared: how each is installed, configured, started and driven.

A Store is a description; start() gives a Running one, with its own sockets and logs in a folder of
its own. Whatever cannot be had raises Failure, whose text ends up in the report.
"""

import hashlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request

from processes import Driver, Failure, Process, free_port, tail

HERE = pathlib.Path(__file__).resolve().parent
START_SECONDS = 120
PIP_SECONDS = 1500


class Environment:
    """Where things are: the built programs, and the folder of virtual environments and logs."""

    def __init__(self, programs, work):
        self.programs = pathlib.Path(programs).resolve()
        self.work = pathlib.Path(work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def venv(self, name, *requirements):
        """The python of a virtual environment with what these files list, made when it is missing.

        The first files are installed with what they depend on, the last without: it is whole.
        """
        folder = self.work / f"venv-{name}"
        python = folder / "bin" / "python"
        files = [HERE / file for file in requirements]
        wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        stamp = folder / "installed"
        if stamp.exists() and stamp.read_text() == wanted:
            return python
        print(f"peers: installing {name} into {folder}", file=sys.stderr)
        log = self.work / f"install-{name}.log"
        with open(log, "w", encoding="utf-8") as out:
            commands = [[sys.executable, "-m", "venv", "--clear", folder]]
            for file in files:
                whole = ["--no-deps"] if file == files[-1] else []
                commands.append([python, "-m", "pip", "install", *whole, "-r", file])
            for command in commands:
                try:
                    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   timeout=PIP_SECONDS, check=True)
                except (OSError, subprocess.SubprocessError) as error:
                    raise Failure(f"cannot be installed, see {log}: {tail(log, 3)}") from error
        stamp.write_text(wanted)
        return python


class Running:
    """A store that serves. `processes` in the order of their start; the last owns the bytes."""

    def __init__(self, folder, processes, driver_command, driver_environment=None, restart=None,
                 memory=None):
        self.folder = folder
        self._memory = memory
        self.processes = processes
        self._driver_command = driver_command
        self._driver_environment = driver_environment
        self._restart = restart
        self._drivers = []

    @property
    def owner(self):
        return self.processes[-1]

    def driver(self):
        """Another client."""
        number = len(self._drivers)
        made = Driver(self._driver_command, self.folder / f"driver{number}.log",
                      self._driver_environment, START_SECONDS)
        self._drivers.append(made)
        return made

    def kill_owner(self):
        self.owner.kill()

    def restart_owner(self):
        """As it was started, at the same place."""
        self.processes[-1] = self._restart()

    def stop(self):
        for driver in self._drivers:
            driver.close()
        for process in reversed(self.processes):
            process.stop()
        if self._memory is not None:
            shutil.rmtree(self._memory, ignore_errors=True)


def _listens(path):
    """Whether somebody accepts connections at a Unix socket."""
    def ready():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
                return True
            except OSError:
                return False
    return ready


def _program(name, package):
    path = shutil.which(name)
    if path is None:
        raise Failure(f"{name} is not installed; apt-get install {package}")
    return path


def _first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failure(f"{command[0]}: {error}") from error
    return (done.stdout or done.stderr).strip().splitlines()[0]


class Memcpy:
    """No store: what this machine gives. All rates stand beside it."""

    name = "memcpy"
    title = "memcpy"
    mode = "memcpy between two memories of one process"
    stores = False
    version = ""

    def __init__(self, environment):
        self._environment = environment

    def install(self):
        pass

    def start(self, folder, room_bytes):
        driver = [self._environment.programs / "kvd-bench", "peer-driver", "memcpy"]
        return Running(folder, [], driver)


class Kvd:
    name = "kvd"
    title = "kvd"
    mode = "shared memory, C++ client; every byte summed at put and verified at get"
    stores = True

    def __init__(self, environment):
        self._environment = environment
        self.version = ""

    def install(self):
        for program in ("kvd", "kvd-bench"):
            if not (self._environment.programs / program).exists():
                raise Failure(f"{program} is not in {self._environment.programs}; build it first")
        self.version = "of this tree"

    def start(self, folder, room_bytes):
        path = folder / "kvd.sock"
        command = [self._environment.programs / "kvd", "--listen", f"unix:{path}",
                   "--dram", room_bytes, "--blocks", 1 << 16, *self._persistence(folder)]

        def launch():
            daemon = Process(command, folder / "kvd.log")
            daemon.wait_until(_listens(path), START_SECONDS, "kvd")
            return daemon

        driver = [self._environment.programs / "kvd-bench", "peer-driver", "kvd", f"unix:{path}"]
        return Running(folder, [launch()], driver, restart=launch, memory=self._memory(folder))

    def _persistence(self, folder):
        return []

    def _memory(self, folder):
        """A folder in /dev/shm that goes with it; None: there is none."""
        return None


class KvdWithData(Kvd):
    """As it has to run to keep anything over a restart; only its behaviour is of interest."""

    name = "kvd-data"
    title = "kvd with a data folder"
    mode = "as kvd, and --data"

    def _persistence(self, folder):
        memory = self._memory(folder)
        memory.mkdir()
        return ["--data", folder / "data", "--arena-directory", memory]

    def _memory(self, folder):
        return pathlib.Path("/dev/shm") / f"kvd-peers-{os.getpid()}-{folder.name}"


class Mooncake:
    name = "mooncake"
    title = "Mooncake Store"
    mode = "dummy client over memfd, buffers registered, bytes not verified"
    stores = True

    def __init__(self, environment):
        self._environment = environment
        self.version = "0.3.13.post1"
        self._python = None

    def install(self):
        self._python = self._environment.venv("mooncake", "requirements-mooncake.txt")

    def start(self, folder, room_bytes):
        programs = self._python.parent
        master_port, metrics_port, port = free_port(), free_port(), free_port()
        master = Process([programs / "mooncake_master", f"--rpc_port={master_port}",
                          f"--metrics_port={metrics_port}", "--rpc_address=127.0.0.1"],
                         folder / "master.log")
        master.wait_until(_accepts(master_port), START_SECONDS, "mooncake_master")
        command = [programs / "mooncake_client", "--host=127.0.0.1", f"--port={port}",
                   f"--global_segment_size={room_bytes >> 20} MB",
                   f"--master_server_address=127.0.0.1:{master_port}",
                   "--metadata_server=P2PHANDSHAKE", "--protocol=tcp", "--threads=2"]

        def launch():
            client = Process(command, folder / "client.log")
            client.wait_until(_accepts(port), START_SECONDS, "mooncake_client")
            return client

        try:
            owner = launch()
        except Failure:
            master.stop()
            raise
        driver = [self._python, "-B", HERE / "drivers" / "mooncake_driver.py", f"127.0.0.1:{port}"]
        return Running(folder, [master, owner], driver, restart=launch)


class LMCache:
    name = "lmcache"
    title = "LMCache"
    mode = "multiprocess server, engine-driven over shared memory, bytes not verified"
    stores = True
    _environment_of_all = {
        "OMP_NUM_THREADS": "1",
        "LMCACHE_TRACK_USAGE": "false",
        "THP_MEM_ALLOC_ENABLE": "1",  # Huge pages for torch's memory, as the others have.
    }

    def __init__(self, environment):
        self._environment = environment
        self.version = "0.5.6"
        self._python = None

    def install(self):
        self._python = self._environment.venv("lmcache", "requirements-lmcache-torch.txt",
                                              "requirements-lmcache.txt")

    def start(self, folder, room_bytes):
        port, http_port = free_port(), free_port()
        memory = f"kvd_peers_{os.getpid()}_{port}"
        command = [self._python.parent / "lmcache", "server", "--host", "127.0.0.1", "--port", port,
                   "--http-host", "127.0.0.1", "--http-port", http_port, "--chunk-size", 16,
                   "--l1-size-gb", room_bytes / 2**30, "--no-l1-use-lazy", "--max-workers", 2,
                   "--eviction-policy", "LRU", "--supported-transfer-mode", "engine_driven",
                   "--shm-name", memory, "--disable-observability"]

        def healthy():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/healthcheck",
                                            timeout=2) as answer:
                    return answer.status == 200
            except (OSError, urllib.error.URLError):
                return False

        def launch():
            server = Process(command, folder / "server.log", self._environment_of_all)
            server.wait_until(healthy, START_SECONDS, "lmcache server")
            return server

        driver = [self._python, "-B", HERE / "drivers" / "lmcache_driver.py",
                  f"tcp://127.0.0.1:{port}", f"http://127.0.0.1:{http_port}"]
        return RunningLMCache(folder, [launch()], driver, self._environment_of_all, launch, memory)


class RunningLMCache(Running):
    def __init__(self, folder, processes, driver, environment, restart, memory):
        super().__init__(folder, processes, driver, environment, restart)
        self._memory = memory

    def stop(self):
        super().stop()
        for left in pathlib.Path("/dev/shm").glob(f"*{self._memory}*"):
            left.unlink(missing_ok=True)  # A killed server leaves its pool behind.


class Redis:
    name = "redis"
    title = "Redis"
    mode = "Unix socket, writev and readv in place, best of 1 to 16 commands under way"
    stores = True
    _persistence = ["--save", "", "--appendonly", "no"]

    def __init__(self, environment):
        self._environment = environment
        self.version = ""
        self._program = None

    def install(self):
        self._program = _program("redis-server", "redis-server")
        words = _first_line([self._program, "--version"]).split()
        self.version = next((word[2:] for word in words if word.startswith("v=")), "")

    def start(self, folder, room_bytes):
        path = folder / "redis.sock"
        command = [self._program, "--port", 0, "--unixsocket", path, "--daemonize", "no",
                   "--dir", folder, "--maxmemory", room_bytes, "--maxmemory-policy", "allkeys-lru",
                   *self._persistence]

        def launch():
            path.unlink(missing_ok=True)
            server = Process(command, folder / "redis.log")
            server.wait_until(_listens(path), START_SECONDS, "redis-server")
            return server

        driver = [self._environment.programs / "kvd-bench", "peer-driver", "redis", path]
        return Running(folder, [launch()], driver, restart=launch)


class RedisWithLog(Redis):
    """As it has to run to keep anything over a restart; only its behaviour is of interest."""

    name = "redis-aof"
    title = "Redis with append-only file"
    mode = "as Redis, and --appendonly yes --appendfsync everysec"
    _persistence = ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]


class Memcached:
    name = "memcached"
    title = "memcached"
    mode = "Unix socket, writev and read in place, best of 1 to 16 commands under way"
    stores = True

    def __init__(self, environment):
        self._environment = environment
        self.version = ""
        self._program = None

    def install(self):
        self._program = _program("memcached", "memcached")
        self.version = _first_line([self._program, "--version"]).split()[-1]

    def start(self, folder, room_bytes):
        path = folder / "memcached.sock"
        user = ["-u", "root"] if os.geteuid() == 0 else []
        command = [self._program, "-s", path, "-m", room_bytes >> 20, "-I", "8m", "-t", 2, *user]

        def launch():
            path.unlink(missing_ok=True)
            server = Process(command, folder / "memcached.log")
            server.wait_until(_listens(path), START_SECONDS, "memcached")
            return server

        driver = [self._environment.programs / "kvd-bench", "peer-driver", "memcached", path]
        return Running(folder, [launch()], driver, restart=launch)


def _accepts(port):
    """Whether somebody accepts connections at a port of this host."""
    def ready():
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0
    return ready


MEASURED = (Memcpy, Kvd, Mooncake, LMCache, Redis, Memcached)
OBSERVED = (Kvd, KvdWithData, Mooncake, LMCache, Redis, RedisWithLog, Memcached)  # Flip, kill, overload.
