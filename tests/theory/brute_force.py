"""Oracles for the theory: definitions written as loops, dense linear algebra, enumeration."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


def batch_size_bound(gradients: np.ndarray) -> float:
    """B_D = n·Σ‖g_i‖²/‖Σg_i‖², from the definition."""
    total = sum(gradients)
    return len(gradients) * sum(float(g @ g) for g in gradients) / float(total @ total)


def normalised_infimum(X: np.ndarray) -> float:
    """n/σ²_max of the non-zero rows, each divided by its norm, by a singular value decomposition."""
    norms = np.linalg.norm(X, axis=1)
    return len(X) / np.linalg.norm(X[norms > 0] / norms[norms > 0][:, None], 2) ** 2


def conflict_degree(X: np.ndarray) -> int:
    """The largest number of other rows that share a column, from the n × n graph."""
    pattern = (X != 0).astype(int)
    graph = pattern @ pattern.T > 0
    np.fill_diagonal(graph, False)
    return int(graph.sum(axis=1).max())


def random_matrix(generator: np.random.Generator) -> np.ndarray:
    """A small matrix of any kind the bounds must survive: signed or not, sparse, zero rows, wide scales, repeats."""
    n, d = generator.integers(1, 13, size=2)
    X = generator.standard_normal((n, d)) * (generator.random((n, d)) < generator.choice([0.2, 0.5, 1.0]))
    if generator.random() < 0.5:
        X = np.abs(X)
    if generator.random() < 0.3:
        X *= np.exp(2 * generator.standard_normal((n, 1)))
    if generator.random() < 0.2:
        X[generator.integers(n)] = X[0]
    if not X.any():
        X[0, 0] = 1.0
    return X


def data_file(name: str) -> Path:
    """A file of the development data, or the test is skipped."""
    folder = os.environ.get("VARIEGRAD_DATA")
    if not folder or not (path := Path(folder) / "sparse" / name).is_file():
        pytest.skip(f"VARIEGRAD_DATA names no folder with sparse/{name}")
    return path
