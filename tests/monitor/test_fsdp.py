"""A fully sharded model in two processes: readings by the definition, the same on each, and gradients as without."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

PROGRAM = Path(__file__).with_name("fsdp_program.py")
fsdp = pytest.importorskip("torch.distributed.fsdp", reason="this torch is built without sharding")
if not hasattr(getattr(fsdp, "FSDPModule", None), "set_custom_reduce_scatter"):
    pytest.skip("this torch has no custom reduce-scatter for sharded modules", allow_module_level=True)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each rank saw, in one run of two processes through all scenarios."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "OUT": str(folder)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", str(PROGRAM)],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("scenario", ["losses", "scalar", "nan", "every"])
def test_readings_are_right_and_equal_on_both_workers_at_one_message(seen, scenario):
    first, second = (rank[scenario] for rank in seen)
    assert first["readings"] == second["readings"]  # to the last bit
    assert first["window"] == second["window"]
    assert len(first["window"]) == len(first["expected"])
    for (*_, product, norm), expected in zip(first["window"], first["expected"], strict=True):
        assert norm == pytest.approx(expected[1], rel=1e-5)
        assert product == pytest.approx(expected[0], abs=1e-5 * expected[1])
    assert first["source"] == "2 workers"
    assert first["skipped"] == int(scenario == "nan")
    assert first["collectives"] == first["watched"]  # a watched step's one message; none on the others
    assert first["same"]
    assert second["same"]


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        ("another", "the one that the Monitor was made with"),
        ("accumulate", "one micro-batch a step only"),
        ("inner", "no communication hook to compose with"),
        ("plain", "takes a DistributedDataParallel or a model after fully_shard; got Sequential"),
        ("ignored", "'4.bias' is trained but not sharded"),
        ("scaled", "scaled before they are reduced, by a factor that is not known"),
    ],
)
def test_what_sharding_cannot_serve_is_said(seen, case, rule):
    assert rule in seen[0]["refusals"][case]


def test_a_torch_without_the_interface_is_told():
    from variegrad.monitor.fsdp import ShardedNorms

    class FSDPModule(nn.Linear):
        def _get_fsdp_state(self):
            raise AttributeError("no such thing")

    model = FSDPModule(2, 2)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no custom reduce-scatter.*no such thing"):
        ShardedNorms(model)
