"""Settings: what is refused, how they print, and that their JSON tells runs apart."""

import json
import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
import torch
from torch.utils.data import TensorDataset

from variegrad import DropConnect, Langevin
from variegrad.training import Ball, Box, Cadence, Epochs, Evaluation, Skip, TrainConfig


def config(**changes):
    return TrainConfig(**{"batch_size": 512, "step_size": 2e-3, "passes": 20, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 example; got 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite; got 0.0"),
        ({"step_size": -1.0}, "step_size must be positive and finite; got -1.0"),
        ({"step_size": math.nan}, "step_size must be positive and finite; got nan"),
        ({"step_size": math.inf}, "step_size must be positive and finite; got inf"),
        ({"step_size": "a"}, "step_size"),
        ({"passes": True}, "passes must be a number; got True"),
        ({"passes": 0.0}, "passes must be positive; got 0.0"),
        ({"passes": math.nan}, "passes must be positive; got nan"),
        ({"granularity": "layer"}, "granularity"),
        ({"batch_size": True}, "batch_size must be a whole number; got True"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"seed": 1.5}, "seed"),
        ({"mechanism": "dropconnect"}, "mechanism"),
        ({"mechanism": DropConnect}, "mechanism"),
        ({"sampling": Epochs}, "sampling must be an object such as Epochs"),
        ({"projection": 3.0}, "projection"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        config(**changes)


def test_it_is_frozen_and_prints_the_update():
    made = config(mechanism=DropConnect(0.4), projection=Ball(3.0), sampling=Epochs())
    with pytest.raises(FrozenInstanceError):
        made.batch_size = 3
    assert str(made) == (
        "w ← w − 0.002·Σ m(∇f_i), m = DropConnect(0.4) per example, projected onto Ball(3); B = 512 drawn without "
        "replacement, 20 passes, seed 0 (a learning rate of 1.02 for the mean)"
    )
    assert str(config()).startswith("w ← w − 0.002·Σ ∇f_i; B = 512 drawn with replacement, 20 passes")


def test_every_setting_shows_in_the_json():
    changes = {
        "batch_size": 3, "step_size": 0.5, "passes": math.inf, "mechanism": Langevin(0.1), "granularity": "worker",
        "seed": 7, "sampling": Epochs(), "projection": Box(-1.0, 1.0), "when_not_finite": Skip(2),
    }  # fmt: skip
    plain = config().settings()
    assert plain.keys() == changes.keys()
    for name, value in changes.items():
        changed = config(**{name: value}).settings()
        assert {key for key in plain if plain[key] != changed[key]} == {name}
        json.dumps(changed, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either updates or passes; got None and None"),
        ({"updates": 1, "passes": 1.0}, "give either updates or passes; got 1 and 1.0"),
        ({"updates": 0}, "updates must be at least 1; got 0"),
        ({"passes": 0.0}, "passes must be positive; got 0.0"),
        ({"passes": math.nan}, "passes must be positive; got nan"),
    ],
)
def test_a_cadence_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cadence(**arguments)


def test_a_cadence_in_passes_is_kept_whatever_the_batch():
    for batch in (1, 3, 7, 19):
        positions = [min(k * batch, 100) / 10 for k in range(100 // batch + 2)]
        due = [b for a, b in pairwise(positions) if Cadence(passes=2.0).due(1, a, b)]
        assert len(due) == 10 // 2
        assert all(b // 2 * 2 >= b - batch / 10 for b in due)
    assert [k for k in range(1, 10) if Cadence(updates=4).due(k, 0, 0)] == [4, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": []}, "Evaluation: data has no examples"),
        ({"data": [0], "target": math.nan}, "target must be a number; got nan"),
    ],
)
def test_an_evaluation_of_nothing_is_refused(options, message):
    data = TensorDataset(torch.zeros(len(options["data"])))
    with pytest.raises(ValueError, match=message):
        Evaluation(accuracy=lambda m, b: b[0], **{**options, "data": data})


def test_skipping_never_is_stop():
    with pytest.raises(ValueError, match="at_most must be at least 1 update; got 0"):
        Skip(0)
