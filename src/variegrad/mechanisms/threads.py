"""Work on arrays, cut over torch's threads: numpy and compiled code let go of the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

# A few milliseconds' work in all is done sooner than threads are woken.
WORTH_THREADS = 1 << 23


def threads_for(work: int, parts: int) -> list[tuple[int, int]]:
    """How many parts of some work each thread takes.

    Args:
        work: coordinates in all.
        parts: what the work can be cut into: no two threads write to the same part.

    Returns:
        (first, last) of each thread.
    """
    threads = min(torch.get_num_threads(), parts) if work >= WORTH_THREADS else 1
    return list(pairwise(parts * k // threads for k in range(threads + 1))) if parts else []


def run(work: Sequence[Callable[[], object]]) -> None:
    """Do all of it, each in a thread of its own.

    Args:
        work: what to call.
    """
    if len(work) == 1:
        work[0]()
        return
    with ThreadPoolExecutor(max(1, len(work))) as pool:
        for done in [pool.submit(each) for each in work]:
            done.result()
