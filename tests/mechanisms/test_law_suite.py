"""One suite of laws for every mechanism, built in or a user's: what is drawn has the mean and the moments it states.

Monte Carlo: 10⁴ independent draws for each of three gradients, as 10⁴ copies along a parameter's first dimension
(coordinates have draws of their own; what is drawn once an example takes 10⁴ positions). Each statistic is a mean of
10⁴ terms; four of its own standard errors are allowed. About 200 statistics are looked at, so a right mechanism would
fail for about one seed in a hundred (two-sided tail 6·10⁻⁵ each); the seed is fixed. An error of a relative 0.05 in any
moment would be seen: standard errors are near 1 %.
"""

import math

import numpy as np
import pytest
import torch

from mechanisms.own import Jitter, SkipExample, Ternary
from variegrad.mechanisms import Draws, DropConnect, Langevin, MomentMatched, Quantize
from variegrad.moments import GradientMoments

MECHANISMS = [
    DropConnect(0.4), DropConnect(0.7, rescale=False), Langevin(0.3), Quantize(), MomentMatched(DropConnect(0.3)),
    Jitter(0.5), SkipExample(0.25), Ternary(),
    DropConnect(0.3).then(Langevin(0.2)), Quantize().then(DropConnect(0.5)), Langevin(0.3).then(DropConnect(0.2)),
    DropConnect(0.3, rescale=False).then(Jitter(0.4)), DropConnect(0.3).then(DropConnect(0.4)),
]  # fmt: skip
COUNT, DIMENSION, DRAWS = 3, 8, 10_000
torch.manual_seed(5)
FLAT = torch.randn(COUNT, DIMENSION).double() * torch.tensor([1.0] * 6 + [0.3] * 2).double()
FLAT[1, :3] = 0  # what an activation switched off
DIVERSITY = GradientMoments.from_gradients(FLAT).diversity
NORMS = FLAT.norm(dim=1)


def drawn(mechanism, positions, seed=0, later=0):
    """One surrogate of each of the three gradients, for three positions."""
    draws = Draws.keyed(seed, "weight", FLAT[0], [later + p for p in positions], norms=NORMS)
    return mechanism.draw(FLAT, draws)


def drawn_often(mechanism):
    """10⁴ surrogates of each of the three gradients: (draws, examples, coordinates)."""
    if isinstance(mechanism, SkipExample):
        draws = Draws.keyed(0, "weight", FLAT[0], range(COUNT * DRAWS))
        return mechanism.draw(FLAT.repeat(DRAWS, 1), draws).view(DRAWS, COUNT, -1)
    copies = FLAT.unsqueeze(1).repeat(1, DRAWS, 1)
    draws = Draws.keyed(0, "weight", copies[0], range(COUNT), norms=NORMS)
    return mechanism.draw(copies, draws).transpose(0, 1)


@pytest.fixture(scope="module", params=MECHANISMS, ids=str)
def sample(request):
    return request.param, drawn_often(request.param)


def within(values, wanted, what):
    error = values.double().std(0) / math.sqrt(len(values))
    assert bool(((values.double().mean(0) - wanted).abs() <= 4 * error + 1e-12).all()), what


def test_the_mean_is_c_times_the_gradient(sample):
    mechanism, surrogates = sample
    within(surrogates, mechanism.mean_scale * FLAT, "mean")


def test_the_expected_squared_norm_is_the_stated_one(sample):
    mechanism, surrogates = sample
    within(surrogates.square().sum((1, 2)), mechanism.expected_sq_norm(DIVERSITY), "ΣE‖m(g_i)‖²")


def test_examples_are_drawn_independently(sample):
    # E‖Σm(g_i)‖² = c²‖Σg‖² + ΣE‖m(g_i)‖² − c²Σ‖g_i‖², which is where B_DIM comes from.
    mechanism, surrogates = sample
    wanted = COUNT * mechanism.expected_sq_norm(DIVERSITY) / DIVERSITY.bound_with(mechanism)
    within(surrogates.sum(1).square().sum(1), wanted, "E‖Σm(g_i)‖²")


def test_theorem_7_holds_for_what_is_drawn(sample):
    _, surrogates = sample
    assert DIVERSITY.batch_size_bound < COUNT
    squares, of_sum = surrogates.square().sum((1, 2)), surrogates.sum(1).square().sum(1)
    # n·A − B_D·S ≥ 0 is B_DIM ≥ B_D; its mean is many standard errors above zero for all of these.
    gap = COUNT * squares - DIVERSITY.batch_size_bound * of_sum
    assert float(gap.mean()) > 4 * float(gap.std()) / DRAWS**0.5


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_a_draw_is_a_function_of_its_key_alone(mechanism):
    positions = [7, 0, 123_456_789_012]
    whole = drawn(mechanism, positions)
    assert torch.equal(whole, drawn(mechanism, positions))
    for i, position in enumerate(positions):  # whatever stands beside it
        others = [1, 2, 3]
        others[i] = position
        assert torch.equal(whole[i], drawn(mechanism, others)[i])
    for changed in (drawn(mechanism, positions, seed=1), drawn(mechanism, positions, later=1)):
        assert not torch.equal(whole, changed)


def test_a_whole_step_s_langevin_noise_is_one_gaussian_of_the_right_size():
    draws = Draws.keyed(0, "weight", torch.empty(400, 500), [0], purpose="noise")
    noise = Langevin(0.3).noise_of_sum(128, draws).double()
    wanted, n = 0.09 * 128, noise.numel()
    assert abs(float(noise.mean())) < 4 * math.sqrt(wanted / n)
    assert abs(float(noise.square().mean()) - wanted) < 4 * wanted * math.sqrt(2 / n)
    fourth = float(noise.pow(4).mean()) / wanted**2
    assert abs(fourth - 3) < 4 * math.sqrt(96 / n)  # Var z⁴ = 96
    flat = noise.flatten()
    for lag in (1, 2, 100_000):  # Box and Muller make two numbers of one radius: uncorrelated all the same
        assert abs(float((flat[:-lag] * flat[lag:]).mean())) < 4 * wanted / math.sqrt(n - lag)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal(dtype):
    from scipy.stats import kstest

    draws = Draws.keyed(0, "weight", torch.empty(100_001, dtype=dtype), [0])
    assert kstest(draws.normal()[0].double().numpy(), "norm").pvalue > 1e-3
    assert kstest(draws.uniform()[0].double().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("p", [0.4, 0.5, 0.6, 1 / 3, 0.25, 3e-6, 1 - 3e-6, 0.0, 1.0, 1.5 / 65536])
def test_probabilities_are_met_beyond_the_first_sixteen_bits(p):
    n = 1 << 23
    draws = Draws.keyed(0, "weight", torch.empty(n), [0])
    hits = int(draws.bernoulli(p).sum())
    assert abs(hits - n * p) <= 4 * math.sqrt(n * p * (1 - p))
    few = torch.full((1, n), p)
    if p < 0.01:  # the way of the quantiser, one probability a coordinate
        hits = int(draws.bernoulli(few).sum())
        assert abs(hits - n * float(few[0, 0])) <= 4 * math.sqrt(n * p * (1 - p))


def test_every_mask_of_a_small_gradient_occurs_as_often_as_it_should():
    # χ² with 2⁴ − 1 = 15 degrees of freedom over 4,000 masks: its 1 − 10⁻⁴ quantile is 44.3.
    p, times = 0.3, 4_000
    keep = Draws.keyed(0, "weight", torch.empty(4), range(times)).bernoulli(1 - p).numpy()
    found = np.bincount(keep @ [1, 2, 4, 8], minlength=16)
    kept = np.array([bin(k).count("1") for k in range(16)])
    wanted = times * (1 - p) ** kept * p ** (4 - kept)
    assert ((found - wanted) ** 2 / wanted).sum() < 44.3


def test_calls_within_one_draw_are_independent():
    draws = Draws.keyed(0, "weight", torch.empty(1000), [0])
    first, second = draws.normal()[0], draws.normal()[0]
    assert abs(float((first * second).mean())) < 4 / math.sqrt(1000)


def test_an_example_s_own_number_is_the_same_for_all_parameters():
    one, other = (Draws.keyed(0, name, torch.empty(2, 3), [4, 9]) for name in ("weight", "bias"))
    found = one.uniform_of_example()
    assert torch.equal(found, other.uniform_of_example())
    assert found.shape == (2, 1, 1)
    assert found[0] != found[1]


def test_moments_matched_over_a_batch_are_those_of_the_masks():
    mechanism = MomentMatched(DropConnect(0.4))
    total, squares = FLAT.sum(0), FLAT.square().sum(0)
    many = total.repeat(DRAWS, 1)
    draws = Draws.keyed(0, "weight", many, [0], purpose="moments")
    surrogates = mechanism.draw_of_sum(many, squares.expand_as(many), draws)
    within(surrogates, total, "mean")
    within((surrogates - total).square(), 0.4 / 0.6 * squares, "variance")
