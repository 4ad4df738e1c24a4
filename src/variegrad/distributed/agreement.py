"""Agreement: what must be equal on every worker is compared before anything is exchanged, and refused by name.

Two workers that train different models, or with different settings, add up numbers that do not belong together; nothing
in the sums would show it. And what only one of them does, such as writing files, fails on all or on none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from variegrad.distributed.workers import World

NAMED = 3  # how many differing fields a message names


def agree(world: World, facts: Mapping[str, str]) -> None:
    """Refuse, on all workers, facts that are not equal on all of them.

    Args:
        world: the workers; each calls this.
        facts: field → value, as text.

    Raises:
        ValueError: if a field differs or is missing somewhere: the field, and what each worker has.
    """
    if world.size == 1:
        return
    said: list[dict[str, str]] = [json.loads(text) for text in world.gather(json.dumps(dict(facts)))]
    fields = list(dict.fromkeys(field for each in said for field in each))
    differing = [field for field in fields if len({each.get(field) for each in said}) > 1]
    if not differing:
        return
    lines = "; ".join(f"{field}: {_by_worker([each.get(field) for each in said])}" for field in differing[:NAMED])
    more = f"; and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    raise ValueError(
        f"the workers differ in {lines}{more}. All workers must run the same script with the same settings, "
        "starting weights and data."
    )


@contextmanager
def failing_together(world: World) -> Iterator[None]:
    """A block that every worker runs: where it fails on one, all of them end, with that one's reason.

    Args:
        world: the workers; each enters and leaves at the same place.

    Yields:
        Nothing.

    Raises:
        RuntimeError: on the others: which worker failed, and with what. That worker raises its own error.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must hear of it before this worker ends
        failure = error
    if world.size > 1:
        texts = world.gather("" if failure is None else f"{type(failure).__name__}: {failure}")
        failed = next((rank for rank, text in enumerate(texts) if text), None)
        if failed is not None and failure is None:
            raise RuntimeError(f"worker {failed} of {world.size} ended the run: {texts[failed]}")
    if failure is not None:
        raise failure


def _by_worker(values: list[str | None]) -> str:
    ranks: dict[str | None, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(
        f"{'nothing' if value is None else value} on worker {', '.join(map(str, at))}" for value, at in ranks.items()
    )
