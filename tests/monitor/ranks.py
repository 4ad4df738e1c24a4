"""Real processes that run a program as ranks, and what each of them found."""

import os
import pickle
import subprocess
import sys
from pathlib import Path


def run(program, folder, workers, *scenarios):
    """What each rank wrote, in one run through all scenarios."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(workers), "OUT": str(folder),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", str(Path(__file__).with_name(program)), *scenarios],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(workers)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(workers)]
