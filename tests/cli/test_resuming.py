"""`variegrad train --resume`: one command for the first start and every one after it, on any number of workers."""

import errno
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed.ranks import play
from variegrad.distributed import agreement
from variegrad.distributed.world import World
from variegrad.training import checkpoint

SMALL = ("digits", "--max-examples", 100, "--batch-size", 20, "--checkpoint-every", 3)


def weights(folder):
    return load_file(folder / "weights.safetensors")


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


MECHANISMS = {
    "plain": (),
    "DropConnect": ("--mechanism", "dropconnect:0.4", "--epochs"),
    "Langevin": ("--mechanism", "langevin:0.01"),
    "Quantize per worker": ("--mechanism", "quantize", "--per-worker"),
}


@pytest.mark.parametrize("options", MECHANISMS.values(), ids=list(MECHANISMS))
def test_the_same_command_begins_a_run_and_goes_on_with_it(variegrad, tmp_path, options):
    assert variegrad("train", *SMALL, *options, "--passes", 3, "--out", tmp_path / "whole").code == 0
    command = ("train", *SMALL, *options, "--out", tmp_path / "parts", "--resume", "--passes")
    first = variegrad(*command, 2)
    assert first.code == 0
    assert "no checkpoint yet; the run begins at update 0" in first.err
    second = variegrad(*command, 3)
    assert "resuming from update 10 (200 samples seen)" in second.err
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_run_whose_checkpoints_have_gone_does_not_begin_anew(variegrad, tmp_path):
    assert variegrad("train", *SMALL, "--passes", 1, "--out", tmp_path).code == 0
    for kept in (tmp_path / "checkpoints").glob("step-*"):
        for file in kept.iterdir():
            file.unlink()
        kept.rmdir()
    said = variegrad("train", *SMALL, "--passes", 1, "--out", tmp_path, "--resume")
    assert said.code == 2
    assert "LATEST: it names step-000000005 with a SHA-256 that none here has" in said.err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--step-size", 0.5), "step_size was 0.004 and is 0.5 now"),
        (("--max-examples", 90), "examples was 100 and is 90 now"),
        (("--seed", 1), "seed was 0 and is 1 now"),
        (("--mechanism", "quantize"), "mechanism was None and is"),
    ],
)
def test_a_changed_setting_is_refused_by_name(variegrad, tmp_path, changed, message):
    assert variegrad("train", *SMALL, "--passes", 1, "--out", tmp_path).code == 0
    said = variegrad("train", *SMALL, "--passes", 2, *changed, "--out", tmp_path, "--resume")
    assert said.code == 2
    assert message in said.err


def test_updates_left_out_before_are_counted_on(variegrad, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    command = ("train", "own_problem:not_finite", "--batch-size", 5, "--checkpoint-every", 1, "--skip-not-finite", 4)
    assert variegrad(*command, "--passes", 99, "--out", tmp_path / "whole").code == 2  # at the fifth
    assert variegrad(*command, "--passes", 3, "--out", tmp_path / "parts").code == 0
    whole, half = (json.loads((tmp_path / name / "train.json").read_text()) for name in ("whole", "parts"))
    assert 0 < half["left_out"] < whole["left_out"] == 4
    said = variegrad(*command, "--passes", 99, "--out", tmp_path / "parts", "--resume")
    assert f"{half['left_out']} skipped updates" in said.err
    assert said.code == 2
    parts = json.loads((tmp_path / "parts" / "train.json").read_text())
    assert (parts["updates"], parts["left_out"]) == (whole["updates"], 4)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_those_before(
    variegrad, tmp_path, monkeypatch, number
):
    saving = sys.modules["variegrad.training.checkpoint.save"]
    write = saving.durable

    def refusing(path):
        if any(f"step-{step:09d}" in str(path) for step in (6, 9)):
            raise OSError(number, "refused")
        return write(path)

    monkeypatch.setattr(saving, "durable", refusing)
    said = variegrad("train", *SMALL, "--passes", 2, "--out", tmp_path)
    assert said.code == 2
    assert "the checkpoint of step 6 was not saved" in said.err
    assert "The newest that stands is step-000000003" in said.err
    found = checkpoint.load(tmp_path / "checkpoints")
    assert (found.step, found.unusable) == (3, ())
    assert json.loads((tmp_path / "train.json").read_text())["ended"].startswith("failed: [Errno")
    monkeypatch.setattr(saving, "durable", write)  # room was made
    assert variegrad("train", *SMALL, "--passes", 2, "--out", tmp_path, "--resume").code == 0
    assert variegrad("train", *SMALL, "--passes", 2, "--out", tmp_path / "whole").code == 0
    assert_equal(weights(tmp_path), weights(tmp_path / "whole"))


def test_a_slow_disk_does_not_stop_training_and_what_is_written_is_of_its_moment(variegrad, tmp_path, monkeypatch):
    saving = sys.modules["variegrad.training.checkpoint.save"]
    write = saving.tensors.write

    def slow(file, tensors):
        time.sleep(0.3)  # a hundred updates
        return write(file, tensors)

    monkeypatch.setattr(saving.tensors, "write", slow)
    assert variegrad("train", *SMALL, "--passes", 2, "--out", tmp_path / "slow").code == 0
    monkeypatch.setattr(saving.tensors, "write", write)
    assert variegrad("train", *SMALL, "--passes", 2, "--out", tmp_path / "fast").code == 0
    for step in (3, 6, 9, 10)[-3:]:
        one, two = (checkpoint.load(tmp_path / name / "checkpoints", step) for name in ("slow", "fast"))
        assert_equal(one.tensors, two.tensors)


# --- stopped and resumed, beside a twin that was not -----------------------------------------------------------------

OWN = ("own_problem:disturbed", "--batch-size", 5, "--passes", 6, "--checkpoint-every", 4, "--bound-every", 7)


def record(folder):
    """What must be the same: all but times, machines and starts."""
    found = json.loads((folder / "train.json").read_text())
    for row in found["history"]:
        del row["seconds"]
    return {
        name: found[name] for name in ("history", "updates", "examples", "left_out", "accuracy", "ended", "settings")
    }


def killed(arguments):
    """The command in a process of its own, which may kill itself."""
    child = os.fork()
    if child == 0:
        code = _command(0, 1, arguments)
        os._exit(code or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "mechanism", [(), ("--mechanism", "dropconnect:0.4", "--epochs")], ids=["plain", "DropConnect"]
)
@pytest.mark.parametrize("ends", [("SIGTERM",), ("SIGKILL",), ("error",), ("SIGINT", "SIGKILL"), ("error", "SIGTERM"),
                                  ("SIGKILL", "SIGKILL", "SIGTERM")], ids="-".join)  # fmt: skip
def test_a_run_that_is_stopped_in_any_way_and_resumed_is_the_run_that_was_not(
    variegrad, tmp_path, monkeypatch, ends, mechanism
):
    monkeypatch.chdir(Path(__file__).parent)
    command = ("train", *OWN, *mechanism, "--out")
    assert killed([*command, tmp_path / "whole"]) == 0
    moments = random.Random(str(ends))
    for end in ends:
        monkeypatch.setenv("DISTURBED", f"{end} {moments.randrange(3, 12)}")
        assert killed([*command, tmp_path / "parts", "--resume"]) != 0
        if end != "SIGKILL":
            found = json.loads((tmp_path / "parts" / "train.json").read_text())
            assert found["updates"] == checkpoint.load(tmp_path / "parts" / "checkpoints").step
            assert found["ended"].split(":")[0] in ("interrupted", "failed")
    monkeypatch.delenv("DISTURBED")
    assert killed([*command, tmp_path / "parts", "--resume"]) == 0
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert record(tmp_path / "whole") == record(tmp_path / "parts")
    assert (
        len(json.loads((tmp_path / "parts" / "train.json").read_text())["starts"])
        == 1 + sum(end != "SIGKILL" or number > 0 for number, end in enumerate(ends))
        or "SIGKILL" in ends
    )


def test_a_request_to_stop_that_comes_twice_is_one_and_a_later_one_ends_the_process(monkeypatch):
    training = importlib.import_module("variegrad.cli.train")
    world = World()
    with training.ends_together(world) as came:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):  # of a scheduler, a terminal and torchrun
            signal.raise_signal(number)
        assert came == [signal.SIGTERM]
        assert world.stop_requested
        monkeypatch.setattr(training, "TWICE_SECONDS", 0.0)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_batch_size_that_changes_on_resuming_is_recorded_and_stays_changed(variegrad, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    small, large = ("--batch-size", 5, "--passes", 3), ("--batch-size", 10, "--passes", 6)
    command = ("train", "own_problem:disturbed", "--checkpoint-every", 4, "--mechanism", "langevin:0.1", "--out")
    for name in ("whole", "parts"):
        assert killed([*command, tmp_path / name, *small]) == 0
    monkeypatch.setenv("DISTURBED", "SIGKILL 6")
    assert killed([*command, tmp_path / "parts", "--resume", *large]) == -signal.SIGKILL
    monkeypatch.delenv("DISTURBED")
    for name in ("whole", "parts"):
        said = variegrad(*command, tmp_path / name, "--resume", *large)
        assert said.code == 0, said.err
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert record(tmp_path / "whole") == record(tmp_path / "parts")
    starts = json.loads((tmp_path / "parts" / "train.json").read_text())["starts"]
    assert [(each["examples"], each["settings"]["batch_size"]) for each in starts][:2] == [(0, 5), (90, 10)]
    back = variegrad(*command, tmp_path / "parts", "--resume", *large, "--step-size", 0.5)
    assert back.code == 2
    assert "step_size was" in back.err  # without another batch size


def _command(rank, ranks, arguments):
    from variegrad.cli import main

    sys.argv = ["variegrad", *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize(
    "options",
    [MECHANISMS["plain"], MECHANISMS["DropConnect"], ("--mechanism", "quantize")],
    ids=["plain", "DropConnect", "Quantize"],
)
def test_a_run_goes_on_with_another_number_of_workers(variegrad, tmp_path, options):
    assert variegrad("train", *SMALL, *options, "--passes", 3, "--out", tmp_path / "whole").code == 0
    command = ("train", *SMALL, *options, "--out", tmp_path / "parts", "--resume", "--passes")
    assert variegrad(*command, 2).code == 0
    assert play(2, _command, 2, [*command, 3]) == [0, 0]
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in one:  # float32; the sums of the last updates are taken in another order
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)
    whole, parts = record(tmp_path / "whole"), record(tmp_path / "parts")
    for row, other in zip(whole.pop("history"), parts.pop("history"), strict=True):
        assert other.pop("mean_loss") == pytest.approx(row.pop("mean_loss"), rel=1e-6)
        assert row == other
    assert whole == parts


def test_with_a_mechanism_for_each_worker_their_number_may_not_change(variegrad, tmp_path):
    command = ("train", *SMALL, *MECHANISMS["Quantize per worker"], "--out", tmp_path, "--resume", "--passes")
    assert variegrad(*command, 1).code == 0
    assert play(2, _command, 2, [*command, 2]) == [2, 2]


def _one_fails(rank):
    try:
        with agreement.failing_together(World(rank=rank, size=2)):
            if rank == 1:
                raise OSError(28, "no room")
    except OSError as error:
        return f"mine: {error}"
    except RuntimeError as error:
        return str(error)
    return "nothing"


def test_what_one_worker_fails_at_ends_all_of_them():
    assert play(2, _one_fails) == [
        "worker 1 of 2 ended the run: OSError: [Errno 28] no room", "mine: [Errno 28] no room",
    ]  # fmt: skip
