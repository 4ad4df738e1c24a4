"""Finished cells stay finished, whatever ends a sweep, and none of them is computed twice."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments import counted
from variegrad.experiments.records import read_records
from variegrad.experiments.sweep import sweep


def runs(log):
    return Counter(log.read_text().split()) if log.exists() else Counter()


def test_cells_are_asked_for_until_nothing_is_new(tmp_path):
    settings = counted.settings_of(tmp_path / "log", cells=4)
    found = sweep(counted.experiment(), settings, tmp_path)
    # The second round begins at 0 + 1 + 4 + 9 = 14.
    assert sorted(record.cell["number"] for record in found.records.values()) == [0, 1, 2, 3, 14, 15, 16, 17]
    assert (found.computed, found.skipped) == (8, 0)


def test_finished_cells_are_skipped(tmp_path):
    settings = counted.settings_of(tmp_path / "log")
    first = sweep(counted.experiment(), settings, tmp_path)
    again = sweep(counted.experiment(), settings, tmp_path)
    assert (again.computed, again.skipped) == (0, first.computed)
    assert again.records.keys() == first.records.keys()
    assert set(runs(tmp_path / "log").values()) == {1}


def test_cells_that_need_a_quiet_machine_and_the_others_can_be_computed_apart(tmp_path):
    settings = counted.settings_of(tmp_path / "log", cells=4)
    chosen = counted.experiment(alone=lambda cell: cell["number"] % 2 == 0)
    untimed = sweep(chosen, settings, tmp_path, timed=False)
    assert (untimed.computed, untimed.skipped, untimed.left) == (2, 0, 2)
    assert {record.cell["number"] for record in untimed.records.values()} == {1, 3}
    timed = sweep(chosen, settings, tmp_path, timed=True)  # 0 and 2; then the second round is known: 14 and 16
    assert (timed.computed, timed.skipped, timed.left) == (4, 2, 2)
    rest = sweep(chosen, settings, tmp_path)
    assert (rest.computed, rest.skipped, rest.left) == (2, 6, 0)
    assert set(runs(tmp_path / "log").values()) == {1}


def test_a_larger_profile_computes_only_what_is_new(tmp_path):
    sweep(counted.experiment(), counted.settings_of(tmp_path / "log", cells=3), tmp_path)
    found = sweep(counted.experiment(), counted.settings_of(tmp_path / "log", cells=4), tmp_path)
    # First 0 1 2, then 5 6 7; now 0 1 2 3, then 14 15 16 17.
    assert (found.skipped, found.computed) == (3, 5)
    assert set(runs(tmp_path / "log").values()) == {1}


def test_a_damaged_record_is_computed_again_and_said(tmp_path, capfd):
    from rich.console import Console

    settings = counted.settings_of(tmp_path / "log", cells=3)
    sweep(counted.experiment(), settings, tmp_path)
    packed = tmp_path / "records.jsonl"
    packed.write_text(packed.read_text().replace('"square"', '"sqare"', 1))
    found = sweep(counted.experiment(), settings, tmp_path, console=Console(stderr=True))
    assert found.computed == 1
    assert "damaged record, computed again if it is needed: records.jsonl line 1" in capfd.readouterr().err
    assert sorted(runs(tmp_path / "log").values()) == [1, 1, 1, 1, 1, 2]


def test_a_failing_cell_is_named_and_the_others_are_kept(tmp_path):
    def fail(group):
        if group[0]["number"] == 3:
            raise ZeroDivisionError("three")
        return counted.run(group)

    settings = counted.settings_of(tmp_path / "log", cells=5)
    with pytest.raises(RuntimeError, match=r"a cell failed \(counted: number 3, .*\): ZeroDivisionError: three"):
        sweep(replace(counted.experiment(), run=fail), settings, tmp_path)
    assert len(read_records(tmp_path).records) == 3
    sweep(counted.experiment(), settings, tmp_path)
    assert set(runs(tmp_path / "log").values()) == {1}


def test_an_interruption_keeps_what_is_finished(tmp_path):
    def interrupted(group):
        if group[0]["number"] == 2:
            raise KeyboardInterrupt
        return counted.run(group)

    settings = counted.settings_of(tmp_path / "log", cells=4)
    with pytest.raises(KeyboardInterrupt):
        sweep(replace(counted.experiment(), run=interrupted), settings, tmp_path)
    assert len(read_records(tmp_path).records) == 2


def test_cells_that_measure_time_run_last_and_in_this_process(tmp_path):
    seen = []

    def run(group):
        seen.append([cell["number"] for cell in group])
        return [{"square": 0.0} for _ in group]

    chosen = replace(
        counted.experiment(group=lambda cell: cell["number"] % 2, alone=lambda cell: cell["number"] == 0), run=run
    )
    sweep(chosen, counted.settings_of(tmp_path / "log", cells=5), tmp_path)
    assert seen == [[1, 3], [2, 4], [0]]  # the second round is these cells again: 0² + … + 4² are zero here


def test_processes_compute_what_one_process_computes(tmp_path):
    settings = counted.settings_of(tmp_path / "log")
    alone = sweep(counted.experiment(), settings, tmp_path / "one")
    many = sweep(counted.experiment(), settings, tmp_path / "two", jobs=2)
    assert {k: dict(r.values) for k, r in alone.records.items()} == {k: dict(r.values) for k, r in many.records.items()}


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_a_random_moment_no_cell_is_lost_and_none_computed_twice(tmp_path, jobs):
    folder, log = tmp_path / "run", tmp_path / "log"
    program = [sys.executable, str(Path(counted.__file__)), str(folder), str(log), str(jobs)]
    wait = random.Random(jobs)
    finished, before = {}, []
    for _ in range(2):  # killed twice, at moments that no cell's end decides
        process = subprocess.Popen(program)
        enough = len(finished) + wait.randint(1, 5)
        give_up = time.monotonic() + 120
        while len(read_records(folder).records) < enough and time.monotonic() < give_up:
            time.sleep(wait.uniform(0.01, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        standing = read_records(folder)
        assert standing.damaged == ()
        assert finished.items() <= {key: record.seconds for key, record in standing.records.items()}.items()
        finished = {key: record.seconds for key, record in standing.records.items()}
        assert len(finished) >= enough
        before.append({key: runs(log)[key] for key in finished})
    # What was finished at a kill is not computed again; only cells cut off in the middle are.
    time.sleep(2)  # the processes of the killed sweep end by themselves
    subprocess.run(program, check=True, timeout=300)
    found = read_records(folder)
    assert len(found.records) == 24
    assert {key: found.records[key].seconds for key in finished} == finished
    computed = runs(log)
    assert computed.keys() == found.records.keys()
    assert all(computed[key] == times for counts in before for key, times in counts.items())


def test_what_is_out_of_range_is_refused(tmp_path):
    settings = counted.settings_of(tmp_path / "log")
    with pytest.raises(ValueError, match="jobs must be at least 1; got 0"):
        sweep(counted.experiment(), settings, tmp_path, jobs=0)
    with pytest.raises(ValueError, match="--cluster must be 'ray'; got 'slurm'"):
        sweep(counted.experiment(), settings, tmp_path, cluster="slurm")


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_a_cluster_without_ray_is_refused_with_the_way_on(tmp_path):
    with pytest.raises(ValueError, match=r"needs Ray, which is not installed.*leave the option out"):
        sweep(counted.experiment(), counted.settings_of(tmp_path / "log"), tmp_path, cluster="ray")
