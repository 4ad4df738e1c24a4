"""Compositions: where the law is closed, and where it is refused."""

import pytest
import torch

from variegrad.mechanisms import Composed, DropConnect, Langevin, MomentMatched, Quantize
from variegrad.moments import GradientMoments

D = GradientMoments.from_gradients(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) + 0.3).diversity


def t(mechanism):
    return D.effective_bound_with(mechanism) / D.batch_size_bound - 1


def test_added_variances_of_stages_multiply():
    for first, second in [(DropConnect(0.3), DropConnect(0.4, rescale=False)), (Quantize(), DropConnect(0.5))]:
        assert 1 + t(first.then(second)) == pytest.approx((1 + t(first)) * (1 + t(second)))


def test_noise_after_a_stage_counts_as_it_is_and_noise_before_it_is_scaled():
    n_d_var = D.count * D.dimension * 0.25
    after = DropConnect(0.2).then(Langevin(0.5)).expected_sq_norm(D)
    assert after == pytest.approx(D.sum_sq_norms / 0.8 + n_d_var)
    before = Langevin(0.5).then(DropConnect(0.2)).expected_sq_norm(D)
    assert before == pytest.approx((D.sum_sq_norms + n_d_var) / 0.8)


def test_two_of_a_kind_are_one():
    assert DropConnect(0.5).then(DropConnect(0.2)) == DropConnect(0.6)
    assert Langevin(3.0).then(Langevin(4.0)) == Langevin(5.0)
    assert isinstance(DropConnect(0.5).then(DropConnect(0.2, rescale=False)), Composed)


@pytest.mark.parametrize("first", [DropConnect(0.2), Langevin(0.1), Quantize()], ids=str)
def test_a_quantiser_can_only_be_first(first):
    with pytest.raises(ValueError, match=r"Quantize\(\) cannot follow .* Put it first: Quantize\(\).then"):
        first.then(Quantize())
    with pytest.raises(ValueError, match="cannot follow"):
        first.then(Quantize().then(DropConnect(0.1)))


def test_a_composition_needs_what_its_first_stage_needs():
    both = Quantize().then(DropConnect(0.5))
    assert both.needs_l1_norms
    assert both.needs_norms
    assert str(both) == "Quantize().then(DropConnect(0.5))"
    assert not DropConnect(0.5).then(Langevin(0.1)).needs_l1_norms


def test_moments_are_matched_for_dropconnect_only():
    with pytest.raises(TypeError, match="knows the variance of each coordinate for DropConnect only; got Quantize"):
        MomentMatched(Quantize())


def test_only_a_mechanism_can_follow():
    made = object.__new__(Composed)  # the type checker of the tests would refuse it in the constructor
    object.__setattr__(made, "first", DropConnect(0.1))
    object.__setattr__(made, "second", None)
    with pytest.raises(TypeError, match=r"only a Mechanism can follow DropConnect\(0.1\); got None"):
        made.__post_init__()
