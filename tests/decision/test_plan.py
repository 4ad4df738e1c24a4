"""A plan names the limit that sets the batch, compares a mechanism in time, and refuses what it cannot plan for."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn, optim

import variegrad as vg
from variegrad.cli.plan import _in_words
from variegrad.decision import Link, PlanLimit, stated_step_time, step_time
from variegrad.decision.limits import Estimate
from variegrad.decision.planning import make_plan, measure_run
from variegrad.decision.timing import fitted
from variegrad.mechanisms import DropConnect, Langevin
from variegrad.problems import load
from variegrad.theory import constants, mechanism_time

TIMES = stated_step_time(1e-3, 1e-5)
FLAT = replace(TIMES, seconds_per_example=Estimate(value=0.0, low=0.0, high=0.0))


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


@pytest.fixture(scope="module")
def measured_once():
    problem = load("digits", max_examples=200)
    return measure_run(problem, 0.5, 2, 0)


def planned_at(measured_once, step_time, **settings):
    settings = {"accuracy": 0.1, "delta": 1e4, "l2": 0.0} | settings
    return make_plan(load("digits"), *measured_once, step_time=step_time, **settings)


@pytest.mark.parametrize(("alpha", "per_example"), [(1e-4, 1e-6), (1e-3, 1e-4), (2e-3, 1e-3), (1e-3, 1e-6)])
def test_twenty_timings_agree_or_the_range_says_why_not(measured_once, alpha, per_example):
    """Where an example is dear, hardly anything of the fastest round is α."""
    made = []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        slow = 1 + 0.05 * abs(draw.standard_normal((15, 3))) + 0.5 * (draw.random((15, 3)) < 0.15)
        timed = fitted([4, 16, 64], ((alpha + per_example * np.array([4, 16, 64])) * slow).tolist())
        made.append(planned_at(measured_once, timed))
    middle = float(np.median([each.batch_size for each in made]))
    agree = 0
    for each in made:
        low, high = each.batch_size_range
        assert low <= each.batch_size <= high
        assert (f"between {low:,} and {high:,}" in _in_words(each)) == (low < high)
        agree += abs(each.batch_size / middle - 1) <= 0.1 or low <= middle <= high
    assert agree >= 19


def test_a_range_is_given_where_the_timing_resolves_nothing(measured_once):
    flat = replace(TIMES, seconds_per_example=Estimate(value=1e-9, low=0.0, high=1e-3))
    made = planned_at(measured_once, flat)
    assert made.time_limit is None
    assert made.batch_size_range[0] < made.batch_size_range[1] == made.batch_size


def test_communication_over_the_link_is_part_of_the_plan(measured_once):
    slow = Link(bytes_per_second=1e6)
    alone = planned_at(measured_once, TIMES, workers=4)
    linked = planned_at(measured_once, TIMES, workers=4, link=slow)
    stated = planned_at(measured_once, TIMES, workers=4, communication=linked.communication)
    assert linked.communication == pytest.approx(slow.all_reduce(4 * 2410, 4))
    assert linked.time_limit.value == pytest.approx(stated.time_limit.value)
    assert linked.time_limit.value > alone.time_limit.value
    (row,) = [row for row in linked.at_workers if row.workers == 4]
    assert row.seconds_per_step == pytest.approx(1e-3 + 1e-5 * row.batch_size / 4 + linked.communication)
    assert "with 4 workers, " in _in_words(linked)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 4096, "delta": 1.0}, "of the 4,096 workers have an example"),
        ({"workers": 4, "link": Link(bytes_per_second=1e4), "delta": 1.0}, "4 workers over this link train 0."),
        ({"link": Link(bytes_per_second=1e9), "step_time": FLAT},
         "no table over the number of workers: the timing does not resolve"),
    ],
)  # fmt: skip
def test_what_speaks_against_a_plan_comes_first(measured_once, settings, said):
    made = planned_at(measured_once, **({"step_time": TIMES} | settings))
    assert any(said in warning for warning in made.warnings)
    first = _in_words(made).splitlines()[: len(made.warnings)]
    assert first == [f"warning: {warning}" for warning in made.warnings]
    assert not planned_at(measured_once, TIMES, delta=1.0).warnings


def test_a_run_that_does_not_train_is_announced_first():
    problem = load("digits", max_examples=200)
    made = vg.plan(replace(problem, step_size=50 / 64), passes=1, points=3, step_time=TIMES)
    assert any("the loss did not fall along the measured run" in warning for warning in made.warnings)
    assert any("exceeds the largest stable one" in warning for warning in made.warnings)


def test_the_learning_rate_of_the_run_is_said_to_be_taken_as_tuned(plain):
    text = _in_words(plain)
    factor = plain.learning_rate / plain.run_learning_rate
    assert (
        f"{plain.run_learning_rate:.2g} at batch 64, taken as tuned there, times {factor:.2g} by the law of B_D" in text
    )
    law = (plain.harmonic_mean + 63) / (plain.harmonic_mean + plain.batch_size - 1) * plain.batch_size / 64
    assert factor == pytest.approx(law)
    assert "along a run of plain SGD, not of Adam" in _in_words(planned(optimizer=optim.AdamW))


def test_a_mechanism_without_times_is_said_to_be_missing():
    assert any(
        "no time with DropConnect" in text for text in planned(mechanism=DropConnect(0.5), step_time=FLAT).warnings
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"points": 0},
        {"passes": -1},
        {"delta": 0.0},
        {"accuracy": 0.0},
        {"l2": -1.0},
        {"communication": -1.0},
    ],
)
def test_bad_arguments_are_named_before_the_work(wrong, monkeypatch):
    monkeypatch.setattr("variegrad.decision.planning.measure_run", None)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        planned(**wrong)


def test_bad_numbers_of_a_link_and_of_a_step_are_named():
    for make, name in (
        (lambda: Link(bytes_per_second=0.0), "bytes_per_second"),
        (lambda: Link(bytes_per_second=1.0, latency=-1.0), "latency"),
        (lambda: stated_step_time(-1.0, 1.0), "seconds_per_step"),
        (lambda: stated_step_time(1.0, 0.0), "seconds_per_example"),
    ):
        with pytest.raises(ValueError, match=name):
            make()


def test_what_is_no_problem_is_refused_with_the_way_to_one():
    with pytest.raises(TypeError, match=r"plan needs a vg\.Problem"):
        vg.plan(nn.Linear(2, 2))


class Locked(nn.Module):
    """A model that cannot be copied, with a buffer that a forward pass changes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.lock = model, threading.Lock()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.model(x)


def test_timing_copies_no_model_and_leaves_it_as_it_was():
    problem = load("digits", max_examples=200)
    model = Locked(problem.model)
    timed = step_time(replace(problem, model=model), mechanism=DropConnect(0.5))
    assert timed.seconds_per_step_range is not None
    assert model.calls == 0
    assert all(p.grad is None for p in model.parameters())


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
