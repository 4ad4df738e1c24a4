"""`variegrad train --resume`: one command for the first start and every one after it, on any number of workers."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed.ranks import play
from variegrad.distributed import agreement
from variegrad.distributed.workers import World
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
    assert "goes on from update 9 (180 samples seen)" in second.err
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_run_whose_checkpoints_have_gone_does_not_begin_anew(variegrad, tmp_path):
    assert variegrad("train", *SMALL, "--passes", 1, "--out", tmp_path).code == 0
    for kept in (tmp_path / "checkpoints").glob("step-*"):
        for file in kept.iterdir():
            file.unlink()
        kept.rmdir()
    said = variegrad("train", *SMALL, "--passes", 1, "--out", tmp_path, "--resume")
    assert said.code == 2
    assert "LATEST: it names step-000000003 with a SHA-256 that none here has" in said.err


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
    assert 0 < half["skipped"] < whole["skipped"] == 4
    said = variegrad(*command, "--passes", 99, "--out", tmp_path / "parts", "--resume")
    assert f"{half['skipped']} updates left out" in said.err
    assert said.code == 2
    parts = json.loads((tmp_path / "parts" / "train.json").read_text())
    assert (parts["updates"], parts["skipped"]) == (whole["updates"], 4)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_keeps_those_before(
    variegrad, tmp_path, monkeypatch, number
):
    import importlib

    saving = importlib.import_module("variegrad.training.checkpoint.save")
    write = saving._write_durably

    def refusing(path, content):
        if "step-000000006" in str(path):
            raise OSError(number, "refused")
        write(path, content)

    monkeypatch.setattr(saving, "_write_durably", refusing)
    said = variegrad("train", *SMALL, "--passes", 2, "--out", tmp_path)
    assert said.code == 2
    assert "the checkpoint of step 6 was not saved" in said.err
    assert "The newest that stands is step-000000003" in said.err
    found = checkpoint.load(tmp_path / "checkpoints")
    assert (found.step, found.skipped) == (3, ())


def _command(rank, ranks, arguments):
    import sys

    from variegrad.cli import main

    sys.argv = ["variegrad", *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize("options", [MECHANISMS["plain"], MECHANISMS["DropConnect"]], ids=["plain", "DropConnect"])
def test_a_run_goes_on_with_another_number_of_workers(variegrad, tmp_path, options):
    assert variegrad("train", *SMALL, *options, "--passes", 3, "--out", tmp_path / "whole").code == 0
    command = ("train", *SMALL, *options, "--out", tmp_path / "parts", "--resume", "--passes")
    assert variegrad(*command, 2).code == 0
    assert play(2, _command, 2, [*command, 3]) == [0, 0]
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in one:  # float32; the sums of the last updates are taken in another order
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)


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
