from __future__ import annotations

import itertools
import math

import pytest
import torch

from estimate.populations import mean_product, mean_sq_norm, population, true_bound
from variegrad.estimators import estimate_from_gram, estimate_from_workers, moments_from_norms, moments_from_workers
from variegrad.estimators.coherence import coherence_from_gram

SIZES = [(2, 2), (1, 3), (1, 1, 2), (2, 1, 2)]


def shards(gradients, sizes):
    return torch.split(gradients[: sum(sizes)], list(sizes))


def moments(gradients, sizes):
    parts = [part.sum(0) for part in shards(gradients, sizes)]
    total = sum(parts)
    return moments_from_workers([float(s @ s) for s in parts], sizes, float(total @ total))


@pytest.mark.parametrize("sizes", SIZES)
def test_worker_moments_are_unbiased_over_all_permutations_of_a_population(sizes) -> None:
    gradients = population(5, 3, seed=1)
    found = [moments(gradients[list(order)], sizes) for order in itertools.permutations(range(5))]
    assert sum(f.mean_product for f in found) / len(found) == pytest.approx(mean_product(gradients))
    assert sum(f.mean_sq_norm for f in found) / len(found) == pytest.approx(mean_sq_norm(gradients))


@pytest.mark.parametrize("sizes", SIZES[:3])
def test_worker_moments_are_unbiased_over_all_draws_with_replacement(sizes) -> None:
    gradients = population(4, 3, seed=2)
    draws = [gradients[list(index)] for index in itertools.product(range(4), repeat=sum(sizes))]
    found = [moments(draw, sizes) for draw in draws]
    mean = gradients.mean(0)
    assert sum(f.mean_product for f in found) / len(found) == pytest.approx(float(mean @ mean))
    assert sum(f.mean_sq_norm for f in found) / len(found) == pytest.approx(mean_sq_norm(gradients))


def test_equal_workers_give_the_two_batch_size_formula() -> None:
    b, workers = 4, 6
    means = torch.stack([part.mean(0) for part in shards(population(24, 3, seed=3), [b] * workers)])
    small, big = float(means.square().sum(1).mean()), float(means.mean(0).square().sum())
    signal = (workers * b * big - b * small) / (workers * b - b)
    noise = (small - big) / (1 / b - 1 / (workers * b))
    found = moments(population(24, 3, seed=3), [b] * workers)
    assert found.mean_product == pytest.approx(signal)
    assert found.mean_sq_norm == pytest.approx(signal + noise)
    assert estimate_from_workers(means @ means.T, b).batch_size_bound == pytest.approx(1 + noise / signal)


def test_a_case_worked_by_hand() -> None:
    # Means (3,0) and (1,2) of 4 examples each: Û = 3, S_small = (9+5)/2 = 7, ρ_w = 3/7, B = 1 + 4·(7/3 − 1) = 19/3.
    means = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    found = estimate_from_workers(means @ means.T, 4)
    assert found.batch_size_bound == pytest.approx(19 / 3)
    assert found.cannot_tell  # two workers show no spread of their own
    # As sums: ‖s‖² = 144 and 80, ‖total‖² = ‖(16, 8)‖² = 320, so Û = (320−224)/32 = 3 and M̂² = 3 + 16.
    assert moments_from_workers([144.0, 80.0], [4, 4], 320.0) == pytest.approx((3.0, 19.0))


def test_unequal_workers_by_hand() -> None:
    # b = (1, 3): trΣ = (Σ‖ḡ‖² − 2Û)/(1 + 1/3) = (14 − 6)·3/4 = 6, B = 1 + 6/3.
    means = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    assert estimate_from_workers(means @ means.T, [1, 3]).batch_size_bound == pytest.approx(3.0)


def test_workers_of_one_example_are_examples() -> None:
    gradients = population(12, 4, seed=4)
    gram = gradients @ gradients.T
    by_worker, by_example = estimate_from_workers(gram, 1, population=50), estimate_from_gram(gram, population=50)
    for name in ("batch_size_bound", "low", "high", "lower_confidence_bound", "standard_error"):
        assert getattr(by_worker, name) == pytest.approx(getattr(by_example, name))
    totals = moments_from_norms(float(gram.trace()), float(gram.sum()), 12)
    assert moments(gradients, [1] * 12) == pytest.approx(totals)


def test_workers_that_share_out_the_whole_population_find_its_bound_on_average() -> None:
    gradients = population(6, 3, seed=5)
    found = [moments(gradients[list(order)], (3, 3)) for order in itertools.permutations(range(6))]
    rho = sum(f.mean_product for f in found) / sum(f.mean_sq_norm for f in found)
    assert 1 / (1 / 6 + 5 / 6 * rho) == pytest.approx(true_bound(gradients))


def test_the_worker_jackknife_of_unequal_sizes_leaves_one_worker_out() -> None:
    sizes = [1, 2, 3, 4, 5, 6]
    means = torch.stack([part.mean(0) for part in shards(population(21, 3, seed=6), sizes)])

    def bound(keep):
        rows, b = means[keep], [sizes[k] for k in keep]
        product = mean_product(rows)
        noise = (len(b) * mean_sq_norm(rows) - len(b) * product) / sum(1 / x for x in b)
        return 1 + noise / product

    harmonic = len(sizes) / sum(1 / b for b in sizes)
    everyone = list(range(6))
    found = estimate_from_workers(means @ means.T, sizes)
    assert found.batch_size_bound == pytest.approx(bound(everyone))
    left_out = [1 / (1 + (bound([k for k in everyone if k != j]) - 1) / harmonic) for j in everyone]
    centre = sum(left_out) / 6
    variance = coherence_from_gram(means @ means.T, noise=1 / torch.tensor(sizes).double()).jackknife_variance
    assert float(variance) == pytest.approx(5 / 6 * sum((r - centre) ** 2 for r in left_out))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_from_workers(torch.ones(1, 1), 8), r"not identifiable from a single worker"),
        (lambda: moments_from_workers([1.0], [8], 1.0), r"not identifiable from a single worker"),
        (lambda: estimate_from_workers(torch.ones(3, 3), [1, 2]), r"each of the 3 workers; got 2 sizes"),
        (lambda: estimate_from_workers(torch.ones(2, 2), [1, 0]), r"at least 1 example each; got 0"),
        (lambda: estimate_from_workers(torch.ones(4, 4), 8, population=31), r"at least the 32 examples .* got 31"),
        (
            lambda: estimate_from_workers(torch.diag(torch.tensor([1.0, math.nan])), 8),
            r"those of workers \[1\] are not",
        ),
    ],
)
def test_impossible_workers_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
