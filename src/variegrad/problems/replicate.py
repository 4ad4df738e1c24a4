"""r-replication: the same number of examples, of which only one in r is distinct (Section 6 of the paper).

It lowers gradient diversity at an unchanged n: 1/B_D becomes 1/B_D + ((r−1)/(n−1))·(1 − 1/B_D) in expectation, up to
the fluctuation of the mean squared norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from variegrad.problems.subset import size, take


def replicate(dataset: Dataset[Any], times: int, *, seed: int) -> Dataset[Any]:
    """A data set of the same size that contains a random n/r of the examples r times each, in random order.

    If r does not divide n = q·r + s, q examples occur r times and one more occurs s times, so that n is unchanged.

    Args:
        dataset: n examples.
        times: r, 1 ≤ r ≤ n; r = 1 only shuffles.
        seed: of the choice and of the order.

    Returns:
        n examples, ⌈n/r⌉ of them distinct.

    Raises:
        ValueError: if r is outside 1 … n.
        TypeError: if the data set has no length.

    Source: Section 6 of the paper ("r-Replication").
    """
    count = size(dataset)
    if not 1 <= times <= count:
        raise ValueError(f"replicate: times must lie between 1 and the {count} examples of the data set; got {times}.")
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(count, generator=generator)[: -(-count // times)]
    copies = kept.repeat_interleave(times)[:count]  # only the last example kept can lose copies here
    return take(dataset, copies[torch.randperm(count, generator=generator)])
