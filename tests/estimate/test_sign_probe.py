from __future__ import annotations

import itertools
import math

import pytest
import torch

from estimate.populations import mean_product, mean_sq_norm, population
from variegrad.estimators import balanced_signs, estimate_from_sign_probes, moments_from_sign_probe

GRADIENTS = population(6, 3, seed=1)
TOTAL = float(GRADIENTS.sum(0).square().sum())


def probe(signs) -> float:
    return float((torch.as_tensor(signs, dtype=torch.float64) @ GRADIENTS).square().sum())


def test_the_balanced_probe_is_unbiased_over_all_balanced_signs() -> None:
    signs = [s for s in itertools.product((-1, 1), repeat=6) if sum(s) == 0]
    found = [moments_from_sign_probe(probe(s), TOTAL, 6) for s in signs]
    assert sum(f.mean_sq_norm for f in found) / len(found) == pytest.approx(mean_sq_norm(GRADIENTS))
    assert sum(f.mean_product for f in found) / len(found) == pytest.approx(mean_product(GRADIENTS))


def test_the_interval_over_probes_covers_the_batch() -> None:
    # 300 intervals of 6 probes; 0.90 is 4 standard errors (0.0126) below the nominal 0.95.
    generator = torch.Generator().manual_seed(2)
    truth = float(GRADIENTS.square().sum())
    covered = 0
    for _ in range(300):
        probes = torch.tensor([probe(balanced_signs(6, generator)) for _ in range(6)])
        found = estimate_from_sign_probes(probes, TOTAL, 6)
        covered += found.low <= truth <= found.high
    assert covered >= 270


def test_a_single_probe_has_no_upper_end() -> None:
    found = estimate_from_sign_probes(torch.tensor([3.0]), 6.0, 6)
    assert found.sum_sq_norms == pytest.approx((5 * 3 + 6) / 6)
    assert (found.low, found.high, found.standard_error) == (1.0, math.inf, math.inf)


def test_signs_are_balanced_and_keyed_by_their_generator() -> None:
    signs = balanced_signs(10, torch.Generator().manual_seed(3))
    assert float(signs.sum()) == 0
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert signs.equal(balanced_signs(10, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: balanced_signs(5, torch.Generator()),
        lambda: moments_from_sign_probe(1.0, 1.0, 5),
        lambda: estimate_from_sign_probes(torch.ones(2), 1.0, 0),
    ],
)
def test_an_odd_batch_is_refused(call) -> None:
    with pytest.raises(ValueError, match="even number of examples"):
        call()


def test_no_probe_is_refused() -> None:
    with pytest.raises(ValueError, match="one probe at least"):
        estimate_from_sign_probes(torch.ones(0), 1.0, 4)
