"""A reading is the estimate of its step: it says so in one line, gives the estimate's advice, and survives JSON."""

import dataclasses
import json
import math

import pytest
import torch

from monitor.readings import ODD, a_reading, an_estimate
from variegrad.estimators import Regime, StepSizeRule, advise
from variegrad.monitor import Reading
from variegrad.monitor.reading import FIELDS


def test_the_record_has_an_entry_for_each_attribute_in_its_order():
    assert list(FIELDS) == list(a_reading().to_record()) == [field.name for field in dataclasses.fields(Reading)]


def test_a_reading_takes_over_the_estimate():
    estimate = an_estimate(high=math.inf, population=1500)
    reading = Reading.from_estimate(
        estimate, step=480, examples=16, batch_size=64, source="2 workers", pooled_steps=30, skipped=1
    )
    for name in ("batch_size_bound", "low", "high", "lower_confidence_bound", "confidence", "population"):
        assert getattr(reading, name) == getattr(estimate, name)
    assert reading.unbounded_above
    assert not reading.cannot_tell
    assert (reading.step, reading.examples, reading.batch_size, reading.source) == (480, 16, 64, "2 workers")
    assert (reading.pooled_steps, reading.skipped) == (30, 1)


@pytest.mark.parametrize("case", ODD)
def test_a_record_is_strict_json_and_brings_the_reading_back(case):
    reading = a_reading(**ODD[case])
    text = json.dumps(reading.to_record(), allow_nan=False)
    # NaN is not equal to itself, so readings are compared as they are written.
    assert repr(Reading.from_record(json.loads(text))) == repr(reading)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "step must be at least 0; got -1"),
        ({"step": 1.0}, "step must be a whole number; got 1.0"),
        ({"step": True}, "step must be a whole number; got True"),
        ({"examples": 0}, "examples must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"source": None}, "source must be text; got None"),
        ({"batch_size_bound": 0.5}, "batch_size_bound must be at least 1"),
        ({"batch_size_bound": "100"}, "batch_size_bound must be a finite number"),
        ({"batch_size_bound": math.nan}, "batch_size_bound must be a finite number"),
        ({"batch_size_bound": True}, "batch_size_bound must be a finite number"),
        ({"low": "inf"}, "low must be finite"),
        ({"low": None}, "low must be finite"),
        ({"high": 59.0}, 'high must be "inf" or at least low'),
        ({"high": "inf"}, "unbounded_above must be true if"),
        ({"lower_confidence_bound": "inf"}, "lower_confidence_bound must be finite"),
        ({"cannot_tell": 0}, "cannot_tell must be true or false; got 0"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"pooled_steps": 0}, "pooled_steps must be at least 1"),
        ({"skipped": -1}, "skipped must be at least 0"),
        ({"population": 0}, "population must be at least 1, or null"),
        ({"population": "1500"}, "population must be a whole number or null"),
        ({"sources": "x"}, "missing or unknown here: sources"),
    ],
)
def test_a_damaged_record_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Reading.from_record(a_reading().to_record() | change)


def test_a_record_with_an_entry_missing_is_refused():
    record = a_reading().to_record()
    del record["low"]
    with pytest.raises(ValueError, match="missing or unknown here: low"):
        Reading.from_record(record)


@pytest.mark.parametrize("case", ODD)
def test_a_reading_prints_itself_in_one_line(case):
    text = str(a_reading(**ODD[case]))
    assert "\n" not in text
    assert len(text) < 250
    assert "nan" not in text
    assert "inf" not in text


def test_what_a_line_says():
    assert str(a_reading(480)) == (
        "steps 1–480 · B_D = 100 [60, 200] (95%), at least 50 · "
        "batch 64: probably near the limit, efficiency 61% [44%, 76%] at a tuned learning rate · "
        "subset of 16 examples, 30 steps"
    )
    assert "B_D is at least 50 (95% confidence)" in str(a_reading(**ODD["unbounded above"]))
    assert "cannot tell yet" in str(a_reading(**ODD["cannot tell"]))
    assert "cannot tell yet, at most 200 (95% confidence)" in str(a_reading(**ODD["cannot tell, bounded above"]))
    assert "undefined: all gradients are zero" in str(a_reading(**ODD["undefined"]))
    assert str(a_reading(16, skipped=2)).endswith("subset of 16 examples, 1 step, 2 skipped")


# --- advice ---


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("batch_size", [1, 64, 10_000])
def test_advice_is_that_of_the_estimate(case, batch_size):
    assert a_reading(**ODD[case]).advice(batch_size) == advise(an_estimate(**ODD[case]), batch_size)


def test_advice_is_about_the_step_s_own_batch_unless_told_otherwise():
    advice = a_reading().advice()
    assert advice.batch_size == 64
    assert advice.efficiency == pytest.approx(1 / (1 + 63 / 100))
    assert (advice.low, advice.high) == pytest.approx((1 / (1 + 63 / 50), 1 / (1 + 63 / 200)))
    assert advice.regime is Regime.NEAR
    assert a_reading(bound=10_000.0, low=9000.0, high=11_000.0, lower=8000.0).advice().regime is Regime.WELL_BELOW
    assert a_reading(bound=10.0, low=9.0, high=11.0, lower=8.0).advice().regime is Regime.BEYOND


PARAMETER = [torch.nn.Parameter(torch.zeros(1))]


class Wrapped(torch.optim.Optimizer):
    def __init__(self, optimizer):
        super().__init__(PARAMETER, {})
        self.optimizer = optimizer


class AdamW8bit(torch.optim.Optimizer):
    pass


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        (torch.optim.SGD(PARAMETER, lr=0.1, momentum=0.9), 4 * (50 + 63) / (50 + 255)),
        (torch.optim.SGD, 4 * (50 + 63) / (50 + 255)),
        (StepSizeRule.CAPPED_LINEAR, 4 * (50 + 63) / (50 + 255)),
        (Wrapped(torch.optim.SGD(PARAMETER, lr=0.1)), 4 * (50 + 63) / (50 + 255)),
        (torch.optim.AdamW(PARAMETER), 2.0),
        (torch.optim.NAdam, 2.0),
        (torch.optim.RMSprop, 2.0),
        (AdamW8bit, 2.0),
        (StepSizeRule.SQUARE_ROOT, 2.0),
        (None, None),
    ],
)
def test_the_step_size_follows_the_optimizer_s_rule(optimizer, factor):
    # S = 256/64 = 4, and B_D at its lower bound of 50.
    advice = a_reading().advice(new_batch_size=256, optimizer=optimizer)
    assert advice.step_size_factor == (None if factor is None else pytest.approx(factor))
    if factor is not None:
        assert f"; at 256 multiply the learning rate by {factor:.3g} (" in str(advice)


def test_without_a_change_of_batch_the_step_size_stays():
    assert a_reading().advice(optimizer=torch.optim.SGD).step_size_factor == 1


def test_the_rule_is_linear_up_to_the_bound_and_capped_beyond():
    advice = a_reading(lower=50.0).advice(1, new_batch_size=8, optimizer=torch.optim.SGD)
    assert advice.step_size_factor == pytest.approx(8 * 50 / (50 + 8 - 1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.advice(0), ValueError, "batch_size must be at least 1 example; got 0"),
        (lambda r: r.advice(new_batch_size=0), ValueError, "new_batch_size must be at least 1 example; got 0"),
        (lambda r: r.advice(optimizer=torch.optim.LBFGS), TypeError, "for SGD and for the Adam family; got LBFGS"),
        (lambda r: r.advice(optimizer=torch.optim.Rprop(PARAMETER)), TypeError, "got Rprop"),
    ],
)
def test_impossible_questions_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(a_reading())
