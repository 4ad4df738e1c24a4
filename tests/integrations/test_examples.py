"""The examples run as they stand, and go on after a crash without a lost or a double reading."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from variegrad.monitor.log_file import read_log

EXAMPLES = Path(__file__).parents[2] / "examples"

# Runs a script that ends itself, as by `kill -9`, when it is about to watch for the n-th time.
KILLED = """
import os, runpy, signal, sys
from variegrad.monitor import Monitor
script, after, sys.argv = sys.argv[1], int(sys.argv[2]), sys.argv[1:2] + sys.argv[3:]
watch, calls = Monitor.watch, []
def counted(*arguments, **named):
    calls.append(1)
    if len(calls) == after:
        os.kill(os.getpid(), signal.SIGKILL)
    watch(*arguments, **named)
Monitor.watch = counted
runpy.run_path(script, run_name="__main__")
"""


def run(*command, expect=0):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=550,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == expect, done.stderr[-4000:]
    return done.stdout


def steps(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum("schema" in record for record in records) == 1
    return [record["step"] for record in records[1:]]


def test_there_is_a_test_for_each_example():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "plain_loop", "with_accelerate", "with_ddp", "with_lightning", "with_mlflow", "with_tensorboard",
        "with_trackio", "with_transformers", "with_wandb",
    }  # fmt: skip


def test_plain_loop(tmp_path):
    pytest.importorskip("sklearn")
    said = run(EXAMPLES / "plain_loop.py", tmp_path)
    assert "at 128 multiply the learning rate by" in said
    assert steps(tmp_path / "monitor.jsonl")[-1] == 81


def test_with_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    assert "B_D" in run(EXAMPLES / "with_tensorboard.py", tmp_path)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_with_accelerate(tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    assert "2 micro-batches" in run(EXAMPLES / "with_accelerate.py", tmp_path)
    assert steps(tmp_path / "monitor.jsonl")[-1] == 81
    assert (tmp_path / "state").is_dir()


def test_with_ddp_both_ranks_read_the_same(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    said = sorted(run(*torchrun, EXAMPLES / "with_ddp.py", tmp_path).splitlines())
    zero, one = (line for line in said if line.startswith("rank "))
    assert zero.removeprefix("rank 0") == one.removeprefix("rank 1")
    assert "2 workers" in zero
    assert steps(tmp_path / "monitor.jsonl")[-1] == 81


@pytest.mark.parametrize(
    # Checkpoints are every 20 steps: killed in step 35, readings of steps 21 to 34 are in the file beyond the last.
    ("name", "package", "killed_at"),
    [("with_lightning", "lightning", 35), ("with_transformers", "transformers", 69)],
)
def test_a_killed_training_goes_on_without_lost_or_double_readings(name, package, killed_at, tmp_path):
    pytest.importorskip(package)
    log = tmp_path / "monitor.jsonl"
    run("-c", KILLED, EXAMPLES / f"{name}.py", killed_at, tmp_path, expect=-9)
    before = read_log(log).readings
    assert before[-1].step > 20
    run(EXAMPLES / f"{name}.py", tmp_path)
    found = read_log(log)
    after = steps(log)
    assert found.runs == 1
    assert after == sorted(set(after))
    # Every step that was due has its reading: each up to 32 within the warm-up, then every 8th.
    assert after[:32] == list(range(1, 33))
    assert {b - a for a, b in itertools.pairwise(after[32:])} <= {8}
    # The readings up to the checkpoint are those of the first run, and those after it rest on them.
    kept = [reading for reading in before if reading.step <= 20]
    assert found.readings[: len(kept)] == kept
    assert [reading.pooled_steps for reading in found.readings] == [min(k, 8) for k in range(1, len(after) + 1)]
