"""The adjudication: stacked runs are torch's own runs, and truth and predictions follow their definitions."""

import math

import pytest
import torch
from torch import nn, optim

from variegrad.experiments.critical_batch.findings import findings
from variegrad.experiments.critical_batch.judge import Case, crossing, error_factor, harmonic_mean, law
from variegrad.experiments.critical_batch.stack import Stack
from variegrad.experiments.critical_batch.tasks import settled, task
from variegrad.experiments.verdict import AtLeast

RATE = {"sgd": 0.1, "momentum": 0.03, "adamw": 0.01, "sign": 0.002, "muon": 0.01}


def digits(network="mlp:6:tanh"):
    return task("digits", 200, network, 1, 50)


def torch_optimizers(name, model, rate):
    parameters = list(model.parameters())
    if name == "sgd":
        return [optim.SGD(parameters, lr=rate)]
    if name == "momentum":
        return [optim.SGD(parameters, lr=rate, momentum=0.9)]
    adam = {"lr": rate, "betas": (0.9, 0.99), "weight_decay": 0.01}
    if name == "adamw":
        return [optim.AdamW(parameters, **adam)]
    matrices = [p for p in parameters if p.ndim == 2]
    rest = [p for p in parameters if p.ndim != 2]
    muon = optim.Muon(matrices, lr=rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, optim.AdamW(rest, **adam)]


NO_MUON = pytest.mark.skipif(not hasattr(optim, "Muon"), reason="this torch has no Muon")


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", pytest.param("muon", marks=NO_MUON)])
def test_a_run_of_a_stack_is_the_run_of_torch(name):
    chosen = digits()
    stack, rates = Stack(chosen, name), [RATE[name], RATE[name] / 3]
    made = stack.train(stack.start(2).spread(3), torch.tensor(rates), seeds=[5, 6, 7], batch_size=10, examples=60)
    x, y = chosen.train
    order = torch.randint(len(x), (1024,), generator=torch.Generator().manual_seed(6))
    model = digits().model
    first = {key: value.clone() for key, value in model.state_dict().items()}
    optimizers = torch_optimizers(name, model, rates[1])
    for rows in order[:60].split(10):
        model.zero_grad()
        chosen.losses(model, (x[rows], y[rows])).mean().backward()
        for one in optimizers:
            one.step()
    # torch's Muon orthogonalises in bfloat16
    for key, p in model.named_parameters():
        tolerance = 2e-3 if name == "muon" else 1e-5
        torch.testing.assert_close(made.weights[key][1, 1], p.detach(), rtol=0, atol=tolerance)
    model.load_state_dict(first)  # the task is shared by all tests


def test_sign_descent_moves_every_weight_by_its_rate():
    stack = Stack(digits(), "sign")
    start = stack.start(1)
    made = stack.train(start, torch.tensor([0.5]), seeds=[0], batch_size=8, examples=8)
    for name, weight in made.weights.items():
        moved = (weight - start.weights[name]).abs()
        assert bool(((moved - 0.5).abs() < 1e-5).logical_or(moved == 0).all())


def test_windows_of_every_batch_size_use_the_same_examples():
    # One step of SGD on all examples at once is the mean of the steps on its parts, at the starting weights.
    stack, rate = Stack(digits("logistic"), "sgd"), torch.tensor([1e-4])
    whole = stack.train(stack.start(1), rate, seeds=[3], batch_size=32, examples=32)
    parts = stack.train(stack.start(1), rate / 4, seeds=[3], batch_size=8, examples=32)
    for name, weight in whole.weights.items():
        torch.testing.assert_close(weight, parts.weights[name], rtol=0, atol=1e-7)


def test_training_goes_on_where_it_was_left():
    stack, rate = Stack(digits(), "adamw"), torch.tensor([0.01])
    whole = stack.train(stack.start(1), rate, seeds=[3], batch_size=8, examples=64)
    half = stack.train(stack.start(1), rate, seeds=[3], batch_size=8, examples=32)
    again = stack.train(half, rate, seeds=[3], batch_size=8, examples=64, skipped=32)
    for name, weight in whole.weights.items():
        torch.testing.assert_close(weight, again.weights[name], rtol=0, atol=1e-7)


def test_a_run_that_diverges_disturbs_no_other():
    stack = Stack(digits("mlp:6:relu"), "sgd")
    made = stack.train(stack.start(2), torch.tensor([1e30, 0.1]), seeds=[0], batch_size=8, examples=64)
    losses = stack.losses(made)[0].tolist()
    assert losses[0] == math.inf
    assert losses[1] < 2.5


def test_a_prediction_is_the_batch_at_which_the_law_says_so():
    for bound in (1.0, 40.0, 1e4):
        for kept in (0.9, 0.5):
            found = law(bound, kept)
            assert (bound + 7) / (bound + found - 1) == pytest.approx(kept)


def test_the_harmonic_mean_of_a_constant_is_the_constant():
    assert harmonic_mean([0, 10, 100], [30.0, 30.0, 30.0], 100) == pytest.approx(30)
    assert harmonic_mean([0, 10, 100], [30.0, 30.0, 5.0], 10) == pytest.approx(30)
    # 1/B_D falls linearly from 1/10 to 0: its mean is 1/20
    assert harmonic_mean([0, 10], [10.0, math.inf], 10) == pytest.approx(20)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.95, 0.85, 0.5], 16 * 2**0.5),  # half-way between 0.95 and 0.85 in log B
        ([0.8, 0.5, 0.1], 8 * 2**0.5),
        ([1.0, 0.95, -3.0], 32 * 2**0.5),  # a cliff
        ([1.0, 0.99, 0.95], AtLeast(64)),
        ([1.0, math.nan, 0.2], 16 * 2**0.5),
    ],
)
def test_the_critical_batch_is_where_progress_falls(shares, expected):
    found = crossing([16, 32, 64], shares, 0.9)
    assert found == pytest.approx(expected)
    assert isinstance(found, AtLeast) == isinstance(expected, AtLeast)


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (32.0, 64.0, 2),
        (64.0, 32.0, 2),
        (AtLeast(64), 1e5, 1),
        (AtLeast(64), math.inf, 1),
        (AtLeast(64), 16.0, 4),
        (32.0, math.nan, math.nan),
    ],
)
def test_the_error_of_a_prediction(truth, predicted, expected):
    assert error_factor(truth, predicted) == pytest.approx(expected, nan_ok=True)


def test_no_limit_found_is_very_wrong_if_there_is_one():
    assert error_factor(32.0, math.inf) > 1000


def test_tasks_without_their_files_are_left_out_and_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("VARIEGRAD_DATA", str(tmp_path))
    both = {
        "here": {"source": "digits", "max_examples": 50},
        "gone": {"source": "a9a", "max_examples": 50},
    }
    found, said = settled({"tasks": both})
    assert set(found["data"]) == {"here"}
    assert "gone is left out" in said
    assert len(found["data"]["here"]) == 16


@pytest.mark.parametrize("word", ["groupnorm-cnn:8", "gpt:1x16"])
def test_networks_with_normalisation_layers_name_them(word):
    chosen = (
        task("python-docs", 64, word, 16, 32) if word.startswith("gpt") else task("digits", 64, "mlp:4:tanh", 1, 32)
    )
    if word.startswith("gpt"):
        names = chosen.norm_layers()
        assert names == {
            n for n, _ in chosen.model.named_parameters() if "first" in n or "second" in n or n[:4] == "norm"
        }
        assert chosen.losses(chosen.model, chosen.evaluated).shape == (32,)
        assert not any(isinstance(m, nn.Dropout) for m in chosen.model.modules())
    else:
        assert not chosen.norm_layers()


@pytest.mark.parametrize(("cells", "right", "verdict"), [(2, 2, "undecided"), (17, 17, "undecided"), (60, 59, "holds"),
                                                         (60, 50, "undecided"), (60, 20, "not met")])  # fmt: skip
def test_a_number_that_predicts_a_few_cells_well_is_no_finding(cells, right, verdict):
    def case(number):
        predicted = {"B_D": 100.0, "stability": 1.0, "B_H": 1e6, "rule": math.nan}
        truth = 110.0 if number < right else 1000.0
        return Case(task="some task", optimizer="sgd", held_out=False, rule="linear", slower=4, checkpoint=number,
                    truth=truth, predicted=predicted)  # fmt: skip

    said = {found.claim: found.verdict for found in findings([case(number) for number in range(cells)])}
    (claim,) = (claim for claim in said if claim.startswith("linear rule, sgd"))
    assert said[claim] == verdict
