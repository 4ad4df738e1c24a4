"""A sequence of any length in bounded memory: the newest items all, older ones evenly thinned, the first always."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")


class Thinned(Sequence[Item], Generic[Item]):
    """Half of the room is for the newest items; of the older ones every 2^k-th stays, with k growing as needed.

    What is kept is a function of how many were appended, so that a sequence read back from a file is thinned as it was.

    Args:
        most: how many items to keep, at least 4.

    Raises:
        ValueError: if there is room for less than 4.
    """

    def __init__(self, most: int) -> None:
        if most < 4:
            raise ValueError(f"max_readings must be at least 4; got {most}. The default is a few MB.")
        self._room_for_old = most - most // 2
        self._old: list[Item] = []
        self._stride = 1
        self._aged = 0
        self._recent: deque[Item] = deque()
        self._room_for_recent = most // 2

    @property
    def appended(self) -> int:
        """How many items there were, kept or not."""
        return self._aged + len(self._recent)

    def append(self, item: Item) -> Item | None:
        """Add an item at the end."""
        self._recent.append(item)
        if len(self._recent) <= self._room_for_recent:
            return None
        aged = self._recent.popleft()
        stays = self._aged % self._stride == 0
        if stays:
            self._old.append(aged)
        self._aged += 1
        if len(self._old) > self._room_for_old:
            del self._old[1::2]
            self._stride *= 2
        return aged if stays else None

    def __len__(self) -> int:
        return len(self._old) + len(self._recent)

    def __iter__(self) -> Iterator[Item]:
        yield from self._old
        yield from self._recent

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, int) and -len(self._recent) <= index < 0:
            return self._recent[index]
        return [*self._old, *self._recent][index]
