"""`describe` says what a mechanism does to an update, in numbers that are true."""

import math

import pytest
import torch
from torch import nn

from cases import classify
from mechanisms.slow import gradients_of
from variegrad.measurement import measure
from variegrad.mechanisms import DropConnect, Langevin, MomentMatched, Quantize, backward

torch.manual_seed(3)
MODEL, BATCH = nn.Linear(12, 5), (torch.randn(8, 12), torch.arange(8) % 5)
DIVERSITY = measure(MODEL, classify, [BATCH], mechanism=Quantize())


def spread(**settings):
    """The root mean square over coordinates of the standard deviation of `.grad`, over 150 steps."""
    found = []
    for step in range(150):
        backward(MODEL, classify, BATCH, samples_seen=8 * step, **settings)
        found.append(torch.cat([g.flatten() for g in gradients_of(MODEL).values()]))
    return math.sqrt(float(torch.stack(found).double().var(0).mean()))


# The mean over 65 coordinates of variances from 150 draws: a relative error near √(2/(150·65)) = 1.4 %, half of that
# for its root, more for heavy tails (Quantize); 5 % is allowed.
@pytest.mark.parametrize("mechanism", [DropConnect(0.4), Langevin(0.2), Quantize()], ids=str)
def test_the_noise_on_the_sum_is_what_backward_adds(mechanism):
    said = mechanism.describe(batch_size=8, step_size=0.01, diversity=DIVERSITY)
    assert spread(mechanism=mechanism) == pytest.approx(said.noise_on_sum, rel=0.05)
    assert said.noise_on_mean == pytest.approx(said.noise_on_sum / 8)
    assert said.noise_on_weights == pytest.approx(said.noise_on_sum * 0.01)
    assert said.relative_variance == pytest.approx(
        DIVERSITY.effective_bound_with(mechanism) / DIVERSITY.batch_size_bound - 1
    )


def test_the_noise_of_one_worker_is_what_backward_adds():
    # One worker with the whole data set: its sum is fixed, so compare with t·‖Σg‖² itself.
    found = spread(mechanism=DropConnect(0.4), granularity="worker")
    assert found == pytest.approx(math.sqrt(0.4 / 0.6 * DIVERSITY.sq_norm_of_sum / DIVERSITY.dimension), rel=0.05)


def test_per_worker_noise_follows_its_own_law():
    said = DropConnect(0.5).describe(batch_size=8, workers=2, granularity="worker", diversity=DIVERSITY)
    assert "not distributed as one per example" in str(said)
    b, mean, whole = 4, DIVERSITY.mean_sq_norm, DIVERSITY.sq_norm_of_mean
    of_sums = 2 * (b * mean + b * (b - 1) * whole)
    assert said.noise_on_sum == pytest.approx(math.sqrt(of_sums / DIVERSITY.dimension))
    assert said.relative_variance == pytest.approx(1.0)


def test_noise_in_units_of_the_gradient_needs_no_measurement():
    said = Langevin(0.5).describe(batch_size=16, step_size=0.1)
    assert (said.noise_on_sum, said.noise_on_mean, said.noise_on_weights) == pytest.approx((2.0, 0.125, 0.2))
    assert said.relative_variance is None
    assert Langevin(0.5).describe(batch_size=16, workers=4, granularity="worker").noise_on_sum == pytest.approx(1.0)


def test_it_prints_in_words():
    text = str(Quantize().describe(batch_size=8, diversity=DIVERSITY))
    assert "nonzeros for each example" in text
    assert "B_eff" in text
    assert "kept with probability 0.6" in str(DropConnect(0.4).describe(batch_size=8))
    assert "APPROXIMATE" in str(MomentMatched(DropConnect(0.4)).describe(batch_size=8))
    both = str(DropConnect(0.4).then(Langevin(0.1)).describe(batch_size=8))
    assert "First: " in both
    assert "Then: " in both


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "needs 1 ≤ workers ≤ batch_size; got 1 and 0"),
        ({"batch_size": 2, "workers": 3}, "got 3 and 2"),
        ({"batch_size": 2, "step_size": 0.0}, "step_size must be positive; got 0"),
        ({"batch_size": 2, "granularity": "step"}, "granularity must be"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DropConnect(0.4).describe(**settings)
