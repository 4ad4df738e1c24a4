"""Advice names the limit that binds at the learning rate in use, for every rule, where B_D alone would mislead."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn, optim

import variegrad as vg
from variegrad.decision import LearningRateRule, Limit, stated_step_time

RULES = tuple(LearningRateRule)


def losses(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture(scope="module")
def small(seen):
    """The limits at a small step."""
    return limits_at(seen, 0.02)


@pytest.fixture(scope="module")
def seen():
    """A small network early in training, and 512 examples of it."""
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(column) for column in load_digits(return_X_y=True))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    chosen = torch.randperm(len(x))[:512]
    batch = (x.float()[chosen] / 16, y[chosen])
    return model, batch, vg.estimate(model, losses, batch)


def limits_at(seen, rate, **given):
    model, batch, _ = seen
    return vg.step_limits(model, losses, batch, learning_rate=rate, batch_size=16, **given)


def test_a_small_step_is_told_that_noise_does_not_limit_the_linear_rule(seen):
    limits = limits_at(seen, 0.02)
    text = str(seen[2].advice(16, new_batch_size=512, limits=limits))
    first, now, head, tuned, linear, root, fixed = text.splitlines()
    assert "at a tuned learning rate" in first
    assert f"the best one at batch 16 is {limits.slack} times as large" in now
    assert "keeps 90% of the progress per example" in head
    assert tuned.endswith("(against batch 16 with a tuned learning rate)")  # not with the one in use
    assert tuned.strip().startswith("tuned for each batch size: up to batch")
    assert "limited by noise" in tuned
    assert "limited by stability" in linear
    assert "limited by the learning-rate rule" in root
    assert "limited by the learning-rate rule" in fixed
    assert all("times the examples" in line and "times the updates" in line for line in (tuned, linear, root, fixed))
    assert limits.limit(LearningRateRule.LINEAR).batch_size > 10 * limits.limit(LearningRateRule.TUNED).batch_size


def test_an_unstable_change_is_called_unstable(seen):
    for rate in (0.1, 0.5):  # κ is known to be below 1, and may be 1
        lines = limits_at(seen, rate).in_words(new_batch_size=65536)
        (line,) = [line for line in lines if line.startswith("linear")]
        assert line.endswith("at 65,536: no progress; the learning rate is too large")


def test_a_step_that_may_make_no_progress_is_undecided(seen):
    limits = limits_at(seen, 50.0)
    assert limits.limit(LearningRateRule.LINEAR).binds is Limit.UNDECIDED


def test_adam_is_described_and_not_predicted(seen):
    scales = [torch.ones_like(p) for p in seen[0].parameters()]
    lines = limits_at(seen, 0.02, preconditioner=scales).in_words()
    assert "confirm a larger batch with vg.branch" in lines[-1]
    assert not any("confirm" in line for line in limits_at(seen, 0.02).in_words())
    with_momentum = limits_at(seen, 0.02, momentum=0.9).in_words()
    assert "20 times too large" in with_momentum[-1]
    assert "vg.branch" in with_momentum[-1]


def test_what_a_change_costs_follows_from_the_progress_per_example(seen):
    limits = limits_at(seen, 0.02)
    for rule in RULES:
        progress = limits.progress_interval(64, rule)
        change = limits.change(64, rule, step_time=stated_step_time(3.0, 0.5))
        assert change.examples.value == pytest.approx(1 / progress.value)
        assert change.examples.low == pytest.approx(1 / progress.high)
        assert change.updates.value == pytest.approx(16 / 64 / progress.value)
        assert change.time.value == pytest.approx(change.updates.value * (3 + 0.5 * 64) / (3 + 0.5 * 16))
        assert change.examples.low <= change.examples.value <= change.examples.high


def test_no_change_costs_nothing(seen):
    for rule in RULES:
        change = limits_at(seen, 0.02).change(16, rule)
        assert change.examples.value == pytest.approx(1)
        assert change.updates.value == pytest.approx(1)


def test_an_interval_that_reaches_no_progress_has_no_upper_end(seen):
    limits = limits_at(seen, 0.02)
    unsure = replace(limits, kappa=replace(limits.kappa, high=1.5))
    change = unsure.change(64, LearningRateRule.LINEAR)
    assert change.examples.low == 0
    assert math.isinf(change.examples.high)


def test_limits_of_another_batch_size_are_refused(seen):
    with pytest.raises(ValueError, match=r"limits are those of batch 16, not of 32: call step_limits\(batch_size=32\)"):
        seen[2].advice(32, limits=limits_at(seen, 0.02))


def test_an_estimate_advises_like_a_reading(seen):
    found, model = seen[2], seen[0]
    advice = found.advice(16, new_batch_size=64, optimizer=optim.SGD(model.parameters(), lr=0.1))
    assert advice == vg.advise(found, 16, new_batch_size=64, rule=advice.rule)
    assert 1 < advice.step_size_factor < 4


def test_what_was_measured_exactly_advises_without_an_interval(seen):
    model, batch, _ = seen
    found = vg.measure(model, losses, torch.utils.data.TensorDataset(*batch))
    advice = found.advice(16, new_batch_size=64, optimizer=optim.SGD, limits=limits_at(seen, 0.02))
    assert advice.efficiency == advice.low == advice.high == pytest.approx(found.efficiency(16))
    assert advice.certain
    assert "[" not in str(advice).splitlines()[0]
    assert "linear" in str(advice)
    with pytest.raises(ValueError, match="not of 32"):
        found.advice(32, limits=advice.limits)


def test_gradients_that_are_all_zero_leave_every_batch_size_efficient():
    found = vg.GradientMoments.from_gradients(torch.zeros(5, 3)).diversity
    assert found.undefined
    assert found.advice(10**6).efficiency == 1


EVERY_RULE = [rule for rule in RULES if rule is not LearningRateRule.TUNED]


@pytest.mark.parametrize("rate", [0.005, 0.1, 0.5, 2.0, 60.0])
def test_no_number_is_printed_that_nothing_stands_behind(seen, rate):
    limits = limits_at(seen, rate)
    for size in (1, 4, 16, 20, 64, 256, 65536):
        for rule in RULES:
            made, change = limits.progress_interval(size, rule), limits.change(size, rule)
            assert not made.value < 0  # nor do fewer than no examples exist
            assert not change.examples.low < 0
            if math.isfinite(change.examples.value):
                assert change.examples.low <= change.examples.value <= change.examples.high
        for line in limits.in_words(size):
            assert "nan" not in line
            assert "[0, ∞] times the" not in line  # undecided, and a number all the same


@pytest.mark.parametrize("kappa", [(0.9, 0.6, 1.2), (2.0, 0.9, math.inf), (2.0, 1.3, 4.0), (0.3, -0.1, 1.0)])
def test_without_progress_to_compare_with_the_reason_is_given_once(small, kappa):
    value, low, high = kappa
    limits = replace(small, kappa=replace(small.kappa, value=value, low=low, high=high))
    assert "vg.branch" in limits.in_words()[-1]
    lines = [line for line in limits.in_words(new_batch_size=20) if "step in use" in line]
    assert len(lines) == 1
    assert all(rule.value in lines[0] for rule in EVERY_RULE)
    assert ("loses more than it gains" in lines[0]) == (low >= 1)
    assert ("undecided" in lines[0]) == (low < 1)
    assert all(limits.limit(rule).binds is Limit.UNDECIDED for rule in EVERY_RULE)


def test_a_step_that_is_itself_unstable_has_no_batch_size_with_the_fixed_rule(small):
    limits = replace(small, stability=replace(small.stability, value=1.3, low=1.1, high=1.6))
    assert math.isnan(limits.limit(LearningRateRule.FIXED).batch_size)
    assert "exceeds the largest stable one" in str(limits)


def test_a_limit_that_is_not_found_has_a_lower_end(small):
    unbounded = replace(small, batch_size_bound=replace(small.batch_size_bound, value=math.inf, high=math.inf))
    low = unbounded.limit(LearningRateRule.TUNED).low
    assert f"no limit found, at least batch {low:.2g}" in str(unbounded)


def test_a_perhaps_unstable_change_is_told_as_such(small):
    limits = replace(small, stability=replace(small.stability, value=0.6, low=0.4, high=0.8))
    assert "no progress by the estimate, at best in 1" in str(limits.change(32, LearningRateRule.LINEAR))


def test_the_factor_of_the_learning_rate_names_its_rule(seen):
    sgd, adam = (seen[2].advice(16, new_batch_size=64, optimizer=kind) for kind in (optim.SGD, optim.AdamW))
    assert str(sgd).endswith(f"multiply the learning rate by {sgd.step_size_factor:.3g} (linear, capped)")
    assert str(adam).endswith("multiply the learning rate by 2 (square root)")


def test_limits_of_plain_sgd_are_not_taken_for_those_of_adam(seen):
    model, batch, found = seen
    adam = optim.AdamW(model.parameters(), lr=0.0)
    losses(model, batch).mean().backward()
    adam.step()
    adam.zero_grad()
    said = "these limits are those of plain SGD"
    assert said in str(found.advice(16, optimizer=adam, limits=limits_at(seen, 1e-3)))
    own = limits_at(seen, 1e-3, preconditioner=adam)
    assert own.preconditioned
    assert said not in str(found.advice(16, optimizer=adam, limits=own))
    assert said not in str(found.advice(16, optimizer=optim.SGD, limits=limits_at(seen, 1e-3)))
