"""`load` finds what is named, says where it looked for what is missing, and gives problems that can be trained."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from problems.files import write_grey_images
from variegrad.data_root import root_folder
from variegrad.problems import DataNotFound, Problem, load, names


def columns(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(problem.train, TensorDataset)
    features, labels = problem.train.tensors
    return features, labels


def weights(problem: Problem) -> torch.Tensor:
    return nn.utils.parameters_to_vector(problem.model.parameters())


def train(problem: Problem, *, steps: int, batch_size: int = 64) -> tuple[float, float]:
    """The mean training loss before and after so many steps of equation (2)."""
    features, labels = columns(problem)
    generator = torch.Generator().manual_seed(0)
    some = slice(0, 500)
    with torch.no_grad():
        before = problem.losses(problem.model, (features[some], labels[some])).mean().item()
    for _ in range(steps):
        drawn = torch.randint(len(labels), (batch_size,), generator=generator)
        loss = problem.losses(problem.model, (features[drawn], labels[drawn])).sum()
        parameters = list(problem.model.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= problem.step_size * gradient
    with torch.no_grad():
        return before, problem.losses(problem.model, (features[some], labels[some])).mean().item()


def test_names_of_the_built_in_problems() -> None:
    images = ["digits", "mnist", "fashion-mnist", "cifar10", "cifar10-resnet20", "cifar10-pair"]
    assert list(names()) == [*images, "a9a", "news20"]
    assert all(line and "\n" not in line for line in names().values())


def test_digits_need_no_files() -> None:
    problem = load("digits", data_root="/nowhere")
    features, labels = columns(problem)
    assert features.shape == (1437, 64)
    assert (features.min(), features.max()) == (0, 1)
    assert set(labels.tolist()) == set(range(10))
    assert isinstance(problem.test, TensorDataset)
    assert len(problem.test) == 360
    assert problem.description == "1,437 training and 360 test examples of 64 features; MLP 64-32-10, 2,410 parameters"


def test_no_digit_is_in_both_splits() -> None:
    problem = load("digits")
    assert isinstance(problem.test, TensorDataset)
    train_rows, test_rows = (
        {tuple(row.tolist()) for row in part} for part in (columns(problem)[0], problem.test.tensors[0])
    )
    assert len(train_rows) + len(test_rows) == 1797
    assert not train_rows & test_rows


def test_digits_train_at_their_step_size() -> None:
    problem = load("digits")
    before, after = train(problem, steps=10 * 1437 // 64)
    assert before > 2.2
    assert after < 0.35
    assert problem.accuracy is not None
    assert problem.accuracy(problem.model, columns(problem)).mean() > 0.9


@pytest.mark.parametrize(("name", "steps", "share"), [("mnist", 30, 0.75), ("a9a", 300, 0.6)])
def test_real_problems_train_at_their_step_size(real_data: Path, name: str, steps: int, share: float) -> None:
    before, after = train(load(name, data_root=real_data, max_examples=4000), steps=steps)
    assert after < share * before


def test_weights_follow_the_seed_and_the_split_does_not() -> None:
    one, same, other = (load("digits", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))
    assert torch.equal(columns(one)[0], columns(other)[0])


def test_max_examples_takes_a_seeded_subset_of_both_splits() -> None:
    one, same, other = (load("digits", seed=seed, max_examples=500) for seed in (1, 1, 2))
    assert isinstance(one.test, TensorDataset)
    assert (len(columns(one)[1]), len(one.test)) == (500, 360)
    assert torch.equal(columns(one)[0], columns(same)[0])
    assert not torch.equal(columns(one)[0], columns(other)[0])
    assert one.description.endswith("; 500 training and 360 test examples used")
    assert len(columns(load("digits", max_examples=1))[1]) == 1
    assert load("digits", max_examples=5000).description == load("digits").description


@pytest.mark.parametrize("max_examples", [0, -3])
def test_an_empty_subset_is_refused(max_examples: int) -> None:
    with pytest.raises(ValueError, match=f"max_examples must be at least 1; got {max_examples}"):
        load("digits", max_examples=max_examples)


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load("digits", max_examples=10)
    assert torch.equal(torch.get_rng_state(), before)


def test_grey_images_are_standardised_by_the_training_set(tmp_path: Path) -> None:
    write_grey_images(tmp_path / "fashion-mnist")
    problem = load("fashion-mnist", data_root=tmp_path)
    features, labels = columns(problem)
    assert (features.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert features.mean().item() == pytest.approx(0, abs=1e-5)
    assert features.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert problem.losses(problem.model, (features[:4], labels[:4])).shape == (4,)
    assert problem.accuracy is not None
    assert set(problem.accuracy(problem.model, (features, labels)).tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar10-resnet20", "cifar10-pair", "a9a"])
def test_missing_data_says_where_it_looked_and_the_three_ways(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataNotFound) as refusal:
        load(name, data_root=tmp_path)
    message = str(refusal.value)
    assert isinstance(refusal.value, FileNotFoundError)
    assert "\n" not in message
    assert f"Looked in {tmp_path} and below it in " in message
    assert len(message) < 600
    assert "--data-root DIR (data_root=DIR in Python) or set VARIEGRAD_DATA=DIR" in message
    assert "download them: python -c" in message
    command = shlex.split(message[message.index("python -c") :])[2]
    compile(command, "advice", "exec")
    assert repr(str(tmp_path)) in command


def test_missing_news20_is_not_said_to_be_downloadable(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"news20.svm.gz.*or set VARIEGRAD_DATA=DIR\.$"):
        load("news20", data_root=tmp_path)


def test_a_root_that_is_no_folder_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="absent is not a folder"):
        load("mnist", data_root=tmp_path / "absent")


def test_the_root_is_the_argument_else_the_variable_else_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VARIEGRAD_DATA", "/variable")
    assert root_folder("~/given") == tmp_path / "given"
    assert root_folder() == Path("/variable")
    monkeypatch.setenv("VARIEGRAD_DATA", "")
    assert root_folder() == tmp_path / ".cache" / "variegrad"
    monkeypatch.delenv("VARIEGRAD_DATA")
    assert root_folder(None) == tmp_path / ".cache" / "variegrad"


@pytest.mark.parametrize("place", ["sparse/a9a.svm.gz", "a9a", "a9a/a9a", "a9a.svm", "a9a.txt", "libsvm/a9a.bz2"])
def test_a9a_is_looked_for_where_it_may_be(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("broken")
    with pytest.raises(ValueError, match=f"{tmp_path / place}"):
        load("a9a", data_root=tmp_path)


def test_a_libsvm_file_by_path_here_or_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.svm").write_text("0 1:1\n1 2:1\n2 1:3\n")
    monkeypatch.chdir("/")
    for name, root in ((str(tmp_path / "mine.svm"), None), ("mine.svm", tmp_path)):
        problem = load(name, data_root=root)
        assert problem.name == "mine.svm"
        assert problem.test is None
        assert len(columns(problem)[1]) == 3
    monkeypatch.chdir(tmp_path)
    assert load("mine.svm", max_examples=2).description.endswith("; 2 examples used")


@pytest.mark.parametrize("name", ["absent.svm", "some/file"])
def test_a_path_without_a_file_is_said_to_be_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataNotFound, match=f"{name}: no such file, neither here .* nor in the data root {tmp_path}"):
        load(name, data_root=tmp_path)


def test_a_folder_is_not_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; pass a file in it, such as a LIBSVM file"):
        load(str(tmp_path))


@pytest.mark.parametrize(("name", "guess"), [("digit", "did you mean 'digits'"), ("", "Choose one of digits, mnist")])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str, guess: str) -> None:
    with pytest.raises(ValueError, match=guess):
        load(name)
