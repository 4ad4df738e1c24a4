"""Workers as processes: torchrun, Ctrl-C, a worker that dies, falls silent or leaves, and a network between them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from distributed.scenarios import free_port

HERE = Path(__file__).parent
LIMIT = 240  # seconds; other processes may share the machine
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
SMALL = ("train", "digits", "--max-examples", "100", "--batch-size", "15")


@pytest.fixture
def running():
    """Starts processes; whatever still runs at the end is ended."""
    started = []

    def start(*command, prefix=(), **variables):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}
        process = subprocess.Popen(
            [*map(str, (*prefix, *command))], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()


def workers(start, size, *command, prefixes=None, **variables):
    """One process for each worker, with torchrun's variables."""
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **variables}
    prefixes = prefixes or [()] * size
    return [
        start(sys.executable, *command, prefix=prefixes[rank], RANK=str(rank), LOCAL_RANK=str(rank), **group)
        for rank in range(size)
    ]


def until_under_way(process):
    assert process.stdout.readline() == "under way\n"


# --- torchrun ---


def test_the_command_under_torchrun_gives_what_it_gives_alone(running, tmp_path):
    command = ("-m", "variegrad", *SMALL, "--passes", "2", "--mechanism", "dropconnect:0.4", "--out")
    alone = running(sys.executable, *command, tmp_path / "one")
    both = running(*TORCHRUN, free_port(), *command, tmp_path / "two")
    for process in (alone, both):
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
    one, two = (json.loads((tmp_path / name / "train.json").read_text()) for name in ("one", "two"))
    assert (one["workers"], two["workers"]) == (1, 2)
    assert one["settings"] == two["settings"]
    assert [h["examples"] for h in one["history"]] == [h["examples"] for h in two["history"]]
    weights, others = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in weights:  # float32, 14 updates whose sums are taken in another order
        np.testing.assert_allclose(others[name], weights[name], rtol=1e-4, atol=1e-6)


def test_ctrl_c_ends_all_workers_and_keeps_what_was_learnt(running, tmp_path):
    out = tmp_path / "run"
    process = running(*TORCHRUN, free_port(), "-m", "variegrad", *SMALL, "--passes", "1e6", "--out", out)
    line = ""
    while "pass" not in line:
        line = process.stderr.readline()
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    found = json.loads((out / "train.json").read_text())
    assert found["ended"] == "interrupted", errors
    assert found["updates"] > 0
    assert load_file(out / "weights.safetensors")
    assert process.returncode != 0


@pytest.mark.slow
def test_sigterm_ends_a_worker_cleanly(running, tmp_path):
    process = running(sys.executable, "-m", "variegrad", *SMALL, "--passes", "1e6", "--out", tmp_path)
    while "pass" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "train.json").read_text())["ended"] == "interrupted"


# --- a worker that is lost ---


def test_a_killed_worker_is_named_at_once(running):
    first, second = workers(running, 2, HERE / "endless.py", 200)
    until_under_way(first)
    second.kill()
    began = time.monotonic()
    _, errors = first.communicate(timeout=LIMIT)
    assert time.monotonic() - began < 100  # far below the time limit of 200 seconds
    assert first.returncode == 1
    assert "RuntimeError: worker 0 of 2: worker 1 did not answer: stopped, ended or cut off" in errors


@pytest.mark.slow
@pytest.mark.parametrize("sums", [(), ("packed",)], ids=["dense", "packed"])
def test_a_silent_worker_is_named_after_the_time_limit(running, sums):
    first, second, third = workers(running, 3, HERE / "endless.py", 20, *sums)
    until_under_way(first)
    second.send_signal(signal.SIGSTOP)
    for process in (first, third):
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 1
        assert "worker 1 did not answer: stopped, ended or cut off" in errors


@pytest.mark.parametrize("sums", [(), pytest.param(("packed",), marks=pytest.mark.slow)], ids=["dense", "packed"])
def test_a_worker_that_pauses_is_named_and_waited_for(running, sums):
    both = workers(running, 2, HERE / "endless.py", 4, "pause", *sums)
    said = [process.communicate(timeout=LIMIT)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0].count("worker 1 kept the others waiting for 4 s and is alive: waiting continues") == 1
    assert said[1].count("worker 0 kept the others waiting") == 1  # at the end of the block


@pytest.mark.slow
def test_an_error_in_the_caller_s_loop_ends_the_others(running):
    first, second = workers(running, 2, HERE / "endless.py", 200, "leave")
    began = time.monotonic()
    errors = [process.communicate(timeout=LIMIT)[1] for process in (first, second)]
    assert time.monotonic() - began < 150
    assert "SystemError: left" in errors[1]
    assert "RuntimeError: worker 0 of 2" in errors[0]
    assert [first.returncode, second.returncode] == [1, 1]


# --- several machines ---


def two_namespaces():
    """Two network namespaces joined by a pair of devices, as two machines by a cable."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2 (the command ip)")
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    names = [f"vg{os.getpid()}{side}" for side in "ab"]
    made = subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    return names


@pytest.fixture
def namespaces():
    names = two_namespaces()
    devices = [f"v{name[-8:]}" for name in names]
    try:
        subprocess.run(["ip", "netns", "add", names[1]], check=True)
        subprocess.run(["ip", "link", "add", devices[0], "type", "veth", "peer", "name", devices[1]], check=True)
        for number, (name, device) in enumerate(zip(names, devices, strict=True), 1):
            subprocess.run(["ip", "link", "set", device, "netns", name], check=True)
            inside = ["ip", "-n", name]
            subprocess.run([*inside, "addr", "add", f"10.78.0.{number}/24", "dev", device], check=True)
            subprocess.run([*inside, "link", "set", "lo", "up"], check=True)
            subprocess.run([*inside, "link", "set", device, "up"], check=True)
        yield list(zip(names, devices, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_machines_train_together(running, namespaces, tmp_path):
    port = free_port()
    command = ("-m", "variegrad", *SMALL, "--passes", "1")
    alone = running(sys.executable, *command, "--out", tmp_path / "one")
    machines = [
        running(
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank",
            number, "--master-addr", "10.78.0.1", "--master-port", port, *command, "--out", tmp_path / "two",
            prefix=("ip", "netns", "exec", name), GLOO_SOCKET_IFNAME=device,
        )
        for number, (name, device) in enumerate(namespaces)
    ]  # fmt: skip
    for process in (alone, *machines):
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
    assert json.loads((tmp_path / "two" / "train.json").read_text())["workers"] == 2
    weights, others = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in weights:
        np.testing.assert_allclose(others[name], weights[name], rtol=1e-4, atol=1e-6)
