"""A run of an experiment: what is measured along it is exact, and little beside the training."""

import math
from itertools import pairwise

import pytest
import torch

import variegrad as vg
from variegrad.experiments import data, figure_3a, training_run
from variegrad.experiments.records import Cell, Record
from variegrad.experiments.training_run import aligned, passes_needed, passes_said, passes_score, run_once
from variegrad.experiments.verdict import AtLeast
from variegrad.training import TrainConfig, WithReplacement, train
from variegrad.training.evaluation import mean_of

VALUES = {
    "problem": "digits", "max_examples": 64, "network": "mlp:16:relu", "batch_size": 8, "step_size": 0.05, "seed": 3,
    "at": aligned(20, 10, 64, 8),
}  # fmt: skip


def cell(**values):
    return Cell(experiment="any", version=1, values={**VALUES, **values})


@pytest.fixture
def forwards(monkeypatch):
    """The sizes of the batches that a model is evaluated on."""
    seen = []

    def counted(*args):
        model = fresh(*args)
        model.register_forward_hook(note)
        return model

    def note(model, inputs, _output):
        if not model.training:
            seen.append(len(inputs[0]))

    fresh = training_run.fresh
    monkeypatch.setattr(training_run, "fresh", counted)
    return seen


def test_the_curves_are_those_of_the_plain_loop():
    found = run_once(cell(bounds_every=2))
    problem, examples = data.problem("digits", 64), data.tensors("digits", 64)
    model = training_run.fresh(VALUES, examples)
    losses, accuracies, bounds, online = [], [], [], []

    def note():
        losses.append(mean_of(problem.losses, model, examples))
        accuracies.append(mean_of(problem.accuracy, model, examples))
        bounds.append(vg.measure(model, problem.losses, examples).batch_size_bound)

    note()
    for step in train(model, problem.losses, examples, TrainConfig(batch_size=8, step_size=0.05, seed=3, passes=20)):
        online.append(step.mean_loss)
        if step.examples in VALUES["at"]:
            note()
    assert found["losses"] == pytest.approx(losses, rel=1e-12)
    assert found["accuracies"] == pytest.approx(accuracies, rel=1e-6)
    assert found["bounds"] == pytest.approx(bounds[::2], rel=1e-9)
    assert found["bound_passes"] == found["passes"][::2]
    assert found["online_loss"] == pytest.approx(sum(online) / len(online))
    assert found["end_loss"] == pytest.approx(sum(online[-8:]) / 8)


@pytest.mark.parametrize(
    ("name", "made"),
    [("momentum", lambda weights: torch.optim.SGD(weights, lr=0.02, momentum=0.9)),
     ("Adam", lambda weights: torch.optim.Adam(weights, lr=0.02))],
)  # fmt: skip
def test_an_optimizer_takes_the_mean_gradient_at_the_learning_rate_of_the_mean(name, made):
    """The plain loop of torch.optim over the same batches, for batch sizes that do and do not divide n."""
    for size in (8, 24):
        values = {"batch_size": size, "step_size": 0.02 / size, "optimizer": name, "at": [10 * size]}
        found = run_once(cell(**values))
        problem, examples = data.problem("digits", 64), data.tensors("digits", 64)
        model = training_run.fresh(VALUES, examples)
        optimizer, online = made(model.parameters()), []
        for update in range(10):
            rows = WithReplacement().samples(3, range(update * size, (update + 1) * size), 64)
            loss = problem.losses(model, tuple(column[rows] for column in examples.tensors)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            online.append(loss.item())
        assert found["online_loss"] == pytest.approx(sum(online) / 10, rel=1e-5)
        assert found["losses"][-1] == pytest.approx(mean_of(problem.losses, model, examples), rel=1e-4)


def test_a_point_is_one_forward_pass_over_the_training_set(forwards):
    found = run_once(cell())
    assert sum(forwards) == found["evaluated"] == 64 * 11
    assert found["differentiated"] == 0
    assert found["trained"] == 64 * 20


def test_the_test_set_is_read_at_the_end_alone(forwards):
    found = run_once(cell(test=True, at=VALUES["at"][-1:]))
    assert sum(forwards) == found["evaluated"] == 64 * 2 + 360
    problem = data.problem("digits", 64)
    assert len(problem.test) == 360
    assert 0 < found["test_accuracy"] <= 1
    assert math.isnan(run_once(cell())["test_accuracy"])


def test_a_run_far_from_its_target_is_not_evaluated(forwards, monkeypatch):
    monkeypatch.setattr(training_run, "NEAR", 0.0)
    found = run_once(cell(target=1.1))
    assert sum(forwards) == 64 * 2  # at the start and at the end
    assert found["passes"] == [0.0, 20.0]


def test_a_run_ends_at_its_target_and_says_when_it_met_it(monkeypatch):
    monkeypatch.setattr(training_run, "NEAR", math.inf)
    found = run_once(cell(target=0.5))
    assert found["accuracies"][-1] >= 0.5
    assert all(accuracy < 0.5 for accuracy in found["accuracies"][:-1])
    assert found["passes"][-2] < found["needed"] <= found["passes"][-1] < 20
    share = (0.5 - found["accuracies"][-2]) / (found["accuracies"][-1] - found["accuracies"][-2])
    assert found["needed"] == pytest.approx(found["passes"][-2] + 2 * share)


def record(**values):
    kept = {"needed": math.inf, "diverged": False, "examples": 64, "accuracies": [0.3, 0.8]}
    return Record(cell=cell(target=0.9), values={**kept, **values}, seconds=0.0)


def test_scores_order_arrival_then_distance_then_divergence():
    runs = [record(needed=5.0), record(needed=19.0), record(accuracies=[0.85]), record(accuracies=[0.2]),
            record(diverged=True)]  # fmt: skip
    assert all(passes_score(a) < passes_score(b) for a, b in pairwise(runs))
    assert passes_score(runs[-1]) == math.inf


def test_passes_of_a_run_that_did_not_arrive_are_censored():
    assert passes_needed(record(needed=5.0)) == 5.0
    assert passes_needed(record()) == 20
    assert isinstance(passes_needed(record()), AtLeast)
    assert passes_said([passes_needed(record(needed=5.0)), passes_needed(record())]) == "more than 20 in 1 of 2 runs"
    assert passes_said([4.0, 9.0]).mean == pytest.approx(6)


@pytest.mark.parametrize("step_size", [1e3, 1e30])
def test_a_run_that_diverges_is_a_result(step_size):
    found = run_once(cell(step_size=step_size, bounds_every=2, test=True))
    if found["diverged"]:
        assert found["losses"][-1] == found["online_loss"] == found["end_loss"] == math.inf
        assert len(found["losses"]) == len(found["passes"]) == 11
        assert math.isnan(found["test_accuracy"])


@pytest.mark.parametrize("near", [0.0, math.inf])  # every point is skipped as far from the target; none is
@pytest.mark.parametrize(
    ("finite", "before_the_point", "first_lost"),
    [(16, False, 4.0), (20, False, 4.0), (16, True, 2.0), (0, True, 2.0), (31, False, 4.0), (32, True, 4.0)],
)
def test_points_after_a_divergence_follow_those_that_were_passed(
    monkeypatch, near, finite, before_the_point, first_lost
):
    """Weights that become NaN after so many updates of 8 of 64 examples: points every 16 updates, at 2, 4 … passes."""

    def broken(cell, model, losses, examples):
        def break_it():
            next(model.parameters()).data.fill_(math.nan)

        for k, update in enumerate(train(model, losses, examples, training_run.config(cell, 64)), 1):
            if before_the_point and k == max(finite, 1):
                break_it()
            yield update
            if k == finite and not before_the_point:
                break_it()

    monkeypatch.setattr(training_run, "updates", broken)
    monkeypatch.setattr(training_run, "NEAR", near)
    found = run_once(cell(target=1.1))
    measured = [] if near == 0 else [p for p in (2.0, 4.0) if p < first_lost]
    lost = [2.0 * k for k in range(1, 11) if 2.0 * k >= first_lost]
    assert found["diverged"]
    assert found["passes"] == [0.0, *measured, *lost]
    assert [math.isfinite(loss) for loss in found["losses"]] == [True] * (1 + len(measured)) + [False] * len(lost)
    assert len(found["accuracies"]) == len(found["passes"])


def test_twins_share_the_unchanged_run_and_equal_twin_runs():
    """Distances of each replaced example are those of `training.twin_runs` on that pair."""
    from variegrad.problems import neighbours
    from variegrad.training import Cadence, twin_runs

    at = aligned(4, 4, 64, 8)
    twins = [cell(at=at, replaced=k) for k in range(2)]
    found = figure_3a.run(twins)
    problem, examples = data.problem("digits", 64), data.tensors("digits", 64)
    config = TrainConfig(batch_size=8, step_size=0.05, seed=3, passes=4)
    for k, one in enumerate(found):
        pair = neighbours(examples, problem.test, seed=3000 + k)
        expected = twin_runs(
            training_run.fresh(VALUES, examples), problem.losses, pair.first, pair.second, config,
            every=Cadence(updates=8),
        )  # fmt: skip
        assert one["distances"] == pytest.approx(list(expected.normalised_distances), rel=1e-5)
        if k == 0:
            assert one["bounds"] == pytest.approx([expected.bounds[1], expected.bounds[3]], rel=1e-3)
    assert found[1]["bounds"] == []
    assert found[0]["losses"] == found[1]["losses"]
    assert found[0]["losses"][1] < found[0]["losses"][0]
    assert torch.equal(examples.tensors[0], data.tensors("digits", 64).tensors[0])
