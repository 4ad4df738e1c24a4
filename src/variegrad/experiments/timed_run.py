"""Updates whose wall-clock time counts, on workers of their own: on loopback, or over a link of a given rate.

A shaped link joins two network namespaces by a pair of virtual interfaces, each with a token bucket filter (tc-tbf). It
needs Linux and root; where it cannot be made, the reason is said and the cell has no times.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from variegrad.distributed.world import World
from variegrad.experiments.timed_worker import carry_out

WORKER = "variegrad.experiments.timed_worker"
TIME_LIMIT = 4 * 3600
PORT = 29517


def run_in_turns(
    specs: Sequence[Mapping[str, Any]], *, workers: int, megabits: int | None = None, turns: int, updates: int
) -> list[dict[str, Any]]:
    """The time per update of several configurations on the same workers, in turns.

    Args:
        specs: as `timed_worker.in_turns` takes them.
        workers: P processes, one thread each.
        megabits: rate of the link in Mbit/s, for two workers; None for loopback.
        turns: how often each configuration has its turn.
        updates: timed in a turn.

    Returns:
        `turns` by configuration: the seconds of each update, by turn; or `skipped`, the reason, for each if the link
        cannot be made.

    Raises:
        RuntimeError: if the workers fail.
    """
    found = _on_workers({"specs": list(specs), "turns": turns, "updates": updates}, workers, megabits)
    return [one if isinstance(one, dict) else {"turns": one} for one in found]


def run_whole(specs: Sequence[Mapping[str, Any]], *, workers: int, megabits: int | None = None) -> list[dict[str, Any]]:
    """Whole runs to an accuracy, one after the other on the same workers.

    Args:
        specs: as `timed_worker.whole` takes them.
        workers: P processes, one thread each.
        megabits: rate of the link in Mbit/s, for two workers; None for loopback.

    Returns:
        As `timed_worker.whole`, by run; or `skipped`, the reason, for each if the link cannot be made.

    Raises:
        RuntimeError: if the workers fail.
    """
    return _on_workers({"specs": list(specs)}, workers, megabits)


def _on_workers(asked: Mapping[str, Any], workers: int, megabits: int | None) -> list[Any]:
    if megabits is not None and (reason := no_link()):
        return [{"skipped": reason} for _ in asked["specs"]]
    if workers == 1 and megabits is None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return carry_out(asked, World())
        finally:
            torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        specification, result = Path(name, "specification.json"), Path(name, "result.json")
        specification.write_text(json.dumps(asked), encoding="utf-8")
        arguments = ["-m", WORKER, str(specification), str(result)]
        if megabits is not None:
            with _link(megabits) as spaces:
                _wait_for([_start(["ip", "netns", "exec", space, sys.executable, *arguments], rank, spaces)
                           for rank, space in enumerate(spaces)])  # fmt: skip
        else:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
            _wait_for([_start([sys.executable, *launcher, *arguments])])
        return list(json.loads(result.read_text(encoding="utf-8")))


def no_link() -> str | None:
    """Why a shaped link cannot be made here.

    Returns:
        The reason; None if it can.
    """
    if not sys.platform.startswith("linux"):
        return "a shaped link needs Linux"
    if os.geteuid() != 0:
        return "a shaped link needs root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"a shaped link needs {' and '.join(missing)} (iproute2)"
    name = f"vg{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if made.returncode:
        return f"network namespaces cannot be made here ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", name], check=False)  # noqa: S603, S607
    return None


@contextmanager
def _link(megabits: int) -> Iterator[list[str]]:
    """Two namespaces, joined by a link that carries this many Mbit/s each way."""
    spaces = [f"vg{os.getpid()}{side}" for side in "ab"]
    ends = [f"v{os.getpid()}{side}" for side in "ab"]

    def ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    try:
        for space in spaces:
            ip("netns", "add", space)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (space, end) in enumerate(zip(spaces, ends, strict=True), 1):
            ip("link", "set", end, "netns", space, "name", "link0")
            for arguments in (
                ("link", "set", "lo", "up"), ("addr", "add", f"10.77.0.{number}/24", "dev", "link0"),
                ("link", "set", "link0", "up"),
            ):  # fmt: skip
                ip("-n", space, *arguments)
            # A bucket of 1 ms of traffic, at least 32 kB: smaller ones throttle below the rate.
            burst = max(32_000, megabits * 125)
            ip("netns", "exec", space, "tc", "qdisc", "add", "dev", "link0", "root", "tbf", "rate", f"{megabits}mbit",
               "burst", f"{burst}b", "latency", "50ms")  # fmt: skip
        yield spaces
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)  # noqa: S603, S607


def _start(command: list[str], rank: int | None = None, spaces: Sequence[str] = ()) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if rank is not None:
        environment |= {
            "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(spaces)), "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": "link0",
        }  # fmt: skip
    return subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def _wait_for(processes: Sequence[subprocess.Popen[str]]) -> None:
    try:
        said = [process.communicate(timeout=TIME_LIMIT)[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
    for process, words in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"a timed run failed: {' '.join(words.split())[-600:]}")
