"""A fully sharded model in two processes: readings by the definition, the same on each, and gradients as without."""

import pytest
from torch import nn

from monitor.ranks import run

fsdp = pytest.importorskip("torch.distributed.fsdp", reason="this torch is built without sharding")
if not hasattr(getattr(fsdp, "FSDPModule", None), "set_custom_reduce_scatter"):
    pytest.skip("this torch has no custom reduce-scatter for sharded modules", allow_module_level=True)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each rank saw, in one run of two processes through all scenarios."""
    return run("fsdp_program.py", tmp_path_factory.mktemp("ranks"), 2)


@pytest.mark.parametrize("scenario", ["losses", "scalar", "nan", "every", "accumulate"])
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
        ("another", "the one that was passed to the Monitor"),
        ("one", "1 of 2 workers did not call watch"),
        ("inner", "no communication hook to compose with"),
        ("plain", "takes a DistributedDataParallel or a model after fully_shard; got Sequential"),
        ("ignored", "'4.bias' is trained but not sharded"),
        ("scaled", "scaled by an unknown factor before they are reduced"),
    ],
)
def test_what_sharding_cannot_serve_is_said(seen, case, rule):
    assert rule in seen[0]["refusals"][case]


def test_a_torch_without_the_interface_is_told():
    from variegrad.monitor.exchange.fsdp import ShardedLockstep
    from variegrad.monitor.schedule import Schedule

    class FSDPModule(nn.Linear):
        def _get_fsdp_state(self):
            raise AttributeError("no such thing")

    model = FSDPModule(2, 2)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no custom reduce-scatter.*no such thing"):
        ShardedLockstep(Schedule(every=1, warm_up=0), 1, model)
