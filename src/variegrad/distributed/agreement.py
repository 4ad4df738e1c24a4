"""Agreement: what must be equal on every worker is compared before anything is exchanged, and refused by name.

Two workers that train different models, or with different settings, add up numbers that do not belong together; nothing
in the sums would show it. And what only one of them does, such as writing files, fails on all or on none. While all is
well, two numbers travel, whatever the number of workers; texts travel only after a difference or a failure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from variegrad.distributed.world import World
from variegrad.exact import number

NAMED = 3  # how many differing fields a message names


def agree(world: World, facts: Mapping[str, str]) -> None:
    """Refuse, on all workers, facts that are not equal on all of them.

    Args:
        world: the workers; each calls this.
        facts: field → value, as text.

    Raises:
        ValueError: if a field differs or is missing somewhere: the field, and what two workers have.
    """
    if (differing := difference(world, facts)) is not None:
        raise ValueError(
            f"the workers differ in {differing}. All workers must run the same script with the same settings, "
            "starting weights and data."
        )


def difference(world: World, facts: Mapping[str, str]) -> str | None:
    """In what the workers' facts differ.

    Args:
        world: the workers; each calls this.
        facts: field → value, as text.

    Returns:
        The first fields that differ, with what worker 0 and the first worker that differs from it have, and how many
        workers differ from worker 0: the same text on all of them. None if all facts are equal.
    """
    if world.size == 1:
        return None
    mine = json.dumps(dict(facts))
    ((low, high),) = world.extremes([number(mine)])
    if low == high:
        return None
    first: dict[str, str] = json.loads(world.tell(mine))
    said = world.first_words(mine if first != dict(facts) else None)
    count = int(world.add_up([float(first != dict(facts))])[0])
    if said is None:
        return "the order of their parameters or settings"
    other, others = said[0], json.loads(said[1])
    fields = [name for name in dict.fromkeys([*first, *others]) if first.get(name) != others.get(name)]
    lines = [
        f"{name}: {first.get(name, 'nothing')} on worker 0, {others.get(name, 'nothing')} on worker {other}"
        for name in fields[:NAMED]
    ]
    more = f"; and {len(fields) - NAMED} more" if len(fields) > NAMED else ""
    return f"{'; '.join(lines)}{more} ({count} of {world.size} workers differ from worker 0)"


@contextmanager
def failing_together(world: World) -> Iterator[None]:
    """A block that every worker runs: if it fails on one, all of them end, with that one's reason.

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
    said = world.first_words(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if said is not None:
        raise RuntimeError(f"worker {said[0]} of {world.size} ended the run: {said[1]}")
