"""Examples that a data set has read together, as one batch, beside the list that a `DataLoader` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Rows(list[Any]):
    """The examples of one batch, with the batch of which they are the rows.

    Attributes:
        batch: its tensors.
    """

    def __init__(self, batch: Sequence[Tensor]) -> None:
        """The rows of a batch of tensors.

        Args:
            batch: tensors that share their first dimension.
        """
        super().__init__(zip(*batch, strict=True))
        self.batch = list(batch)
