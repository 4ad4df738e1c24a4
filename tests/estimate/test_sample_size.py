from __future__ import annotations

import math

import pytest
import torch

from variegrad.estimators import GradientShape, estimate_from_gram, examples_needed, gradient_shape, norms_needed


def draw(rows: int, m: int, bound: float, spectrum, seed: int):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(len(spectrum), dtype=torch.float64)
    mean[0] = math.sqrt(float(spectrum.sum()) / (bound - 1))
    return mean + torch.randn(rows, m, len(spectrum), dtype=torch.float64, generator=generator) * spectrum.sqrt()


def test_the_rule_lies_between_the_larger_and_the_sum_of_its_terms() -> None:
    shape = GradientShape(norm_cv2=0.5, alignment=0.2, effective_dimension=100.0)
    first, second = (0.5 + 0.8 * 99) / 0.2**2, 99 * math.sqrt(2 / 100) / 0.2
    assert max(first, second) <= examples_needed(0.2, 100.0, shape) <= first + second + 1


def test_so_many_examples_give_the_asked_error() -> None:
    # B = 40 in 50 flat dimensions, ε = 0.25; 600 repeats give a standard deviation to 3 %, the rule is good to 6 %.
    spectrum = torch.ones(50, dtype=torch.float64)
    shape = GradientShape(norm_cv2=2 / 50, alignment=1 / 50, effective_dimension=50.0)
    m = examples_needed(0.25, 40.0, shape)
    samples = draw(600, m, 40, spectrum, seed=1)
    rho = [estimate_from_gram(rows @ rows.T).coherence for rows in samples]
    assert torch.tensor(rho).std().item() * 40 == pytest.approx(0.25, rel=0.15)


def test_the_shape_of_a_large_sample_is_that_of_its_population() -> None:
    spectrum = torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    rows = draw(1, 3000, 5, spectrum, seed=2)[0]
    found = gradient_shape(rows @ rows.T)
    # Var‖g‖² = 2trΣ² + 4μᵀΣμ with ‖μ‖² = 2 along the axis of variance 4.
    assert found.effective_dimension == pytest.approx(8**2 / 20, rel=0.1)
    assert found.alignment == pytest.approx(0.5, rel=0.1)
    assert found.norm_cv2 == pytest.approx((2 * 20 + 4 * 4 * 2) / 10**2, rel=0.15)


def test_high_dimension_needs_fewer_examples_than_the_bound() -> None:
    assert examples_needed(0.2, 500.0, GradientShape(norm_cv2=0.1, alignment=0.001, effective_dimension=400.0)) < 250
    assert examples_needed(0.2, 500.0, GradientShape(norm_cv2=0.1, alignment=0.001, effective_dimension=3.0)) > 1500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: examples_needed(0.0, 5.0, s), "relative_error must be positive"),
        (lambda s: examples_needed(0.2, math.inf, s), "finite number"),
        (lambda s: gradient_shape(torch.ones(3, 3)), "at least 4 examples"),
        (lambda s: gradient_shape(torch.ones(8, 8)), "all equal"),
    ],
)
def test_impossible_questions_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(GradientShape(norm_cv2=1.0, alignment=1.0, effective_dimension=1.0))


@pytest.mark.parametrize(("spread", "error"), [(0.3, 0.1), (1.0, 0.2), (1.5, 0.1)])
def test_the_mean_norm_of_as_many_examples_as_are_needed_has_the_error_that_was_asked_for(spread, error) -> None:
    norms = torch.exp(spread * torch.randn(400, generator=torch.Generator().manual_seed(0)).double())
    m = norms_needed(error, float(norms.var() / norms.mean() ** 2), 400)
    assert 1 < m < 400
    draws = torch.stack(
        [norms[torch.randperm(400, generator=torch.Generator().manual_seed(k))[:m]].mean() for k in range(400)]
    )
    # 400 draws know a standard deviation to 4 % (one standard error).
    assert float(draws.std() / norms.mean()) == pytest.approx(error, rel=0.15)


def test_norms_needed_in_its_corners() -> None:
    assert norms_needed(0.1, 0.0, 64) == 1
    assert norms_needed(1e-9, 2.0, 64) == 64
    assert norms_needed(5.0, 0.1, 64) == 1
    for arguments in ((0.0, 1.0, 8), (0.1, -1.0, 8), (0.1, math.nan, 8), (0.1, 1.0, 0)):
        with pytest.raises(ValueError, match="must be"):
            norms_needed(*arguments)
