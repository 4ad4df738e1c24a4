"""Damaged and forged payloads against the decoder: it may refuse, and nothing else may happen.

    python tests/distributed/fuzz_wire.py                    # 1,000,000 inputs, seed 0
    python tests/distributed/fuzz_wire.py --inputs 5000000 --seed 7

Most inputs carry a right checksum and a right length again after they were damaged, since a forger would see to that;
otherwise the checksum would keep all of them from the code behind it.
"""

import argparse
import resource
import sys
import time
import zlib
from collections import Counter

import numpy as np
import torch

from variegrad.distributed import base3, gaps, wire
from variegrad.distributed.refused import Refused

EXTREME = np.array([0, 1, 2, 3, 0x7F, 0x80, 0xF2, 0xF3, 0xFF], np.uint8)


def fuzz(inputs, seed=0, progress=None):
    """Feed the decoder; returns how each ended, the slowest in seconds and the growth of memory in bytes."""
    random = np.random.default_rng(seed)
    ended, slowest, before = Counter(), 0.0, _peak()
    for number in range(inputs):
        if number % 50 == 0:  # a vector serves for fifty forgeries
            awaited, mask, payload = _payload(random)
        forged = _forge(random, payload)
        start = time.perf_counter()
        try:
            values = wire.decode(forged, mask=mask, **awaited)
        except Refused as refused:
            ended[_reason(refused)] += 1
        else:
            _check_accepted(forged, values, awaited, mask)
            ended["accepted"] += 1
        slowest = max(slowest, time.perf_counter() - start)
        if progress and (number + 1) % progress == 0:
            print(f"{number + 1:,} inputs, {ended['accepted']:,} accepted as whole, slowest {1e3 * slowest:.1f} ms")
    return ended, slowest, _peak() - before


def _payload(random):
    elements = int(random.choice([0, 1, 4, 5, 6, 31, 200, 70_000], p=[0.05, 0.1, 0.1, 0.1, 0.1, 0.25, 0.25, 0.05]))
    dtype = wire.DTYPES[random.integers(len(wire.DTYPES))]
    awaited = {"elements": elements, "dtype": dtype, "step": int(random.integers(3)), "sender": int(random.integers(3))}
    signs = random.choice([-1.0, 0.0, 1.0], size=elements, p=[d := random.choice([0.0, 0.01, 0.1, 0.4]), 1 - 2 * d, d])
    values = torch.from_numpy(signs * 2.5)
    mask = None
    if random.random() < 0.3:
        mask = torch.from_numpy(random.random(elements) < 0.5)
        values = torch.from_numpy(random.normal(size=elements)) * mask
    elif random.random() < 0.2:
        values = torch.from_numpy(random.normal(size=elements))
    values = values.to(dtype)
    if elements and random.random() < 0.05:
        values[0] = torch.nan
    payload = wire.encode(
        values, step=awaited["step"], sender=awaited["sender"], mask=mask if random.random() < 0.8 else None
    )
    return awaited, mask, payload


def _forge(random, payload):
    forged = bytearray(payload)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(forged))) if forged else 0
        match int(random.integers(7)):
            case 0 if forged:
                forged[place] ^= 1 << int(random.integers(8))
            case 1 if forged:
                forged[place] = int(random.choice(EXTREME))
            case 2:
                del forged[place:]
            case 3:
                forged += random.bytes(int(random.integers(1, 9)))
            case 4:
                forged[place : place + 4] = random.bytes(4)
            case 5 if len(forged) > wire.HEADER.size:  # in the body
                forged[int(random.integers(wire.HEADER.size, len(forged)))] = int(random.integers(256))
            case 6 if len(forged) > 5:  # another kind over the same body
                forged[5] = int(random.integers(6))
    if random.random() < 0.02:
        return random.bytes(int(random.integers(100)))
    return _sealed(forged) if random.random() < 0.85 else bytes(forged)


def _sealed(forged):
    """With the length and checksum that belong to it."""
    if len(forged) >= wire.HEADER.size:
        forged[28:36] = (len(forged) - wire.HEADER.size).to_bytes(8, "little")
        end = wire.HEADER.size - wire.CHECKSUM.size
        checksum = zlib.crc32(forged[wire.HEADER.size :], zlib.crc32(forged[:end]))
        forged[end : wire.HEADER.size] = wire.CHECKSUM.pack(checksum)
    return bytes(forged)


def _check_accepted(payload, values, awaited, mask):
    """What is accepted is a finite vector of the awaited form, and no other payload of its kind says the same."""
    kind, body = wire.Kind(payload[5]), payload[wire.HEADER.size :]
    if kind is wire.Kind.NOT_FINITE:
        assert values is None
        return
    assert values.shape == (awaited["elements"],)
    assert values.dtype == awaited["dtype"]
    assert values.isfinite().all()
    size = values.dtype.itemsize
    positions = values.nonzero().flatten().numpy()
    negative = values.signbit().numpy()
    if kind is wire.Kind.GAPS:
        assert body[size:] == gaps.pack(positions, negative[positions])
    elif kind is wire.Kind.BASE3:
        assert body[size:] == base3.pack(((values != 0).numpy() * (1 + negative)).astype(np.uint8))
    elif kind is wire.Kind.KEPT:
        assert not values[~mask].any()
        assert body == values[mask].view(torch.uint8).numpy().tobytes()
    else:
        assert body == values.view(torch.uint8).numpy().tobytes()


def _reason(refused):
    return " ".join(word for word in str(refused).split() if word.isalpha())[:40]


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    start = time.perf_counter()
    ended, slowest, grown = fuzz(chosen.inputs, chosen.seed, progress=100_000)
    print(
        f"\n{chosen.inputs:,} inputs, seed {chosen.seed}, {time.perf_counter() - start:.0f} s: refused or whole, each"
    )
    print(f"slowest {1e3 * slowest:.1f} ms, memory grew by {grown / 2**20:.0f} MiB\n")
    for reason, count in ended.most_common():
        print(f"{count:>10,}  {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
