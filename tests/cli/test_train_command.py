"""`variegrad train`: what it keeps, what it prints, one line for bad input, and how it goes on."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from variegrad.cli.train import default_step_size
from variegrad.problems import load
from variegrad.training import Evaluation, TrainConfig, train

SMALL = ("digits", "--max-examples", "100", "--batch-size", "20", "--passes", "2")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a user's module, as the current one."""
    shutil.copy(Path(__file__).parent / "own_problem.py", tmp_path / "own_problem.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_problem", None)


def kept(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((folder / "train.json").read_text(), parse_constant=refuse)
    return record, load_file(folder / "weights.safetensors")


def test_it_keeps_what_train_gives(variegrad, tmp_path):
    said = variegrad("train", *SMALL, "--out", tmp_path / "a", "--seed", 3, "--bound-every", 4)
    assert said.code == 0, said.err
    record, weights = kept(tmp_path / "a")
    problem = load("digits", seed=3, max_examples=100)
    config = TrainConfig(batch_size=20, step_size=problem.step_size, passes=2, seed=3)
    evaluation = Evaluation(accuracy=problem.accuracy, data=problem.test)
    steps = list(train(problem.model, problem.losses, problem.train, config, evaluation=evaluation))
    for name, tensor in problem.model.state_dict().items():
        assert torch.equal(weights[name], tensor)
    assert record["schema"] == "variegrad.train/2"
    assert (record["updates"], record["examples"], record["ended"]) == (10, 200, "finished")
    assert record["accuracy"] == steps[-1].accuracy
    assert record["settings"] == config.settings()
    assert [(h["updates"], h["batch_size_bound"] is not None) for h in record["history"]] == [
        (3, False), (4, True), (5, False), (8, True), (10, False)
    ]  # fmt: skip
    first = record["history"][0]
    assert first["mean_loss"] == pytest.approx(sum(s.mean_loss for s in steps[:3]) / 3)
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.name != "LOCK") == [
        "checkpoints", "train.json", "weights.safetensors"
    ]  # fmt: skip


def test_it_says_how_it_goes_and_how_it_ended(variegrad):
    said = variegrad("train", *SMALL)
    assert said.out.startswith("digits: pass 2.00, loss ")
    assert "10 updates in " in said.out
    assert said.out.rstrip().endswith("; finished")
    assert [line.split(",")[0] for line in said.err.splitlines()] == [
        "digits: pass 0.60", "digits: pass 1.00", "digits: pass 1.60", "digits: pass 2.00"
    ]  # fmt: skip


def test_it_ends_at_a_target(variegrad, tmp_path):
    said = variegrad("train", "digits", "--target-accuracy", 0.5, "--passes", 99, "--out", tmp_path)
    record, _ = kept(tmp_path)
    assert record["ended"] == "target reached"
    assert said.out.rstrip().endswith("target reached")
    assert record["accuracy"] >= 0.5
    assert record["examples"] < 99 * 1437


@pytest.mark.parametrize("options", [(), ("--epochs", "--mechanism", "dropconnect:0.4")], ids=["plain", "mechanism"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(variegrad, tmp_path, options):
    long = ("--passes", 4, *options)
    assert variegrad("train", *SMALL, *long, "--out", tmp_path / "whole").code == 0
    assert variegrad("train", *SMALL, *options, "--out", tmp_path / "parts", "--checkpoint-every", 3).code == 0
    said = variegrad("train", *SMALL, *long, "--out", tmp_path / "parts", "--resume", "--checkpoint-every", 3)
    assert said.code == 0, said.err
    (whole, weights), (parts, found) = kept(tmp_path / "whole"), kept(tmp_path / "parts")
    assert [each["examples"] for each in parts["starts"]] == [0, 200]
    assert parts["examples"] == whole["examples"]
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor)
    changed = variegrad("train", *SMALL, *options, "--step-size", 0.5, "--out", tmp_path / "parts", "--resume")
    assert changed.code == 2
    assert "step_size was 0.004 and is 0.5 now" in changed.err


def test_ctrl_c_keeps_what_was_learnt(variegrad, own):
    said = variegrad("train", "own_problem:interrupting", "--batch-size", 5, "--out", "runs")
    assert said.code == 130
    record, weights = kept(Path("runs"))
    assert (record["ended"], record["updates"]) == ("interrupted", 10)
    assert weights.keys() == {"weight", "bias"}
    assert said.out.rstrip().endswith("interrupted")


def test_a_run_that_diverges_keeps_its_record(variegrad, tmp_path):
    said = variegrad("train", *SMALL, "--step-size", "1e30", "--out", tmp_path)
    assert said.code == 2
    record, _ = kept(tmp_path)
    assert record["ended"].startswith("failed: the ")
    assert said.err.splitlines()[-1].startswith("variegrad: the ")
    assert "Traceback" not in said.err


def test_updates_that_are_not_finite_can_be_left_out(variegrad, own):
    assert variegrad("train", "own_problem:not_finite", "--batch-size", 5).code == 2
    said = variegrad("train", "own_problem:not_finite", "--batch-size", 5, "--skip-not-finite", 99, "--out", "runs")
    assert said.code == 0, said.err
    assert kept(Path("runs"))[0]["left_out"] > 0
    assert "skipped updates" in said.out


def test_a_problem_without_accuracy(variegrad, own):
    said = variegrad("train", "own_problem:problem", "--passes", 1, "--batch-size", 5, "--out", "runs")
    assert said.code == 0, said.err
    assert kept(Path("runs"))[0]["accuracy"] is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports
def test_tensorboard_events_are_written(variegrad, tmp_path):
    pytest.importorskip("tensorboard")
    assert variegrad("train", *SMALL, "--tensorboard", tmp_path / "events").code == 0
    assert [p.name.startswith("events.out.tfevents") for p in (tmp_path / "events").iterdir()] == [True]


def test_without_tensorboard_the_way_to_it_is_said(variegrad, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said = variegrad("train", *SMALL, "--tensorboard", tmp_path)
    assert said.code == 2
    assert "pip install 'variegrad[tensorboard]'" in said.err


BAD = {
    "unknown problem": (["digit"], "unknown problem 'digit'; did you mean 'digits'?"),
    "missing data": (["mnist", "--data-root", "/nowhere"], "mnist needs the files"),
    "batch size 0": (["digits", "--batch-size", "0"], "--batch-size: must be at least 1; got 0"),
    "passes 0": (["digits", "--passes", "0"], "--passes: must be more than 0; got 0"),
    "passes NaN": (["digits", "--passes", "nan"], "--passes: must be more than 0; got nan"),
    "step size NaN": (["digits", "--step-size", "nan"], "--step-size: must be more than 0; got nan"),
    "step size 0": (["digits", "--step-size", "0"], "--step-size: must be more than 0; got 0"),
    "probability 1": (["digits", "--mechanism", "dropconnect:1"], "p must lie in [0, 1); got 1"),
    "probability NaN": (["digits", "--mechanism", "dropconnect:nan"], "p must lie in [0, 1); got nan"),
    "negative sigma": (["digits", "--mechanism", "langevin:-1"], "sigma must be a finite number ≥ 0; got -1"),
    "unknown mechanism": (["digits", "--mechanism", "drop"], "--mechanism: unknown 'drop'"),
    "per worker without mechanism": (["digits", "--per-worker"], "pass --mechanism as well"),
    "data smaller than a batch": (
        ["digits", "--max-examples", "9", "--epochs"],
        "a batch must not be larger than the training set (9 examples); got 64",
    ),
    "target 95": (
        ["digits", "--target-accuracy", "95"],
        "--target-accuracy: must be more than 0 and at most 1; got 95",
    ),
    "target without accuracy": (
        ["own_problem:problem", "--target-accuracy", "0.9"],
        "own has no accuracy",
    ),
    "evaluate never": (["digits", "--evaluate-every", "0"], "--evaluate-every: must be more than 0; got 0"),
    "bound never": (["digits", "--bound-every", "0"], "--bound-every: must be at least 1; got 0"),
    "resume from nowhere": (["digits", "--resume"], "need a folder: pass --out"),
    "skip less than none": (["digits", "--skip-not-finite", "-1"], "--skip-not-finite: must be at least 0; got -1"),
    "timeout 0": (["digits", "--timeout", "0"], "--timeout: must be more than 0; got 0"),
    "folder that is a file": (["digits", "--out", "own_problem.py/a"], "is not a folder"),
    "empty training set": (["own_problem:empty"], "the training set has no examples"),
    "scalar loss": (["own_problem:scalar"], "got a scalar. Compute the loss with reduction='none'"),
    "a defect in losses": (["own_problem:broken"], "KeyError: 'nothing' (where: set VARIEGRAD_TRACEBACK=1)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_two(case, variegrad, own):
    arguments, message = BAD[case]
    said = variegrad("train", *arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("variegrad: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_folder_in_use_is_refused(variegrad, tmp_path):
    from variegrad.training.checkpoint import lock

    with lock(tmp_path):
        said = variegrad("train", *SMALL, "--out", tmp_path)
    assert said.code == 2
    assert "another run in this process" in said.err


def test_the_default_step_is_the_problem_s_own_and_grows_no_learning_rate_beyond_twice():
    problem = load("digits")
    assert default_step_size(problem, 1) == default_step_size(problem, 64) == problem.step_size
    rates = [default_step_size(problem, b) * b for b in (64, 128, 512, 10**6)]
    assert rates == sorted(rates)
    assert rates[-1] < 2 * rates[0]
    assert math.isfinite(rates[-1])


@pytest.mark.slow
def test_mnist_to_95_per_cent_on_real_data(variegrad, data_root, tmp_path):
    options = ("--data-root", data_root, "--batch-size", 256, "--passes", 3, "--target-accuracy", 0.95)
    assert variegrad("train", "mnist", *options, "--out", tmp_path).code == 0
    assert kept(tmp_path)[0]["accuracy"] >= 0.95
