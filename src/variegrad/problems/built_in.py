"""The built-in problems: data, model, and a step size that works.

Step sizes are sum-normalised, for batches of 64, and were found by doubling: the largest that lowers the training loss
steadily over the first passes, halved once or twice for safety (for Fashion-MNIST: half of MNIST's). They are starting
points, not tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from variegrad.data_root import find_sparse
from variegrad.problems.cifar10 import CLASSES, pair, read_cifar10
from variegrad.problems.classification import logistic_accuracy, logistic_losses, softmax_accuracy, softmax_losses
from variegrad.problems.digits import read_digits
from variegrad.problems.images import standardised
from variegrad.problems.libsvm import as_dataset, read_libsvm, stable_step_size
from variegrad.problems.mnist import read_fashion_mnist, read_mnist
from variegrad.problems.models import cuda_convnet, logistic_regression, mlp, mnist_cnn, resnet20
from variegrad.problems.problem import Losses, Problem
from variegrad.problems.subset import counted

SOFTMAX = (softmax_losses, softmax_accuracy)
LOGISTIC = (logistic_losses, logistic_accuracy)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A problem that can be loaded by name.

    Attributes:
        summary: one line.
        build: makes it from the seed of its starting weights and the data root.
    """

    summary: str
    build: Callable[[int, Path], Problem]


def _digits(seed: int, _root: Path) -> Problem:
    return _problem("digits", "MLP 64-32-10", mlp([64, 32, 10], seed=seed), read_digits(), 4e-3)


def _mnist(seed: int, root: Path) -> Problem:
    return _problem("mnist", "CNN", mnist_cnn(seed=seed), standardised(*read_mnist(root)), 1e-3)


def _fashion_mnist(seed: int, root: Path) -> Problem:
    return _problem("fashion-mnist", "CNN", mnist_cnn(seed=seed), standardised(*read_fashion_mnist(root)), 5e-4)


def _cifar10(seed: int, root: Path) -> Problem:
    return _problem("cifar10", "cuda-convnet", cuda_convnet(seed=seed), standardised(*read_cifar10(root)), 1e-3)


def _cifar10_resnet20(seed: int, root: Path) -> Problem:
    model = resnet20(seed=seed)
    return _problem("cifar10-resnet20", "ResNet-20, GroupNorm", model, standardised(*read_cifar10(root)), 5e-4)


def _cifar10_pair(seed: int, root: Path) -> Problem:
    train, test = (pair(split, *CLASSES[:2]) for split in read_cifar10(root))
    model = logistic_regression(3 * 32 * 32, seed=seed)
    return _problem("cifar10-pair", "logistic regression", model, standardised(train, test), 2e-5, scoring=LOGISTIC)


def _a9a(seed: int, root: Path) -> Problem:
    return libsvm_problem("a9a", find_sparse("a9a", root), seed=seed)


def _news20(seed: int, root: Path) -> Problem:
    return libsvm_problem("news20", find_sparse("news20", root), seed=seed)


def libsvm_problem(name: str, path: Path, *, seed: int = 0) -> Problem:
    """Logistic regression on a LIBSVM file, softmax if it has more than two classes.

    Args:
        name: what to call it.
        path: of the file.
        seed: of the starting weights.

    Returns:
        The problem, without a test set.

    Raises:
        ValueError: if the file is malformed.
    """
    features, labels = read_libsvm(path)
    classes = int(labels.max()) + 1
    model = logistic_regression(features.shape[1], classes, seed=seed)
    data = (as_dataset(features, labels), None)
    scoring = LOGISTIC if classes == 2 else SOFTMAX
    return _problem(name, "logistic regression", model, data, stable_step_size(features, classes), scoring=scoring)


def _problem(
    name: str,
    about: str,
    model: nn.Module,
    data: tuple[Dataset[Any], Dataset[Any] | None],
    step_size: float,
    *,
    scoring: tuple[Losses, Losses] = SOFTMAX,
) -> Problem:
    train, test = data
    losses, accuracy = scoring
    counts = counted(train, test)
    shape = " × ".join(map(str, train[0][0].shape))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Problem(
        name=name,
        model=model,
        losses=losses,
        accuracy=accuracy,
        train=train,
        test=test,
        step_size=step_size,
        description=f"{counts} of {shape} features; {about}, {parameters:,} parameters",
    )


BUILT_IN = {
    "digits": Entry(summary="8×8 digits included in scikit-learn, MLP 64-32-10; needs no files", build=_digits),
    "mnist": Entry(summary="MNIST, convolutional network with 1.7 million parameters", build=_mnist),
    "fashion-mnist": Entry(summary="Fashion-MNIST, the same network", build=_fashion_mnist),
    "cifar10": Entry(summary="CIFAR-10, cuda-convnet with 1.8 million parameters", build=_cifar10),
    "cifar10-resnet20": Entry(summary="CIFAR-10, ResNet-20 with group normalisation", build=_cifar10_resnet20),
    "cifar10-pair": Entry(summary="CIFAR-10, airplane vs. automobile, logistic regression", build=_cifar10_pair),
    "a9a": Entry(summary="a9a (Adult census), logistic regression on 123 binary features", build=_a9a),
    "news20": Entry(summary="20 Newsgroups, logistic regression on the words of a text (sparse)", build=_news20),
}
