"""`package.module:function` gives a user's own problem, or says at which of its steps it failed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from variegrad.problems import load

MODULE = """
import torch
from torch.utils.data import TensorDataset
from variegrad.problems import Problem, mlp
from variegrad.problems.classification import softmax_losses

def good():
    data = TensorDataset(torch.zeros(9, 2), torch.zeros(9).long())
    return Problem(name="mine", model=mlp([2, 2]), losses=softmax_losses, train=data)

def fails():
    raise KeyError("lost")

def needs_more(path):
    return path

def none():
    pass

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "own.py").write_text(MODULE)
    (package / "broken.py").write_text("import users_missing_library\n")
    (package / "typo.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("users_package")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_the_current_directory_is_importable(here: Path) -> None:
    assert str(here) not in sys.path
    problem = load("users_package.own:good")
    assert problem.name == "mine"
    assert sys.path[0] == str(here)


def test_max_examples_holds_for_it_too(here: Path) -> None:
    problem = load("users_package.own:good", max_examples=4)
    assert len(problem.train) == 4  # type: ignore[arg-type]
    assert problem.description == "4 examples used"


@pytest.mark.parametrize(
    ("target", "error", "complaint"),
    [
        (
            "users_absent:f",
            ValueError,
            "importing users_absent failed with ModuleNotFoundError: .*imported from here",
        ),
        (
            "users_package.broken:f",
            ValueError,
            "failed with ModuleNotFoundError: No module named 'users_missing_library'",
        ),
        ("users_package.typo:f", ValueError, "importing users_package.typo failed with SyntaxError"),
        ("users_package.own:god", ValueError, "has no attribute 'god'. Did you mean 'good'?"),
        ("users_package.own:zzz", ValueError, "has no attribute 'zzz'. Check its spelling"),
        ("users_package.own:number", TypeError, "must be a function that returns a Problem; found int"),
        ("users_package.own:none", TypeError, "must return a variegrad.Problem; it returned None"),
        ("users_package.own:fails", ValueError, "the function raised KeyError: 'lost'"),
        ("users_package.own:needs_more", ValueError, "raised TypeError: .*It is called without arguments"),
        (":f", ValueError, "as mine.py:function or package.module:function"),
        ("users_package.own:", ValueError, "as mine.py:function or package.module:function"),
    ],
)
def test_each_failure_is_told_apart(here: Path, target: str, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint) as refusal:
        load(target)
    assert "\n" not in str(refusal.value)
