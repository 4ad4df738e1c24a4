"""Workers: the same reading on each, at no further message; the formulas by hand."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from variegrad.estimators import moments_from_norms, moments_from_workers
from variegrad.monitor.step_sums import StepSums
from variegrad.monitor.tail import digits_as_tail, sums_as_tail, sums_of_digits, sums_of_tail

PROGRAM = Path(__file__).with_name("worker_program.py")


SCENARIOS = {
    2: ["examples", "unequal", "accumulate", "fp16", "nan", "unused", "static", "scalar", "scalar_unequal"],
    3: ["examples", "batch_norm", "fp16"],
}


@pytest.fixture(scope="module", params=SCENARIOS, ids="{} processes".format)
def seen(request, tmp_path_factory):
    """What each rank saw, in one run of real processes through all scenarios."""
    workers, folder = request.param, tmp_path_factory.mktemp("ranks")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(workers), "OUT": str(folder),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", str(PROGRAM), *SCENARIOS[workers]],
            env={**environment, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(workers)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(workers)]


def test_readings_of_all_workers_are_equal_and_right_at_no_further_message(seen):
    for scenario, first in seen[0].items():
        tolerance = {"fp16": 2e-3}.get(scenario, 1e-5)
        for other in seen[1:]:
            assert other[scenario]["readings"] == first["readings"], scenario  # to the last bit
            assert other[scenario]["window"] == first["window"], scenario
        assert len(first["window"]) == len(first["expected"]), scenario
        for (_, *found), expected in zip(first["window"], first["expected"], strict=True):
            assert found[1] == pytest.approx(expected[1], rel=1e-5), scenario
            assert found[0] == pytest.approx(expected[0], rel=tolerance, abs=tolerance * expected[1]), scenario
        assert first["skipped"] == first["skips_expected"], scenario
        assert first["collectives"] == first["collectives_without"], scenario
        # Sixteen-bit buckets carry digits: they weigh more on a watched step, and less than this on one in sixteen.
        assert first["more_bytes"] <= 64 * first["steps"] * (16 if scenario == "fp16" else 1), scenario
        assert all(rank[scenario]["gradients_as_without"] for rank in seen), scenario


@pytest.mark.parametrize("workers", [2, 3, 8, 17, 64])
@pytest.mark.parametrize("wire", [torch.float16, torch.bfloat16])
def test_digits_survive_an_average_in_16_bits(workers, wire):
    torch.manual_seed(0)
    each = [
        StepSums.of_cell(7 + rank, 3e-5 * (rank + 1), 10.0 ** (rank % 30 - 15), 1 / 3, used=rank)
        for rank in range(workers)
    ]
    tails = [digits_as_tail(s, r, workers, wire, torch.zeros(1)).to(wire).div_(workers) for r, s in enumerate(each)]
    total = tails[0]
    for tail in tails[1:]:
        total = total + tail
    found, expected = sums_of_digits(total.float(), workers, wire), sum(each, start=StepSums())
    for name, value in vars(expected).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name


def test_numbers_that_are_not_finite_survive_the_wire():
    sums = StepSums(sq_norms_of_sums=float("nan"))
    assert not sums_of_tail(sums_as_tail(sums, torch.zeros(1))).finite
    tail = digits_as_tail(sums, 1, 2, torch.float16, torch.zeros(1)).half() / 2
    assert not sums_of_digits(tail, 2, torch.float16).finite


def test_too_many_workers_for_a_type_are_refused():
    with pytest.raises(ValueError, match="too many"):
        digits_as_tail(StepSums(), 0, 300, torch.bfloat16, torch.zeros(1))


@pytest.mark.parametrize("sizes", [[4, 4], [2, 5, 9]])
@pytest.mark.parametrize("scale", [1.0, 1 / 7, 4096.0])
def test_sums_of_cells_are_the_estimators_of_one_step(sizes, scale):
    g = [torch.randn(b, 6, generator=torch.Generator().manual_seed(b), dtype=torch.float64) for b in sizes]
    sums = [float(part.sum(0).square().sum()) for part in g]
    whole = torch.cat(g)
    total = float(whole.sum(0).square().sum())

    def cells(norms):
        return sum(
            (
                StepSums.of_cell(
                    b, scale, scale**2 * s, scale**2 * float(part.square().sum()) if norms else None, used=b
                )
                for b, s, part in zip(sizes, sums, g, strict=True)
            ),
            start=StepSums(),
        )

    by_norms = moments_from_norms(float(whole.square().sum()), total, len(whole))
    assert cells(True).moments(scale**2 * total, len(sizes)) == pytest.approx(by_norms)
    assert cells(False).moments(scale**2 * total, len(sizes)) == pytest.approx(moments_from_workers(sums, sizes, total))


def test_means_of_unequal_workers_are_unbiased_over_all_assignments():
    """Each worker averages over its own batch: weights 1/2 and 1/3 on examples of a population of six, all orders."""
    from itertools import permutations

    g = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    k = g @ g.T
    truth = (float((k.sum() - k.trace()) / 20), float(k.trace() / 5))
    found = []
    for order in permutations(range(5)):
        parts = g[list(order[:2])].mean(0), g[list(order[2:])].mean(0)
        sums = StepSums()
        for b, part in zip((2, 3), parts, strict=True):
            sums = sums + StepSums.of_cell(b, 1 / b, float(part.square().sum()), None, used=b)
        found.append(sums.moments(float((parts[0] + parts[1]).square().sum()), 2))
    assert torch.tensor(found, dtype=torch.float64).mean(0).tolist() == pytest.approx(truth)


def test_the_gain_of_adascale_by_hand():
    """Two workers of one example, gradients 3 and 1: |G|² = 3, σ² + |G|² = 5, so B_D = 5/3 and r = 2·B_D/(B_D+1)."""
    sums = StepSums.of_cell(1, 1.0, 9.0, None, used=1) + StepSums.of_cell(1, 1.0, 1.0, None, used=1)
    product, norm = sums.moments(16.0, 2)
    assert (product, norm) == (3.0, 5.0)
    gain = 2 * (norm / product) / (norm / product + 1)
    # AdaScale: (σ² + μ²)/(σ²/S + μ²) with S = 2, σ² = 2, μ² = 3
    assert gain == pytest.approx((2 + 3) / (2 / 2 + 3))


def test_the_gradient_noise_scale_of_two_batch_sizes_by_hand():
    """Four workers of b = 2, ‖mean‖² = 6, 4, 5, 5 and ‖grand mean‖² = 2: |G|² = 1, trΣ = 8, B_simple = 8."""
    sums = sum((StepSums.of_cell(2, 0.5, s, None, used=2) for s in (6.0, 4.0, 5.0, 5.0)), start=StepSums())
    product, norm = sums.moments(16 * 2.0, 4)
    assert product == pytest.approx((8 * 2 - 2 * 5) / (8 - 2))
    assert norm - product == pytest.approx((5 - 2) / (1 / 2 - 1 / 8))
    assert norm / product == pytest.approx(1 + 8)
