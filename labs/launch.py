"""Runs of `variegrad train` as processes: forked, so that nothing is imported again, under torchrun's own agent.

`torchrun` makes rendezvous, agent and restarts from the words of torchrun's command line, by torchrun's own
functions; only its workers are forked from this process instead of started anew. `spawned=True` runs the command
itself.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.distributed import run as torchrun_command
from torch.distributed.launcher.api import elastic_launch

import faulty

FORK = multiprocessing.get_context("fork")
HERE = Path(__file__).parent
CLONE_NEWNET = 0x40000000


class Running:
    """A process in a session of its own, and what it says.

    Attributes:
        log: the file of its output.
    """

    def __init__(self, target, *, log, environment=None, namespace=None):
        self.log = Path(log)
        self._process = FORK.Process(target=_child, args=(target, self.log, environment or {}, namespace))
        self._process.start()

    def said(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, seconds):
        """The exit code; None if it still runs then."""
        self._process.join(seconds)
        return self._process.exitcode

    def until(self, text, seconds):
        """The time (of the clock) at which it said something; None if it did not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self._process.exitcode is not None
            if text in self.said():
                return time.time()
            if ended:
                return None
            time.sleep(0.05)
        return None

    def end(self):
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()


def _child(target, log, environment, namespace):
    os.setsid()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    if namespace is not None:
        with Path("/run/netns", namespace).open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    target()


@contextmanager
def running(*started):
    """Processes that are gone at the end, whatever happens."""
    try:
        yield started[0] if len(started) == 1 else started
    finally:
        for each in started:
            each.end()


def torchrun(arguments, *, log, plan=None, workers=2, restarts=0, spawned=False):
    """`variegrad` with these arguments under torchrun."""
    words = ["--nproc-per-node", str(workers), "--max-restarts", str(restarts)]
    program = [str(HERE / "faulty.py"), *map(str, arguments)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "lo",
                   "VARIEGRAD_LAB_PLAN": json.dumps(plan or {})}  # fmt: skip

    def forked():
        standalone = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", uuid.uuid4().hex]
        config, _, _ = torchrun_command.config_from_args(torchrun_command.parse_args([*standalone, *words, *program]))
        config.start_method = "fork"
        elastic_launch(config, faulty.main)(*program[1:])

    def command():
        torchrun_itself = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        sys.exit(subprocess.run([*torchrun_itself, *words, *program], check=False, cwd=HERE).returncode)

    return Running(command if spawned else forked, log=log, environment=environment)


def workers(arguments, *, folder, plan=None, namespaces=(None, None), address="127.0.0.1", device="lo"):
    """`variegrad` with these arguments on workers that nobody restarts, each where a namespace says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(len(namespaces)), "MASTER_ADDR": address, "MASTER_PORT": str(port),
             "GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0",
             "VARIEGRAD_LAB_PLAN": json.dumps(plan or {})}  # fmt: skip
    return [
        Running(
            lambda: faulty.main(*map(str, arguments)), log=Path(folder) / f"worker-{rank}.txt", namespace=namespace,
            environment={**group, "RANK": str(rank)},
        )
        for rank, namespace in enumerate(namespaces)
    ]  # fmt: skip


def traced(file):
    """What workers wrote into a trace."""
    return [json.loads(line) for line in Path(file).read_text().splitlines()] if Path(file).exists() else []


def until_traced(file, update, seconds):
    """Wait until a worker has reached an update."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(line["update"] >= update for line in traced(file)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no worker reached update {update} within {seconds} s")
