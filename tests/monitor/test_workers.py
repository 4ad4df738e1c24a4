"""Workers: the same reading on each, at one small message; the formulas by hand."""

import pytest
import torch

from monitor.ranks import run
from variegrad.estimators import moments_from_norms, moments_from_workers
from variegrad.monitor.exchange.sums import NUMBERS, StepSums, cell_sums, failed, of_worker

SCENARIOS = {
    2: [
        "examples",
        "unequal",
        "accumulate",
        "fp16",
        "nan",
        "unused",
        "static",
        "scalar",
        "scalar_unequal",
        "mechanism",
        "mechanism_composed",
    ],
    3: ["examples", "batch_norm", "fp16"],
}


@pytest.fixture(scope="module", params=SCENARIOS, ids="{} processes".format)
def seen(request, tmp_path_factory):
    """What each rank saw, in one run of real processes through all scenarios."""
    return run("worker_program.py", tmp_path_factory.mktemp("ranks"), request.param, *SCENARIOS[request.param])


def test_readings_of_all_workers_are_equal_and_right_at_one_small_message(seen):
    for scenario, first in seen[0].items():
        tolerance = {"fp16": 2e-3}.get(scenario, 1e-5)
        for other in seen[1:]:
            assert other[scenario]["readings"] == first["readings"], scenario  # to the last bit
            assert other[scenario]["window"] == first["window"], scenario
        assert len(first["window"]) == len(first["expected"]), scenario
        for (*_, product, norm), expected in zip(first["window"], first["expected"], strict=True):
            assert norm == pytest.approx(expected[1], rel=1e-5), scenario
            assert product == pytest.approx(expected[0], rel=tolerance, abs=tolerance * expected[1]), scenario
        assert first["skipped"] == first["skips_expected"], scenario
        # One message of so many float64 numbers on a watched step, whatever travels with the gradients.
        if not first["beside"]:
            assert first["collectives"] == first["collectives_without"] + first["steps"], scenario
        # A mechanism is left to it: the plain gradients are averaged beside it.
        assert first["more_bytes"] == 8 * NUMBERS * first["steps"] + first["beside"], scenario
        assert all(rank[scenario]["gradients_as_without"] for rank in seen), scenario


def test_a_resumed_run_does_not_repeat_the_warm_up(seen):
    for rank in seen:
        if "resumed" in rank:
            assert rank["resumed"]["numbers"] == [9, 11]


def cells_of(*cells):
    """The sums of cells (b, c, c²‖s‖², c²A or None) as they are read."""
    each = [
        cell_sums(torch.full((b,), c), torch.tensor(w, dtype=torch.float64),
                  norms=None if a is None else torch.tensor([a / b] * b, dtype=torch.float64))
        for b, c, w, a in cells
    ]  # fmt: skip
    return StepSums(*of_worker(each).tolist())


def test_numbers_that_are_not_finite_survive_the_wire():
    assert not StepSums(*(failed(torch.device("cpu")) + cell_sums(torch.ones(2), torch.tensor(1.0))).tolist()).finite


@pytest.mark.parametrize(
    ("weights", "uneven"),
    [
        ([0.25] * 4, False), ([0.5, 0, 0.5, 0.5], False), ([0.1 + 1e-9, 0.1, 0.1, 0.1], False), ([0.0] * 4, False),
        ([0.25, 0.25, 0.25, 0.26], True), ([1.0, -1.0, 1.0, 1.0], True),
    ],
)  # fmt: skip
def test_unequal_weights_are_seen_from_three_sums(weights, uneven):
    sums = StepSums(*cell_sums(torch.tensor(weights, dtype=torch.float64), torch.tensor(1.0)).tolist())
    assert sums.uneven == uneven


@pytest.mark.parametrize("sizes", [[4, 4], [2, 5, 9]])
@pytest.mark.parametrize("scale", [1.0, 1 / 7, 4096.0])
def test_sums_of_cells_are_the_estimators_of_one_step(sizes, scale):
    g = [torch.randn(b, 6, generator=torch.Generator().manual_seed(b), dtype=torch.float64) for b in sizes]
    sums = [float(part.sum(0).square().sum()) for part in g]
    whole = torch.cat(g)
    total = float(whole.sum(0).square().sum())

    def cells(norms):
        return cells_of(
            *[
                (b, scale, scale**2 * s, scale**2 * float(part.square().sum()) if norms else None)
                for b, s, part in zip(sizes, sums, g, strict=True)
            ]
        )

    by_norms = moments_from_norms(float(whole.square().sum()), total, len(whole))
    assert cells(True).moments(scale**2 * total) == pytest.approx(by_norms)
    assert cells(False).moments(scale**2 * total) == pytest.approx(moments_from_workers(sums, sizes, total))


def test_means_of_unequal_workers_are_unbiased_over_all_assignments():
    """Each worker averages over its own batch: weights 1/2 and 1/3 on examples of a population of six, all orders."""
    from itertools import permutations

    g = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    k = g @ g.T
    truth = (float((k.sum() - k.trace()) / 20), float(k.trace() / 5))
    found = []
    for order in permutations(range(5)):
        parts = g[list(order[:2])].mean(0), g[list(order[2:])].mean(0)
        sums = cells_of(*[(b, 1 / b, float(p.square().sum()), None) for b, p in zip((2, 3), parts, strict=True)])
        found.append(sums.moments(float((parts[0] + parts[1]).square().sum())))
    assert torch.tensor(found, dtype=torch.float64).mean(0).tolist() == pytest.approx(truth)


def test_the_gain_of_adascale_by_hand():
    """Two workers of one example, gradients 3 and 1: |G|² = 3, σ² + |G|² = 5, so B_D = 5/3 and r = 2·B_D/(B_D+1)."""
    product, norm = cells_of((1, 1.0, 9.0, None), (1, 1.0, 1.0, None)).moments(16.0)
    assert (product, norm) == (3.0, 5.0)
    gain = 2 * (norm / product) / (norm / product + 1)
    # AdaScale: (σ² + μ²)/(σ²/S + μ²) with S = 2, σ² = 2, μ² = 3
    assert gain == pytest.approx((2 + 3) / (2 / 2 + 3))


def test_the_gradient_noise_scale_of_two_batch_sizes_by_hand():
    """Four workers of b = 2, ‖mean‖² = 6, 4, 5, 5 and ‖grand mean‖² = 2: |G|² = 1, trΣ = 8, B_simple = 8."""
    product, norm = cells_of(*[(2, 0.5, s, None) for s in (6.0, 4.0, 5.0, 5.0)]).moments(16 * 2.0)
    assert product == pytest.approx((8 * 2 - 2 * 5) / (8 - 2))
    assert norm - product == pytest.approx((5 - 2) / (1 / 2 - 1 / 8))
    assert norm / product == pytest.approx(1 + 8)
