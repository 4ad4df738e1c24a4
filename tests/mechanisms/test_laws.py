"""The law of each mechanism, against enumeration of its draws where they are finite, simulation where they are not."""

from itertools import product

import numpy as np
import pytest
import torch

from variegrad.mechanisms import DropConnect, Langevin, Quantize
from variegrad.moments import GradientMoments

G = np.array([[1.0, -2.0], [0.5, 0.0], [1.0, 1.0]])
D = GradientMoments.from_gradients(torch.from_numpy(G)).diversity


def drop(p, rescale):
    """Every mask of one gradient with its probability."""

    def outcomes(g):
        for mask in product((0, 1), repeat=len(g)):
            probability = np.prod([1 - p if kept else p for kept in mask])
            yield probability, g * mask / (1 - p if rescale else 1)

    return outcomes


def quantized(g):
    norm = np.linalg.norm(g)
    for mask in product((0, 1), repeat=len(g)):
        probability = np.prod([abs(x) / norm if kept else 1 - abs(x) / norm for kept, x in zip(mask, g, strict=True)])
        yield probability, norm * np.sign(g) * mask


FINITE = [
    (DropConnect(0.3), drop(0.3, True)),
    (DropConnect(0.3, rescale=False), drop(0.3, False)),
    (DropConnect(0.9), drop(0.9, True)),
    (Quantize(), quantized),
]


@pytest.mark.parametrize(("mechanism", "outcomes"), FINITE, ids=lambda v: str(v) if hasattr(v, "mean_scale") else "")
def test_the_bound_equals_an_enumeration_of_all_joint_draws(mechanism, outcomes):
    each = [list(outcomes(g)) for g in G]
    for g, drawn in zip(G, each, strict=True):
        assert np.allclose(sum(p * m for p, m in drawn), mechanism.mean_scale * g)
    expected = sum(p * m @ m for drawn in each for p, m in drawn)
    assert mechanism.expected_sq_norm(D) == pytest.approx(expected)
    # One draw for each of the three examples, all 4³ combinations: Definition of B_DIM.
    of_sum = 0.0
    for joint in product(*each):
        total = sum(m for _, m in joint)
        of_sum += np.prod([p for p, _ in joint]) * total @ total
    assert D.bound_with(mechanism) == pytest.approx(len(G) * expected / of_sum)


@pytest.mark.parametrize(("mechanism", "outcomes"), FINITE, ids=lambda v: str(v) if hasattr(v, "mean_scale") else "")
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_effective_bound_is_what_lemma_1_needs_for_fresh_draws(mechanism, outcomes, batch_size):
    # Draw an example uniformly, then a surrogate: E‖Σ_b m‖² = b·M²·(1 + (b−1)/B_eff), enumerated.
    drawn = [(p / len(G), m) for g in G for p, m in outcomes(g)]
    of_sum = 0.0
    for joint in product(drawn, repeat=batch_size):
        total = sum(m for _, m in joint)
        of_sum += np.prod([p for p, _ in joint]) * total @ total
    second_moment = mechanism.expected_sq_norm(D) / len(G)
    factor = 1 + (batch_size - 1) / D.effective_bound_with(mechanism)
    assert of_sum == pytest.approx(batch_size * second_moment * factor)


def test_langevin_agrees_with_simulation():
    mechanism, draws = Langevin(0.7), 200_000
    noise = 0.7 * np.random.default_rng(0).standard_normal((draws, *G.shape))
    surrogates = G + noise
    each, whole = np.square(surrogates).sum((1, 2)), np.square(surrogates.sum(1)).sum(1)
    # Means of 200,000 draws: five standard errors.
    assert abs(each.mean() - mechanism.expected_sq_norm(D)) < 5 * each.std() / draws**0.5
    of_sum = len(G) * mechanism.expected_sq_norm(D) / D.bound_with(mechanism)
    assert abs(whole.mean() - of_sum) < 5 * whole.std() / draws**0.5


def test_quantisation_of_a_zero_gradient_is_zero():
    zeros = GradientMoments.from_gradients(torch.zeros(3, 2)).diversity
    assert Quantize().expected_sq_norm(zeros) == 0


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_drop_probability_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=r"DropConnect: the drop probability p must lie in \[0, 1\); got"):
        DropConnect(p)


@pytest.mark.parametrize("sigma", [-1.0, float("inf"), float("nan")])
def test_a_noise_that_is_none_is_refused(sigma):
    with pytest.raises(ValueError, match="Langevin: sigma must be a finite number ≥ 0; got"):
        Langevin(sigma)


def test_mechanisms_print_as_they_are_written():
    assert [str(m) for m in (DropConnect(0.4), DropConnect(0.4, rescale=False), Langevin(0.01), Quantize())] == [
        "DropConnect(0.4)", "DropConnect(0.4, unscaled)", "Langevin(0.01)", "Quantize()",
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "field"), [(DropConnect, "p"), (Langevin, "sigma")])
def test_what_is_no_number_is_refused(kind, field):
    made = object.__new__(kind)  # the type checker of the tests would refuse it in the constructor
    object.__setattr__(made, field, "0.4")
    with pytest.raises(TypeError, match=rf"{kind.__name__}: .*{field} must be a number; got '0.4'"):
        made.__post_init__()
