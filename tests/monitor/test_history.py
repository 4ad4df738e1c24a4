"""A history is bounded in memory, its file holds every reading, and no crash, full disk or resume damages either."""

import itertools
import json
import os
import signal
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest

from monitor.readings import ODD, a_reading
from variegrad.monitor import History, Reading
from variegrad.monitor.log_file import SCHEMA, read_log
from variegrad.monitor.thinned import Thinned


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def steps(path):
    """Steps in the file of its last run, as a plain reader of JSON lines finds them."""
    found = []
    for line in lines(path):
        found = [] if "schema" in line else [*found, line["step"]]
    return found


def filled(path, *at):
    history = History(path)
    for step in at:
        history.append(a_reading(step))
    return history


# --- in memory ---


@pytest.mark.parametrize("most", [4, 5, 7, 64, 100])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 63, 64, 65, 100, 1000, 1001, 4095, 10_000])
def test_newest_and_first_are_kept_and_older_ones_thinned_evenly(most, count):
    thinned = Thinned(most)
    for k in range(count):
        thinned.append(k)
    kept = list(thinned)
    assert len(kept) == len(thinned) <= most
    assert thinned.appended == count
    assert kept == sorted(set(kept))
    newest = min(count, most // 2)
    assert kept[len(kept) - newest :] == list(range(count - newest, count))
    if count:
        assert kept[0] == 0
        assert thinned[-1] == count - 1
    if count <= most // 2:
        assert kept == list(range(count))
    old = kept[: len(kept) - newest]
    gaps = {b - a for a, b in itertools.pairwise(old)}
    assert len(gaps) <= 1  # evenly
    assert all(gap & (gap - 1) == 0 for gap in gaps)


def test_a_history_is_a_sequence():
    history = filled(None, *range(1, 11))
    assert len(history) == 10
    assert [reading.step for reading in history] == list(range(1, 11))
    assert history[0].step == 1
    assert history[-1].step == 10
    assert history[9].step == 10
    assert [reading.step for reading in history[-3:]] == [8, 9, 10]
    assert history[-1] in history
    with pytest.raises(IndexError):
        history[10]
    assert "10 readings, latest: steps 1–10" in repr(history)


def test_a_million_readings_stay_within_a_few_megabytes():
    # Six thousand different ones fill every room there is; whatever comes later only takes the place of others, which
    # the sequence that holds them shows for many more.
    tracemalloc.start()
    history = History()
    for step in range(1, 6_001):
        history.append(a_reading(step, bound=100.0 + step))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert history.appended == 6_000
    assert len(history) <= 4096
    assert peak < 4 * 2**20, f"{kept} bytes are kept, {peak} at most"
    thinned = Thinned(64)
    for k in range(50_000):
        thinned.append(k)
        assert len(thinned) <= 64


@pytest.mark.parametrize("most", [-1, 0, 3])
def test_too_little_room_is_refused(most):
    with pytest.raises(ValueError, match=f"max_readings must be at least 4; got {most}"):
        History(max_readings=most)


# --- the file ---


def test_the_file_has_a_header_and_every_reading(tmp_path):
    path = tmp_path / "deep" / "folder" / "log.jsonl"
    history = History(path, max_readings=4)
    readings = [a_reading(16 * k, **of) for k, of in enumerate(ODD.values(), start=1)] * 3
    for reading in readings:
        history.append(reading)
    found = lines(path)
    assert found[0].keys() == {"schema", "run", "version"}
    assert found[0]["schema"] == SCHEMA
    assert [repr(Reading.from_record(record)) for record in found[1:]] == [repr(reading) for reading in readings]
    assert path.read_bytes().endswith(b"\n")


def test_a_reading_is_in_the_file_as_soon_as_it_is_appended(tmp_path):
    path = tmp_path / "log.jsonl"
    history = filled(path, 16)
    assert steps(path) == [16]
    history.append(a_reading(32))
    assert steps(path) == [16, 32]


def test_nothing_is_written_before_the_first_reading(tmp_path):
    History(tmp_path / "log.jsonl")
    assert (tmp_path / "log.jsonl").stat().st_size == 0


def test_a_crash_at_any_byte_of_the_last_line_loses_no_earlier_one(tmp_path):
    path = tmp_path / "log.jsonl"
    filled(path, 16, 32, 48).close()
    whole = path.read_bytes()
    ends = [k + 1 for k, byte in enumerate(whole) if byte == 10]
    for cut in range(ends[-2], len(whole) + 1):
        path.write_bytes(whole[:cut])
        log = read_log(path)
        # A line that lacks nothing but its end of line is whole.
        survivors = [16, 32, 48] if cut >= len(whole) - 1 else [16, 32]
        assert [reading.step for reading in log.readings] == survivors
        assert log.half_written == (ends[-2] < cut < len(whole) - 1)
        history = History(path)
        assert steps(path) == survivors
        assert path.read_bytes() == b"".join(line + b"\n" for line in whole.split(b"\n")[: len(survivors) + 1])
        history.append(a_reading(64))
        history.close()
        assert steps(path) == [64]  # another run, and the former one still stands before it
        assert path.read_bytes().startswith(whole[: ends[2]])


def test_a_crash_in_the_header_begins_the_file_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    filled(path, 16).close()
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n")):
        path.write_bytes(whole[:cut])
        filled(path, 32).close()
        assert steps(path) == [32]
        assert len(lines(path)) == 2


def test_zeros_that_a_machine_s_crash_left_are_taken_off(tmp_path):
    path = tmp_path / "log.jsonl"
    filled(path, 16).close()
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(10_000))
    assert read_log(path).half_written
    History(path).close()
    assert path.read_bytes() == whole


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from monitor.readings import a_reading
from variegrad.monitor import History
history = History(sys.argv[2])
for step in range(1, 10**9):
    history.append(a_reading(step))
    if step == 200:
        print("going", flush=True)
"""


def test_a_killed_process_leaves_whole_lines_and_no_lock(tmp_path):
    path = tmp_path / "log.jsonl"
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen([sys.executable, "-c", KILLED, tests, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"going\n"
        with pytest.raises(ValueError, match="is being written by another process"):
            History(path)
        process.send_signal(signal.SIGKILL)
    found = [reading.step for reading in read_log(path, most=10**6).readings]
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= 200
    filled(path, 16).close()
    assert steps(path) == [16]


def test_two_writers_are_refused_until_the_first_lets_go(tmp_path):
    path = tmp_path / "log.jsonl"
    first = filled(path, 16)
    with pytest.raises(ValueError, match=r"log\.jsonl is being written .* close\(\) the other"):
        History(path)
    first.close()
    second = filled(path, 32)
    with pytest.raises(ValueError, match="is being written"):
        first.append(a_reading(48))
    second.close()


def test_a_history_that_is_forgotten_lets_go(tmp_path):
    history = filled(tmp_path / "log.jsonl", 16)
    del history
    filled(tmp_path / "log.jsonl", 16).close()


def test_a_closed_history_goes_on_where_it_was(tmp_path):
    path = tmp_path / "log.jsonl"
    history = filled(path, 16, 32)
    history.close()
    history.close()
    history.append(a_reading(48))
    assert steps(path) == [16, 32, 48]
    assert sum("schema" in line for line in lines(path)) == 1


def test_another_run_in_the_same_file_has_a_header_of_its_own(tmp_path):
    path = tmp_path / "log.jsonl"
    filled(path, 16, 32).close()
    filled(path, 16).close()
    log = read_log(path)
    assert log.runs == 2
    assert [reading.step for reading in log.readings] == [16]
    assert len(lines(path)) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"step,loss\n1,2\n", "is not a log of Monitor"),
        (b"\x89PNG\r\n\x1a\n", "is not a log of Monitor"),
        (b'{"schema":"variegrad.monitor/2","run":"a"}\n', "has the schema 'variegrad.monitor/2'"),
        (b'{"schema":"variegrad.monitor/10"}\n', "has the schema 'variegrad.monitor/10'"),
        (b'["schema"]\n', "is not a log of Monitor"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_left_as_it_was(tmp_path, content, message):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        History(path)
    assert path.read_bytes() == content


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder; name a file in it, such as .*monitor\.jsonl"):
        History(tmp_path)


# --- a disk that is full, ranks ---

FULL = """
import resource, sys, warnings
sys.path.insert(0, sys.argv[1])
from monitor.readings import a_reading
from variegrad.monitor import History
history = History(sys.argv[2])
limit = 1000  # in the middle of the third reading: the write is cut short there
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for step in range(1, 11):
        history.append(a_reading(step))
assert [reading.step for reading in history] == list(range(1, 11))
assert len(said) == 1, said
assert "cannot be written" in str(said[0].message)
assert "Training continues" in str(said[0].message)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
history.append(a_reading(11))
"""


def test_a_full_disk_is_warned_of_once_and_whole_lines_stay_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", FULL, tests, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = steps(path)
    assert found[-1] == 11  # there is room again
    assert found[:-1] == list(range(1, len(found)))
    assert 0 < len(found) - 1 < 10


def test_a_disk_that_is_full_from_the_start_is_warned_of(tmp_path, monkeypatch):
    history = History(tmp_path / "log.jsonl")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.warns(RuntimeWarning, match="No space left on device"):
            history.append(a_reading(1))
        history.append(a_reading(2))  # said once: every warning is an error here
        history.append(a_reading(3))
    history.append(a_reading(4))
    assert steps(tmp_path / "log.jsonl") == [4]
    assert lines(tmp_path / "log.jsonl")[0]["schema"] == SCHEMA
    assert [reading.step for reading in history] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_one_rank_writes_and_all_remember(tmp_path, monkeypatch, name):
    path = tmp_path / "log.jsonl"
    histories = []
    for rank in (1, 0, 2):
        monkeypatch.setenv(name, str(rank))
        histories.append(filled(path, 16, 32))
    assert steps(path) == [16, 32]
    assert all(len(history) == 2 for history in histories)


# --- resume ---


def resumed(state, path, *at, **settings):
    history = History(path, **settings)
    history.load_state_dict(json.loads(json.dumps(state)))
    for step in at:
        history.append(a_reading(step))
    return history


def test_a_resumed_run_goes_on_and_what_the_crash_left_is_superseded(tmp_path):
    path = tmp_path / "log.jsonl"
    history = filled(path, 16, 32)
    state = history.state_dict()
    for step in (48, 64, 80):
        history.append(a_reading(step, bound=3.0, low=2.0, high=4.0, lower=2.0))
    history.close()
    history = resumed(state, path)
    assert [reading.step for reading in history] == [16, 32]
    history.append(a_reading(48))
    assert steps(path) == [16, 32, 48]
    assert lines(path)[-1]["batch_size_bound"] == 100.0
    assert sum("schema" in line for line in lines(path)) == 1
    assert [reading.step for reading in history] == [16, 32, 48]
    assert history.appended == 3


def test_a_checkpoint_before_the_first_reading_supersedes_all_of_the_run(tmp_path):
    path = tmp_path / "log.jsonl"
    filled(path, 8).close()  # an earlier run stays
    history = History(path)
    state = history.state_dict()
    history.append(a_reading(16))
    history.close()
    resumed(state, path, 16, 32).close()
    assert steps(path) == [16, 32]
    assert read_log(path).runs == 2
    assert [line.get("step") for line in lines(path)] == [None, 8, None, 16, 32]


def test_resume_and_half_a_line_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    history = filled(path, 16, 32)
    state = history.state_dict()
    history.append(a_reading(48))
    history.close()
    path.write_bytes(path.read_bytes()[:-40])
    resumed(state, path, 48).close()
    assert steps(path) == [16, 32, 48]


def test_a_run_resumed_twice_has_no_duplicates(tmp_path):
    path = tmp_path / "log.jsonl"
    history = filled(path, 16)
    first = history.state_dict()
    history.close()
    history = resumed(first, path, 32, 48)
    second = history.state_dict()
    history.append(a_reading(64))
    history.close()
    resumed(second, path, 64).close()
    assert steps(path) == [16, 32, 48, 64]
    resumed(first, path, 32).close()
    assert steps(path) == [16, 32]


def test_an_older_state_can_be_loaded_while_the_run_goes_on(tmp_path):
    path = tmp_path / "log.jsonl"
    history = filled(path, 16)
    state = history.state_dict()
    history.append(a_reading(32))
    history.load_state_dict(state)
    history.append(a_reading(20))
    assert steps(path) == [16, 20]


def test_without_a_file_the_latest_reading_survives(tmp_path):
    state = filled(None, 16, 32).state_dict()
    history = resumed(state, None, 48)
    assert [reading.step for reading in history] == [32, 48]
    assert history.appended == 3
    moved = resumed(state, tmp_path / "elsewhere.jsonl", 48)
    assert [reading.step for reading in moved] == [32, 48]
    assert steps(tmp_path / "elsewhere.jsonl") == [48]


def test_another_run_s_readings_are_never_superseded(tmp_path):
    path = tmp_path / "log.jsonl"
    history = filled(path, 16)
    state = history.state_dict()
    history.close()
    filled(path, 100, 200).close()
    resumed(state, path, 32).close()
    assert [line.get("step") for line in lines(path)] == [None, 16, None, 100, 200, None, 32]
    assert steps(path) == [32]


def test_the_state_is_small_and_plain(tmp_path):
    history = filled(tmp_path / "log.jsonl", *range(1, 300))
    text = json.dumps(history.state_dict(), allow_nan=False)
    assert len(text) < 600


def test_memory_after_a_resume_is_thinned_as_before(tmp_path):
    path = tmp_path / "log.jsonl"
    history = History(path, max_readings=8)
    for step in range(1, 101):
        history.append(a_reading(step))
    state = history.state_dict()
    history.close()
    assert [r.step for r in resumed(state, path, max_readings=8)] == [reading.step for reading in history]


@pytest.mark.parametrize(
    "state", [{}, {"run": "a", "appended": 1}, {"run": "a", "appended": 1, "latest": None, "x": 1}]
)
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(ValueError, match=r"state must be what History.state_dict\(\) returned"):
        History().load_state_dict(state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b'{"step":16', r"line 3 is damaged"),
        (b"", r"line 3 is damaged"),
        (b"[1, 2]", r"line 3 is damaged"),
        (b"7", r"line 3 is damaged"),
        (b"\xff\xfe", r"line 3 is damaged"),
        (b'{"schema":"variegrad.monitor/1"}', r"line 3 is damaged: no 'run'"),
        (b'{"schema":"variegrad.monitor/7","run":"a"}', r"line 3 is damaged: its schema is 'variegrad.monitor/7'"),
        (b"[" * 100_000, r"line 3 is damaged"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage, message):
    path = tmp_path / "log.jsonl"
    history = filled(path, 16, 32, 48)
    state = history.state_dict()
    history.close()
    content = path.read_bytes().split(b"\n")
    content[2] = damage
    path.write_bytes(b"\n".join(content))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        read_log(path)
    history = History(path)
    with pytest.raises(ValueError, match=message):
        history.load_state_dict(state)
    history.close()
    assert path.read_bytes() == before
    with warnings.catch_warnings():
        filled(path, 64).close()  # a new run begins after it all the same
    assert path.read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), (b"", "is empty"), (b"hello\n", "is not a log of Monitor")],
)
def test_what_is_no_log_is_not_read(tmp_path, content, message):
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_log(path)
