"""The labs' short forms: what they inject comes out as they demand, and nothing of them is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LABS = Path(__file__).parents[2] / "labs"
LIMIT = 900  # seconds; other processes may share the machine


def lab(name, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, LABS / f"{name}.py", *options],
        env=environment, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


def test_a_killed_run_and_a_flipped_bit(tmp_path):
    """One row of each of the two tables that the project promises; the rest are slow."""
    for row in ("kill, between collective and step, 0", "flipped bits"):
        done = lab("faults", "--short", "--only", row, "--reports", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 rows, 0 failed" in done.stdout or "2 rows, 0 failed" in done.stdout
    (page,) = tmp_path.glob("faults-*.md")
    assert "1 of 1 killed runs finished with the weights of an undisturbed one" in page.read_text()


@pytest.mark.slow
def test_every_kind_of_fault_in_its_short_form(tmp_path):
    done = lab("faults", "--short", "--reports", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_network_lab_measures_and_leaves_nothing_behind():
    before = set(Path("/run/netns").glob("*"))
    done = lab("netlab", "--short")
    assert done.returncode == 0, done.stdout + done.stderr
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.removeprefix("skipped: ").strip())
    assert "Quantize per worker" in done.stdout
    assert set(Path("/run/netns").glob("*")) <= before
