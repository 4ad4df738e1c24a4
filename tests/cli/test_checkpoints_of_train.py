"""`variegrad train --checkpoint-every … --resume`: what stands in the folder is used, or named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

SMALL = ("digits", "--max-examples", 100, "--batch-size", 20, "--passes", 2)


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "LOCK"}


def test_a_damaged_checkpoint_is_skipped_and_named(variegrad, tmp_path):
    assert variegrad("train", *SMALL, "--checkpoint-every", 3, "--out", tmp_path).code == 0
    whole = load_file(tmp_path / "weights.safetensors")
    damaged = tmp_path / "checkpoints" / "step-000000010" / "tensors.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    said = variegrad("train", *SMALL, "--out", tmp_path, "--resume")
    assert said.code == 0, said.err
    assert "skipped checkpoint step-000000010: tensors.safetensors does not fit its SHA-256" in said.err
    for name, tensor in load_file(tmp_path / "weights.safetensors").items():
        assert torch.equal(tensor, whole[name])  # from step 6 on, the run is the same


FIRST = {
    "with checkpoints": ("--checkpoint-every", 3),
    "without": (),
    "failed": ("--step-size", "1e30"),
    "at its target": ("--target-accuracy", 0.01),
}


@pytest.mark.parametrize("again", [(), ("--checkpoint-every", 3), ("--seed", 1), ("--passes", 5)], ids=str)
@pytest.mark.parametrize("first", FIRST)
def test_a_second_run_in_the_folder_of_a_first_is_told_to_resume(variegrad, tmp_path, first, again):
    variegrad("train", *SMALL, *FIRST[first], "--out", tmp_path)
    before = content(tmp_path)
    assert {"train.json", "weights.safetensors"} <= {path.name for path in before}
    said = variegrad("train", *SMALL, *again, "--out", tmp_path)
    assert said.code == 2
    assert "holds a run (train.json, weights.safetensors, checkpoints): continue it with --resume" in said.err
    assert content(tmp_path) == before


def test_a_run_without_a_checkpoint_is_not_begun_anew_by_resume(variegrad, tmp_path):
    variegrad("train", *SMALL, "--out", tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = content(tmp_path)
    said = variegrad("train", *SMALL, "--out", tmp_path, "--resume")
    assert said.code == 2
    assert "holds train.json and weights.safetensors of a run but no checkpoint" in said.err
    assert content(tmp_path) == before


@pytest.mark.parametrize("more", [(), ("--passes", 1), ("--target-accuracy", 0.01)], ids=str)
def test_a_resume_with_nothing_to_do_writes_nothing(variegrad, tmp_path, more):
    variegrad("train", *SMALL, *more, "--out", tmp_path)
    before = content(tmp_path)
    said = variegrad("train", *SMALL, *more, "--out", tmp_path, "--resume")
    assert (said.code, said.out.split(":")[1].strip()) == (0, "nothing to do")
    assert content(tmp_path) == before


@pytest.mark.parametrize("lost", ["train.json", "weights.safetensors"])
def test_what_was_not_written_before_the_process_was_killed_is_written_on_resuming(variegrad, tmp_path, lost):
    variegrad("train", *SMALL, "--out", tmp_path)
    before = content(tmp_path)
    (tmp_path / lost).unlink()
    assert variegrad("train", *SMALL, "--out", tmp_path, "--resume").code == 0
    after = content(tmp_path)
    assert after[tmp_path / "weights.safetensors"] == before[tmp_path / "weights.safetensors"]
    one, two = (json.loads(each[tmp_path / "train.json"]) for each in (before, after))
    assert [(row["updates"], row["mean_loss"]) for row in one["history"]] == [
        (row["updates"], row["mean_loss"]) for row in two["history"]
    ]
    assert one["updates"] == two["updates"]
