"""The data of an experiment: a built-in problem by name, what replaces it if its files are missing, and what it is.

A digest of the training examples is part of every cell, so that records of other data are never taken for these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset, TensorDataset

from variegrad.problems import DataNotFound, Problem, load, replicate
from variegrad.problems.subset import size, some

# CIFAR-10 files made from JPEG images, by a digest of the first training examples of each problem.
JPEG_RECOMPRESSED: frozenset[str] = frozenset({"7f11878e3d675c43", "5cf399f9e2f0af89"})
FIRST = 100
CPU = torch.device("cpu")


@lru_cache(maxsize=4)
def problem(name: str, max_examples: int | None = None) -> Problem:
    """The problem, read once in a process; its subset of training examples is always the same, its test set is whole.

    Args:
        name: of a built-in problem whose examples are tensors; `cifar10/2` has images of half the height and width,
            each pixel the mean of 2 × 2.
        max_examples: how many of its training examples are used.

    Returns:
        The problem.
    """
    whole = _whole(name)
    return whole if max_examples is None else replace(whole, train=some(whole.train, max_examples, seed=0))


@lru_cache(maxsize=2)
def _whole(name: str) -> Problem:
    base, _, pixels = name.partition("/")
    found = load(base, seed=0)
    if not pixels:
        return found
    train, test = (_averaged(part, int(pixels)) for part in (found.train, found.test))
    return replace(found, train=train, test=test)


def _averaged(dataset: Dataset[Any] | None, pixels: int) -> TensorDataset:
    """Images of fewer pixels: the mean of each square."""
    images, labels = _tensors(dataset).tensors
    return TensorDataset(avg_pool2d(images, pixels), labels)


def tensors(name: str, max_examples: int | None = None) -> TensorDataset:
    """The training set of a problem as tensors.

    Args:
        name: of the problem.
        max_examples: how many of its training examples are used.

    Returns:
        Its training set.

    Raises:
        TypeError: if it is not made of tensors.
    """
    return _tensors(problem(name, max_examples).train)


def _tensors(dataset: Dataset[Any] | None) -> TensorDataset:
    if not isinstance(dataset, TensorDataset):
        raise TypeError(f"experiments need data sets of tensors; got {type(dataset).__name__}.")
    return dataset


@lru_cache(maxsize=4)
def replicated(name: str, max_examples: int | None, times: int, seed: int, device: torch.device = CPU) -> TensorDataset:
    """The training set with a random n/r of its examples, each r times (`problems.replicate`).

    Args:
        name: of the problem.
        max_examples: how many of its training examples are used.
        times: r; 1 leaves the data as they are.
        seed: of the choice.
        device: where the examples are kept.

    Returns:
        As many examples.
    """
    if times == 1:
        return on_device(name, max_examples, device)
    return _moved(_tensors(replicate(tensors(name, max_examples), times, seed=seed)), device)


@lru_cache(maxsize=4)
def on_device(name: str, max_examples: int | None, device: torch.device) -> TensorDataset:
    """The training set, copied to a device once.

    Args:
        name: of the problem.
        max_examples: how many of its training examples are used.
        device: where to.

    Returns:
        The examples there.
    """
    return _moved(tensors(name, max_examples), device)


@lru_cache(maxsize=4)
def test_set(name: str, device: torch.device) -> TensorDataset:
    """The whole test set, copied to a device once.

    Args:
        name: of the problem.
        device: where to.

    Returns:
        The examples there.
    """
    return _moved(_tensors(problem(name).test), device)


def _moved(dataset: TensorDataset, device: torch.device) -> TensorDataset:
    return TensorDataset(*(column.to(device) for column in dataset.tensors))


@lru_cache(maxsize=16)
def digest(name: str, max_examples: int | None = None, first: int | None = None) -> str:
    """A digest of the training examples in their order.

    Args:
        name: of the problem.
        max_examples: how many are used.
        first: use only this many examples.

    Returns:
        Sixteen hexadecimal digits.
    """
    hashed = hashlib.blake2b(digest_size=8)
    for column in tensors(name, max_examples).tensors:
        hashed.update(column[:first].contiguous().numpy().data)
    return hashed.hexdigest()


def settled(settings: Mapping[str, Any], *, required: bool = False) -> tuple[Mapping[str, Any], str]:
    """Settings whose data are there: the problem asked for, or else its replacement.

    Args:
        settings: of a profile; `problem`, `max_examples` and `without_data` if the experiment needs data.
        required: raise if the files are missing, instead of using the replacement.

    Returns:
        The settings with the number of examples and the digest of the data, so that finished records are read without
        the data; and a sentence about the data.

    Raises:
        DataNotFound: if the files are missing and required.
    """
    if "problem" not in settings:
        return settings, "No data are needed."
    chosen = {name: value for name, value in settings.items() if name != "without_data"}
    said = ""
    try:
        problem(chosen["problem"])
    except DataNotFound as missing:
        if required:
            raise
        stand_in = settings["without_data"]
        said = f"The files of {chosen['problem']} are missing, so {stand_in} is used instead ({missing}). "
        chosen["problem"] = stand_in
    chosen["examples"] = len(tensors(chosen["problem"], chosen.get("max_examples")))
    chosen["data"] = digest(chosen["problem"], chosen.get("max_examples"))
    return chosen, said + describe(chosen["problem"], chosen.get("max_examples"))


def describe(name: str, max_examples: int | None = None) -> str:
    """What the data are, in a sentence.

    Args:
        name: of the problem.
        max_examples: how many of its training examples are used.

    Returns:
        The sentence.
    """
    used, whole = problem(name, max_examples), problem(name)
    first, *_ = tensors(name, max_examples).tensors
    parts = []
    for part, all_of_it, what in ((used.train, whole.train, "training"), (used.test, whole.test, "test")):
        assert part is not None
        assert all_of_it is not None
        count, most = size(part), size(all_of_it)
        parts.append(f"{count:,}{f' of {most:,}' if count < most else ''} {what} examples")
    kind = ""
    if name.startswith("cifar10"):
        known = digest(name.partition("/")[0], first=FIRST) in JPEG_RECOMPRESSED
        kind = f"CIFAR-10, {'JPEG-recompressed images' if known else 'images as found under the data root'}; "
        if "/" in name:
            kind += f"each pixel the mean of a square of {name.partition('/')[2]} × {name.partition('/')[2]}; "
    shape = " × ".join(map(str, first.shape[1:]))
    return f"{name}: {kind}{' and '.join(parts)} of {shape} features; digest {digest(name, max_examples)}."
