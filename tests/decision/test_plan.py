"""A plan names the limit that sets the batch, compares a mechanism in time, and refuses what it cannot plan for."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn, optim

import variegrad as vg
from variegrad.cli.plan import _in_words
from variegrad.decision import Link, PlanLimit, stated_step_time
from variegrad.decision.limits import Estimate
from variegrad.mechanisms import DropConnect, Langevin
from variegrad.problems import load
from variegrad.theory import constants, mechanism_time

TIMES = stated_step_time(1e-3, 1e-5)


def planned(name="digits", **settings):
    settings = {"passes": 0.5, "points": 2, "step_time": TIMES} | settings
    return vg.plan(load(name, max_examples=200), **settings)


@pytest.fixture(scope="module")
def plain():
    return planned()


def test_the_batch_is_the_least_limit(plain):
    assert plain.batch_size == max(1, math.floor(min(plain.limits.values())))
    assert plain.limits[plain.limited_by] == min(plain.limits.values())
    assert plain.limits[PlanLimit.DATA] == len(load("digits", max_examples=200).train)
    assert plain.efficiency == pytest.approx(1 / (1 + (plain.batch_size - 1) / plain.harmonic_mean))


@pytest.mark.parametrize("granularity", ["example", "worker"])
def test_a_mechanism_is_compared_in_time(granularity):
    slow = Link(bytes_per_second=1e5)
    made = planned(mechanism=DropConnect(0.5), granularity=granularity, workers=4, link=slow)
    found = made.mechanism
    assert found.drop == 0.5
    assert found.granularity == granularity
    assert found.pays == (found.gain > 1)
    if granularity == "example":  # as much is sent, and there is more variance
        assert not found.pays
    gradient = 4 * sum(p.numel() for p in load("digits").model.parameters())
    cheap = mechanism_time(
        bound=made.harmonic_mean, seconds_per_step=1e-3, seconds_per_example=1e-5 / 4, drop=0.5, workers=4, largest=200,
        granularity=granularity, communication=slow.all_reduce(gradient, 4),
    )  # fmt: skip
    assert found.gain <= cheap.gain + 1e-12  # its draws take time, too
    assert str(found) in _in_words(made)


def test_a_mechanism_without_a_model_is_refused_before_the_work():
    with pytest.raises(ValueError, match="model of the time with DropConnect only, not with Langevin"):
        planned(mechanism=Langevin(0.1))


def test_momentum_lowers_the_rate_and_moves_the_stability_limit(plain):
    model = nn.Linear(1, 1)
    heavy = planned(optimizer=optim.SGD(model.parameters(), lr=1.0, momentum=0.9))
    own = 1 + (plain.batch_size - 1) / plain.harmonic_mean  # both follow the same law from the same run
    other = 1 + (heavy.batch_size - 1) / heavy.harmonic_mean
    expected = 0.1 * plain.step_size * own / other * heavy.batch_size
    assert heavy.learning_rate == pytest.approx(expected)
    beta = plain.constants["β"].value
    assert plain.stable_learning_rate == pytest.approx(2 / beta)
    assert heavy.stable_learning_rate == pytest.approx(2 * 1.9 / beta)
    assert heavy.limits[PlanLimit.STABILITY] >= plain.limits[PlanLimit.STABILITY]


@pytest.mark.parametrize("optimizer", [optim.AdamW, optim.Adam])
def test_for_adam_no_rate_and_no_stability_limit_are_named(optimizer):
    made = planned(optimizer=optimizer)
    assert math.isnan(made.learning_rate)
    assert math.isnan(made.step_size)
    assert PlanLimit.STABILITY not in made.limits
    text = _in_words(made)
    assert "variegrad branch --optimizer adamw" in text
    assert "nan" not in text


class SignSGD(optim.Optimizer):
    def __init__(self):
        super().__init__([nn.Parameter(torch.zeros(1))], {})


@pytest.mark.parametrize("optimizer", [*([optim.Muon] if hasattr(optim, "Muon") else []), SignSGD, SignSGD()])
def test_an_optimizer_without_a_number_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"no number is known that predicts the critical batch size\. Measure it"):
        planned(optimizer=optimizer)


def test_no_batch_below_the_smallest_that_was_timed_is_recommended():
    timed = replace(stated_step_time(0.0, 1e-4), sizes=(16, 64, 256))
    made = planned(step_time=timed)
    assert made.batch_size >= 16 or made.limited_by is not PlanLimit.TIME
    assert "below 16 examples, the smallest one timed" in _in_words(made)


def test_a_time_that_does_not_depend_on_the_batch_sets_no_limit():
    flat = replace(TIMES, seconds_per_example=Estimate(value=1e-9, low=0.0, high=1e-6))
    made = planned(step_time=flat)
    assert PlanLimit.TIME not in made.limits
    assert made.mechanism is None
    assert made.efficiency >= 0.5  # δ = 1


def test_redundant_examples_are_announced_first():
    made = planned(delta=50.0, step_time=stated_step_time(10.0, 1e-6))
    first, *_ = _in_words(made).splitlines()
    assert (made.efficiency < 0.2) == first.startswith("warning: at the batch size below")


def test_a_linear_model_has_a_certificate_and_needs_no_lanczos(monkeypatch):
    calls = []
    actual = constants.smoothness
    monkeypatch.setattr(constants, "smoothness", lambda *a, **k: calls.append(1) or actual(*a, **k))
    planned("digits")
    model = vg.problems.logistic_regression(64, 10)
    problem = replace(load("digits", max_examples=200), model=model)
    vg.plan(problem, passes=0.5, points=2, step_time=TIMES)
    assert len(calls) in (0, 2)  # none for the linear one; two for digits, if that is not linear itself


def test_test_data_and_accuracy_are_not_evaluated():
    problem = load("digits", max_examples=200)

    def refuse(*_):
        raise AssertionError("a plan needs no accuracy")

    vg.plan(replace(problem, accuracy=refuse), passes=0.5, points=2, step_time=TIMES)
