"""`variegrad train --checkpoint-every … --resume`: what stands in the folder is used, or named."""

import torch
from safetensors.torch import load_file

SMALL = ("digits", "--max-examples", 100, "--batch-size", 20, "--passes", 2, "--checkpoint-every", 3)


def test_a_damaged_checkpoint_is_passed_over_and_named(variegrad, tmp_path):
    assert variegrad("train", *SMALL, "--out", tmp_path).code == 0
    whole = load_file(tmp_path / "weights.safetensors")
    damaged = tmp_path / "checkpoints" / "step-000000009" / "tensors.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    said = variegrad("train", *SMALL, "--out", tmp_path, "--resume")
    assert said.code == 0, said.err
    assert "checkpoint passed over: step-000000009: tensors.safetensors does not fit its SHA-256" in said.err
    for name, tensor in load_file(tmp_path / "weights.safetensors").items():
        assert torch.equal(tensor, whole[name])  # from step 6 on, the run is the same


def test_checkpoints_of_an_earlier_run_are_not_written_over(variegrad, tmp_path):
    assert variegrad("train", *SMALL, "--out", tmp_path).code == 0
    said = variegrad("train", *SMALL, "--out", tmp_path, "--seed", 1)
    assert said.code == 2
    assert "holds checkpoints of a run, up to update 9: go on from them with --resume, or choose another" in said.err
