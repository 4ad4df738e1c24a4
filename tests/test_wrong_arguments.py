"""What people pass by mistake gets a sentence that says what to pass instead."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import variegrad as vg

MODEL = nn.Linear(3, 2)
X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


def losses(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


EXAMPLES = [(x, y) for x, y in zip(X, Y, strict=True)]
MISTAKES = {
    "criterion": (
        lambda: vg.measure(MODEL, nn.CrossEntropyLoss(), TensorDataset(X, Y)),
        "got the module CrossEntropyLoss",
    ),
    "criterion, estimate": (lambda: vg.estimate(MODEL, nn.MSELoss(), (X, Y)), "reduction='none'"),
    "criterion, norms": (lambda: vg.example_sq_norms(MODEL, nn.MSELoss(), (X, Y)), "losses must be a function"),
    "NumPy array": (lambda: vg.measure(MODEL, losses, X.numpy()), "torch.from_numpy"),
    "NumPy batch": (lambda: vg.measure(MODEL, losses, [(X.numpy(), Y.numpy())]), "holds NumPy arrays"),
    "NumPy batch, estimate": (lambda: vg.estimate(MODEL, losses, (X.numpy(), Y.numpy())), "holds NumPy arrays"),
    "list of examples": (lambda: vg.measure(MODEL, losses, EXAMPLES), "Wrap a list of examples"),
    "list of examples with plain labels": (lambda: vg.measure(MODEL, losses, [(x, 1) for x in X]), "wrap it"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_wrong_argument_gets_a_sentence(case):
    call, sentence = MISTAKES[case]
    with pytest.raises(TypeError) as refusal:
        call()
    assert sentence in str(refusal.value)


def test_watch_after_backward_says_so():
    monitor = vg.Monitor(MODEL, every=1)
    found = losses(MODEL, (X, Y))
    found.mean().backward()
    with pytest.raises(ValueError, match="between forward and backward"):
        monitor.watch(found)


def test_what_is_right_is_not_refused():
    whole = vg.measure(MODEL, losses, [(X, Y)])
    assert vg.measure(MODEL, losses, DataLoader(EXAMPLES, batch_size=4)).batch_size_bound == pytest.approx(
        whole.batch_size_bound
    )
    assert vg.measure(MODEL, losses, [[X[:4], Y[:4]], [X[4:], Y[4:]]]).count == 8


@pytest.mark.parametrize("name", ["efficiency", "speed_up"])
def test_a_batch_size_that_is_no_number_gets_a_sentence(name):
    # Without the type checks of the tests, which would refuse it first.
    code = (
        "from variegrad import Diversity\n"
        "found = Diversity(count=2, dimension=1, sum_sq_norms=2.0, sq_norm_of_sum=1.0)\n"
        "for wrong in ('128', None, True):\n"
        "    try:\n"
        f"        found.{name}(wrong)\n"
        "    except TypeError as error:\n"
        "        print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.count("batch_size must be a number of examples; got ") == 3
    assert "got '128' (str)." in said


def test_no_function_has_the_name_of_a_module_of_its_package():
    for package in ("per_example", "mechanisms", "estimators", "monitor", "training", "decision", "reports", "theory"):
        module = importlib.import_module(f"variegrad.{package}")
        files = {path.stem for path in Path(module.__file__).parent.iterdir()}
        public = {name for name in getattr(module, "__all__", ()) if callable(getattr(module, name))}
        assert not files & public, package
