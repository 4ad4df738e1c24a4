"""Any number of workers gives what one gives, and what one refuses or ends, all do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import variegrad as vg
from distributed.scenarios import INVARIANT, SIZES, TOGETHER, alone
from variegrad.distributed.workers import placement, present
from variegrad.distributed.world import World

HERE = Path(__file__).parent
LIMIT = 240  # seconds; other processes may share the machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("played")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
    }
    command = [sys.executable, "-W", "error::UserWarning", HERE / "scenarios.py", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert not done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module", params=SIZES)
def played(request, folder):
    names = [f"{request.param}-{rank}" for rank in range(request.param)]
    return [(json.loads((folder / f"{n}.json").read_text()), dict(np.load(folder / f"{n}.npz"))) for n in names]


@pytest.fixture(scope="module")
def reference():
    return alone()


def test_results_do_not_depend_on_the_number_of_workers(played, reference):
    for name in INVARIANT:
        for key in (key for key in reference if key.startswith(f"{name}/")):
            for _, arrays in played:
                # Sums of five float64 gradients in another order, over some twenty updates.
                np.testing.assert_allclose(arrays[key], reference[key], rtol=1e-11, atol=1e-13, err_msg=key)


def test_all_workers_have_the_same_numbers_to_the_last_bit(played):
    for _, arrays in played[1:]:
        for key, value in arrays.items():
            np.testing.assert_array_equal(value, played[0][1][key], err_msg=key)


SAID = {
    "settings": "step_size: 0.05 on worker 0, 0.1 on worker 1 (1 of {size} workers differ from worker 0). All workers",
    "mechanism": "the workers differ in mechanism: None on worker 0, DropConnect(p=0.5",
    "starting weights": "the workers differ in parameter 0.weight: (5, 4) float64, numbers ",
    "shapes": "parameter 0.weight: (5, 4) float64",
    "type": "(5, 4) float32",
    "length of the data": "number of examples: 23 on worker 0, 22 on worker 1",
    "numbers of the data": "the workers differ in example ",
    "start": "the workers differ in start, examples: 0 on worker 0, 5 on worker 1 (1 of",
    "batch smaller than the workers": "batch_size must be at least the number of workers, which share each batch",
    "batch normalisation": "BatchNorm1d '1' is in training mode",
    "running statistics": "after the first update, the workers' models are no longer the same: buffer 0.running_mean",
    "loss that is not finite": "of the batch is nan. Check this example's input",
    "gradient that is not finite": "the sum of the gradients is not finite although every loss is",
    "error on one": "update 3, worker 1 of {size}: KeyError: 'nothing'",
    "wrong shape on one": "losses(model, batch) must return one loss per example",
    "asked to stop": "ValueError: ended after 5",
    "afterwards": "[{size}.0]",
    "seconds": "True",
}


def test_what_one_refuses_or_ends_all_do_and_say_why(played):
    assert set(SAID) == {*TOGETHER, "afterwards", "seconds"}
    size = len(played)
    for name, text in SAID.items():
        for said, _ in played:
            if name == "wrong shape on one" and size > 2:
                continue  # a share of one example has one loss
            assert text.format(size=size) in said[name], (name, said[name])


# --- alone ---


def test_one_worker_needs_no_group():
    with vg.workers() as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        assert world.add_up([1.5, 2.0]) == [1.5, 2.0]
        assert (world.tell("said"), world.first_words("said"), world.first_words(None)) == ("said", (0, "said"), None)
        with vg.workers() as inner:
            assert inner.size == 1


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_all_of_it_and_differ_by_one_at_most(count, size):
    shares = [World(rank=rank, size=size).share(count) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with vg.workers(threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_the_environment_of_torchrun_is_read():
    assert placement(WHOLE) == (1, 2, 1)
    assert placement({}) is None
    assert placement({"WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "has WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT but not RANK. Start with torchrun"),
        ({"MASTER_PORT": None}, "but not MASTER_PORT"),
        ({"RANK": "2"}, "RANK must be below WORLD_SIZE; got 2 of 2"),
        ({"RANK": "-1"}, "RANK must be a whole number, not negative; got '-1'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number, not negative; got 'two'"),
    ],
)
def test_an_incomplete_environment_is_refused(changes, message):
    changed = {**WHOLE, **changes}
    with pytest.raises(ValueError, match=message):
        placement({name: value for name, value in changed.items() if value is not None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0.0}, "timeout must be a positive number of seconds; got 0"),
        ({"timeout": float("nan")}, "timeout must be a positive number of seconds; got nan"),
        ({"threads": 0}, "threads must be at least 1; got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message), vg.workers(**options):
        pass


def test_several_workers_without_a_group_are_refused(monkeypatch):
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun started 2 workers, but they form no group"):
        present()
