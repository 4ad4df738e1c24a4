"""A measured run: where it is measured, that measuring changes nothing, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from variegrad import measure
from variegrad.along import measure_along, stops
from variegrad.mechanisms import Quantize
from variegrad.problems import Problem
from variegrad.problems.classification import softmax_accuracy, softmax_losses
from variegrad.training import Epochs, TrainConfig, train
from variegrad.training.evaluation import mean_of


def problem(n=20, dropout=0.5, **changes):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 2)).double()
    sets = [TensorDataset(torch.randn(k, 3).double(), torch.arange(k) % 2) for k in (n, 7)]
    settings = {"name": "small", "losses": softmax_losses, "accuracy": softmax_accuracy, "test": sets[1], **changes}
    return Problem(model=model, train=sets[0], **settings)


def along(of, **changes):
    settings = {"passes": 3.0, "points": 4, "batch_size": 6, "step_size": 0.05, **changes}
    return measure_along(of, **settings)


def test_stops_begin_at_the_start_end_at_the_end_and_are_denser_early():
    assert stops(100, 1) == {100}
    assert stops(100, 2) == {0, 100}
    assert sorted(stops(100, 5)) == [0, 6, 25, 56, 100]
    assert stops(0, 12) == {0}
    assert stops(3, 50) == {0, 1, 2, 3}  # never more points than updates


def test_each_point_is_what_measure_says_of_the_weights_there():
    of = problem(dropout=0.0)
    reference = copy.deepcopy(of.model)
    found = list(along(of, mechanisms=[Quantize()]))
    assert [p.updates for p in found] == [0, 1, 5, 12]  # 4 updates a pass: 20 examples, 6 at a time
    assert [p.passes for p in found] == [0, 0.25, 1.25, 3]
    config = TrainConfig(batch_size=6, step_size=0.05, passes=3, sampling=Epochs())
    run = train(reference, of.losses, of.train, config)
    for point, following in zip(found, [1, 5, 12, 12], strict=True):
        expected = measure(reference, of.losses, of.train, mechanism=Quantize())
        assert point.diversity.sum_sq_norms == pytest.approx(expected.sum_sq_norms, rel=1e-12)
        assert point.diversity.sum_l1_l2_norms == pytest.approx(expected.sum_l1_l2_norms, rel=1e-12)
        assert point.loss == pytest.approx(float(of.losses(reference, of.train.tensors).mean().detach()), rel=1e-12)
        assert point.accuracy == mean_of(softmax_accuracy, reference, of.train)
        assert point.test_accuracy == mean_of(softmax_accuracy, reference, of.test)
        for _ in range(following - point.updates):
            next(run)


def test_a_run_does_not_depend_on_how_often_it_is_measured_nor_on_the_global_state():
    seldom, often = problem(), problem()
    last = list(along(seldom, points=1))[-1]
    torch.manual_seed(77)
    before = torch.get_rng_state()
    again = list(along(often, points=12))[-1]
    assert torch.equal(torch.get_rng_state(), before)
    assert again == last  # with dropout: the same masks in every update and in the measurement
    assert all(torch.equal(a, b) for a, b in zip(seldom.model.parameters(), often.model.parameters(), strict=True))


def test_the_mode_of_each_module_is_given_back():
    of = problem()
    of.model[0].eval()
    modes = [m.training for m in of.model.modules()]
    mean_of(of.losses, of.model, of.train)
    assert [m.training for m in of.model.modules()] == modes
    assert not modes[1]
    assert modes[0]


def test_a_problem_without_test_set_and_accuracy():
    point = next(along(problem(test=None, accuracy=None)))
    assert (point.accuracy, point.test_loss, point.test_accuracy) == (None, None, None)
    assert math.isnan(mean_of(softmax_losses, problem().model, TensorDataset(torch.zeros(0, 3), torch.zeros(0))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": 0}, "points must be at least 1; got 0"),
        ({"passes": -1.0}, "passes must be a finite number and not negative; got -1.0"),
        ({"passes": math.nan}, "passes must be a finite number and not negative; got nan"),
        ({"passes": math.inf}, "passes must be a finite number and not negative; got inf"),
        ({"batch_size": 0}, "batch_size must be at least 1 example; got 0"),
        ({"step_size": math.nan}, "step_size must be positive and finite; got nan"),
        ({"step_size": -1.0}, "step_size must be positive and finite; got -1.0"),
        ({"step_size": math.inf}, "step_size must be positive and finite; got inf"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        along(problem(), **changes)


def test_an_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="small: the training set has no examples"):
        along(problem(n=0))


def test_a_run_that_diverges_says_where_and_what_to_do():
    of = problem()
    of.model.float()
    of = Problem(
        name="f",
        model=of.model,
        losses=of.losses,
        train=TensorDataset(of.train.tensors[0].float(), of.train.tensors[1]),
    )
    run = along(of, step_size=1e38, passes=10.0)
    next(run)
    with pytest.raises(
        ValueError, match=r"at update \d+ of 40, with step size 1e\+38 of the summed gradient: .* is nan.*smaller"
    ):
        list(run)
