"""A data set that is sparse in memory: compressed rows that are made dense when they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.utils.data import Dataset

from variegrad.rows import Rows
from variegrad.shapes import Float, Int

Index = int | slice | Sequence[int] | Int[Tensor, "*b"]


class SparseRows(Dataset[tuple[Float[Tensor, "*b d"], Int[Tensor, "*b"]]]):
    """Rows of a sparse matrix with their labels; `rows[i]` is a dense float32 row, `rows[indices]` a dense batch.

    Attributes:
        features: the n × d matrix.
        labels: n labels.
    """

    def __init__(self, features: csr_matrix, labels: Int[Tensor, " n"]) -> None:
        """The rows of a matrix.

        Args:
            features: n × d; kept as compressed rows in float32.
            labels: one for each row.

        Raises:
            ValueError: if the numbers of labels and rows differ.
        """
        if features.shape[0] != len(labels):
            raise ValueError(f"SparseRows: one label for each row; got {features.shape[0]} rows, {len(labels)} labels.")
        self.features = csr_matrix(features, dtype=np.float32)
        self.labels = labels

    def __len__(self) -> int:
        """n, the number of rows."""
        return len(self.labels)

    def __getitem__(self, index: Index) -> tuple[Float[Tensor, "*b d"], Int[Tensor, "*b"]]:
        """One dense row and its label, or, as a `TensorDataset` would, a dense batch for several indices.

        Args:
            index: of one example, or of several.

        Returns:
            Features of shape (d,) or (b, d), and labels.
        """
        labels = self.labels[index]
        dense = torch.from_numpy(self.features[np.asarray(index) if isinstance(index, Tensor) else index].toarray())
        return dense.reshape(*labels.shape, self.features.shape[1]), labels

    def __getitems__(self, indices: list[int]) -> Rows:
        """The examples of one batch, made dense together: what a `DataLoader` asks for.

        Args:
            indices: of the examples.

        Returns:
            One (features, label) pair for each, and the batch that they are.
        """
        return Rows(self[torch.tensor(indices)])

    def take(self, positions: Int[Tensor, " m"]) -> SparseRows:
        """The rows at these positions, still sparse.

        Args:
            positions: of each row wanted, repeats included.

        Returns:
            A new data set.
        """
        return SparseRows(self.features[np.asarray(positions)], self.labels[positions])
