"""Every trainer with its default arguments, on one process and on two: moments are those of a slow loop."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("trainer_program.py")
SETTINGS = ("plain", "accumulation", "bf16")
PACKAGES = {"plain": "torch", "lightning": "lightning", "accelerate": "accelerate", "transformers": "transformers",
            "trl": "trl"}  # fmt: skip


def run(folder, workers, cells):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(workers), "OUT": str(folder), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": str(workers), "TQDM_DISABLE": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *cells], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(workers)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=540)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-4000:] for text in said)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(workers)]


def check(cell, of_ranks, workers):
    first = of_ranks[0][cell]
    for other in of_ranks[1:]:
        assert other[cell]["found"] == first["found"], "ranks read the same"
        assert other[cell]["sources"] == first["sources"]
    micro = 3 if cell.endswith("accumulation") else 1
    assert first["batch_sizes"] == [6 * micro * workers]
    assert first["steps"] == list(range(1, 9))
    (source,) = first["sources"]
    tolerance = 0.04 if cell.endswith("bf16") else 2e-4
    if source == "sign probe":  # one random number a step: right on average
        mean = sum(first["found"]) / 8, sum(pair for pair, _ in first["expected"]) / 8
        assert mean[0] == pytest.approx(mean[1], abs=0.25)
        return
    for found, (by_examples, by_cells) in zip(first["found"], first["expected"], strict=True):
        assert found == pytest.approx(by_examples if "examples" in source else by_cells, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
    ("workers", "cells"),
    [
        (2, ["plain:accumulation", "lightning:accumulation", "accelerate:plain", "transformers:plain"]),
        *(
            pytest.param(workers, [f"{trainer}:{setting}" for setting in SETTINGS], marks=pytest.mark.slow)
            for workers in (1, 2)
            for trainer in PACKAGES
        ),
    ],
    ids=lambda value: value[0].split(":")[0] if isinstance(value, list) and len(value) == 3 else None,
)
def test_a_trainer_s_readings_are_those_of_the_loop(workers, cells, tmp_path):
    for cell in cells:
        if importlib.util.find_spec(PACKAGES[cell.split(":")[0]]) is None:
            pytest.skip(f"needs {PACKAGES[cell.split(':')[0]]}")
    of_ranks = run(tmp_path, workers, cells)
    for cell in cells:
        check(cell, of_ranks, workers)
