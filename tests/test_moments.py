"""Three sums carry everything: golden numbers, degenerate cases, and the laws of the monoid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from variegrad.mechanisms import DropConnect, Langevin, Quantize
from variegrad.moments import Diversity, GradientMoments

GOLDEN = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


def of(rows):
    return GradientMoments.from_gradients(torch.as_tensor(np.asarray(rows, dtype=np.float64)))


def diversity(rows):
    return of(rows).diversity


def flags(d):
    return {flag for flag in ("undefined", "zero_total", "conflicting") if getattr(d, flag)}


# --- golden numbers, by hand ---


def test_the_golden_example():
    d = diversity(GOLDEN)
    assert (d.count, d.dimension) == (3, 2)
    assert (d.sum_sq_norms, d.sq_norm_of_sum) == (4, 8)
    assert d.diversity == 0.5
    assert d.batch_size_bound == 1.5
    assert d.coherence == 0.5
    assert d.batch_size_bound_without_replacement == 2
    assert d.mean_sq_norm == pytest.approx(4 / 3)
    assert d.sq_norm_of_mean == pytest.approx(8 / 9)
    assert flags(d) == set()


@pytest.mark.parametrize(
    ("mechanism", "bound", "effective"),
    [
        (DropConnect(0.5), 2, 3),
        (DropConnect(0.5, rescale=False), 2, 3),
        (Langevin(1.0), 2.142857142857143, 3.75),
        (Quantize(), 1.6407544820340814, 1.8106601717798212),
        (DropConnect(0.0), 1.5, 1.5),
        (Langevin(0.0), 1.5, 1.5),
    ],
    ids=str,
)
def test_the_golden_example_with_mechanisms(mechanism, bound, effective):
    d = diversity(GOLDEN)
    assert d.bound_with(mechanism) == pytest.approx(bound, rel=1e-14)
    assert d.effective_bound_with(mechanism) == pytest.approx(effective, rel=1e-14)


def test_efficiency_and_speed_up_follow_the_law():
    d = diversity(GOLDEN)
    assert d.efficiency(1) == 1
    assert d.efficiency(2.5) == 0.5  # B = 1 + B_D wastes half
    assert d.speed_up(4) == pytest.approx(4 / 3)
    assert d.speed_up(1e9) == pytest.approx(d.batch_size_bound)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1 example; got 0\.5"):
        d.efficiency(0.5)


# --- the degenerate cases, one by one ---

E1, E2 = [1.0, 0.0], [0.0, 1.0]
ZERO = [0.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "bound", "without_replacement", "flagged", "words"),
    [
        pytest.param([ZERO] * 4, math.nan, math.nan, {"undefined"}, "all 4 gradients are zero", id="all zero"),
        pytest.param([E1, [-1.0, 0.0]], math.inf, math.inf, {"zero_total", "conflicting"}, "cancel", id="cancelling"),
        pytest.param([E1], 1, math.inf, set(), "B_D = 1 ", id="one example"),
        pytest.param([ZERO, E1, ZERO], 3, math.inf, set(), "B_D = 3 ", id="a single non-zero"),
        pytest.param([E1, E1, ZERO, ZERO, ZERO, ZERO], 3, 5, set(), "B_D = 3 ", id="k equal among n: n/k"),
        pytest.param([E1] * 7, 1, 1, set(), "B_D = 1 ", id="all equal"),
        pytest.param([E1, E2], 2, math.inf, set(), "B_D = 2 ", id="orthogonal"),
        pytest.param([[1.0, 1.0], [-0.5, 1.0]], 2 * 3.25 / 4.25, None, set(), "B_D = ", id="ordinary"),
        pytest.param(
            [[1.0, 0.5], [-1.0, 0.5]], 5, math.inf, {"conflicting"}, "conflicting: B_D exceeds n = 2", id="ρ<0"
        ),
    ],
)
def test_degenerate_cases_are_flagged_and_said_in_words(rows, bound, without_replacement, flagged, words):
    d = diversity(rows)
    assert d.batch_size_bound == pytest.approx(bound, nan_ok=True)
    if without_replacement is not None:
        assert d.batch_size_bound_without_replacement == pytest.approx(without_replacement, nan_ok=True)
    assert flags(d) == flagged
    assert words in d.in_words()
    assert words in str(d)


def test_a_total_of_rounding_errors_is_zero():
    rows = np.random.default_rng(0).standard_normal((100, 50))
    rows -= rows.mean(0)  # sums to about 1e-14, not to 0
    d = diversity(rows)
    assert d.sq_norm_of_sum > 0
    assert d.zero_total
    assert d.batch_size_bound == math.inf
    assert d.bound_with(DropConnect(0.5)) == pytest.approx(100 / 0.5)  # the noise alone: n/p
    assert d.effective_bound_with(DropConnect(0.5)) == math.inf
    assert d.efficiency(1e6) == 1


def test_nothing_measured_has_no_bound():
    d = GradientMoments().diversity
    assert math.isnan(d.batch_size_bound)
    assert math.isnan(d.mean_sq_norm)
    assert "no examples" in d.in_words()


def test_where_any_batch_is_harmless_nothing_is_wasted():
    d = diversity([ZERO] * 3)
    assert d.efficiency(1000) == 1
    assert math.isnan(d.bound_with(DropConnect(0.5)))
    assert d.bound_with(Langevin(1.0)) == 3  # pure noise: independent, so n


# --- the laws of the monoid, and the identities ---

gradients = arrays(np.float64, st.tuples(st.integers(1, 6), st.just(3)), elements=st.floats(-10, 10, width=32))


def same(a, b):
    assert a.count == b.count
    for name in a.gradient_sum:
        assert a.sum_sq_norms[name] == pytest.approx(b.sum_sq_norms[name], rel=1e-12, abs=1e-12)
        assert torch.allclose(a.gradient_sum[name], b.gradient_sum[name], rtol=1e-12, atol=1e-12)
    assert a.sum_l1_l2_norms == pytest.approx(b.sum_l1_l2_norms, rel=1e-12, abs=1e-12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(gradients, gradients, gradients)
def test_moments_are_a_commutative_monoid(a, b, c):
    x, y, z = of(a), of(b), of(c)
    same((x + y) + z, x + (y + z))
    same(x + y, y + x)
    same(GradientMoments() + x, x)
    same(x + GradientMoments(), x)
    same(x + y + z, of(np.concatenate([a, b, c])))  # chunks of any size are one pass


def test_moments_of_other_parameters_are_refused():
    rows = torch.eye(2)
    with pytest.raises(ValueError, match=r"only be added if their parameters are the same.*\['a', 'b'\]"):
        GradientMoments.from_gradients(rows, "a") + GradientMoments.from_gradients(rows, "b")
    with pytest.raises(TypeError):
        GradientMoments.from_gradients(rows) + 1


def test_what_was_not_collected_in_both_is_not_collected():
    plain = GradientMoments(count=1, sum_sq_norms={"weight": 1.0}, gradient_sum={"weight": torch.ones(1).double()})
    full = GradientMoments.from_gradients(torch.ones(1, 1))
    assert (plain + full).sum_l1_l2_norms is None
    assert (full + plain).sum_l1_l2_norms is None
    with pytest.raises(ValueError, match=r"Ask for it when measuring: measure\(\.\.\., mechanism=Quantize\(\)\)"):
        plain.diversity.bound_with(Quantize())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(arrays(np.float64, st.tuples(st.integers(2, 6), st.just(5)), elements=st.floats(-4, 4, width=16)))
def test_the_identities_between_the_bounds(rows):
    d = diversity(rows)
    n = len(rows)
    if d.undefined or d.zero_total:
        return
    assert d.batch_size_bound >= 1 - 1e-12
    # With and without replacement: 1/B_D = 1/n + (1 − 1/n)·ρ.
    assert 1 / d.batch_size_bound == pytest.approx(1 / n + (1 - 1 / n) * d.coherence, abs=1e-12)
    pairs = sum(float(rows[i] @ rows[j]) for i in range(n) for j in range(n) if i != j)
    assert d.coherence == pytest.approx(pairs / (n * (n - 1)) / d.mean_sq_norm, abs=1e-9)
    # Repeating the whole set changes nothing, and neither does the scale of the loss.
    assert diversity(np.tile(rows, (3, 1))).batch_size_bound == pytest.approx(d.batch_size_bound)
    assert diversity(-7 * rows).batch_size_bound == pytest.approx(d.batch_size_bound)
    # A mechanism's closed forms, from t alone.
    t = d.effective_bound_with(DropConnect(0.4)) / d.batch_size_bound - 1
    assert d.bound_with(DropConnect(0.4)) == pytest.approx(n * (1 + t) / (n / d.batch_size_bound + t))


def test_the_bound_is_the_weighted_harmonic_mean_of_the_parameters_bounds():
    rows = {"a": torch.randn(6, 3).double() + 0.5, "b": torch.randn(6, 4).double(), "frozen at zero": torch.zeros(6, 2)}
    whole = GradientMoments(
        count=6,
        sum_sq_norms={name: float(r.square().sum()) for name, r in rows.items()},
        gradient_sum={name: r.sum(0) for name, r in rows.items()},
    ).diversity
    assert whole.dimension == 9
    assert whole.batch_size_bound == pytest.approx(diversity(torch.cat(list(rows.values()), 1)).batch_size_bound)
    assert whole.per_parameter["frozen at zero"].undefined
    parts = [part for part in whole.per_parameter.values() if not part.undefined]
    harmonic = sum(part.sum_sq_norms / whole.sum_sq_norms / part.batch_size_bound for part in parts)
    assert 1 / whole.batch_size_bound == pytest.approx(harmonic, rel=1e-13)


def test_results_are_read_only():
    d = Diversity(count=1, dimension=1, sum_sq_norms=1.0, sq_norm_of_sum=1.0)
    with pytest.raises(AttributeError):
        d.count = 2
