"""The wire: what is sent is what arrives, bit for bit, in few bytes; anything else is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed import fuzz_wire
from variegrad.distributed import base3, gaps, wire
from variegrad.distributed.refused import Refused

HERE = {"step": 7, "sender": 1}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def bits(values):
    return values.view(wire.BITS[values.dtype.itemsize])


def there_and_back(values, mask=None):
    payload = wire.encode(values, **HERE, mask=mask)
    return payload, wire.decode(payload, elements=len(values), dtype=values.dtype, **HERE, mask=mask)


def kind(payload):
    return wire.Kind(payload[5])


def quantised(dimension, seed=0):
    """Q(v) of a Gaussian v."""
    random = np.random.default_rng(seed)
    v = random.normal(size=dimension)
    norm = np.linalg.norm(v)
    return torch.from_numpy(np.where(random.random(dimension) < np.abs(v) / norm, norm * np.sign(v), 0.0))


@pytest.mark.parametrize("dtype", DTYPES)
@given(signs=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=60), norm=st.floats(2**-14, 1000.0))
@settings(max_examples=60, deadline=None)
def test_a_vector_of_one_magnitude_arrives_bit_for_bit(dtype, signs, norm):
    values = torch.tensor([s * norm if s else 0.0 for s in signs], dtype=dtype)
    payload, arrived = there_and_back(values)
    assert torch.equal(bits(arrived), bits(values))
    assert len(payload) <= wire.size(wire.Kind.DENSE, len(values), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.floats(-1000, 1000, width=16), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_finite_vector_arrives_as_equal_numbers(dtype, numbers):
    values = torch.tensor(numbers, dtype=dtype)
    _, arrived = there_and_back(values)
    assert torch.equal(arrived, values)


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.tuples(st.booleans(), st.floats(-1000, 1000, width=16)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_kept_coordinates_alone_travel_where_both_sides_know_the_mask(dtype, pairs):
    mask = torch.tensor([kept for kept, _ in pairs], dtype=torch.bool)
    values = torch.tensor([value if kept else 0.0 for kept, value in pairs], dtype=dtype)
    payload, arrived = there_and_back(values, mask)
    assert torch.equal(bits(arrived), bits(values))
    assert len(payload) == wire.size(wire.Kind.KEPT, int(mask.sum()), dtype)


@given(st.sets(st.integers(0, 400_000), max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_gaps_of_any_width(positions, random):
    positions = np.array(sorted(positions), np.int64)
    negative = np.array([random.random() < 0.5 for _ in positions], bool)
    body = gaps.pack(positions, negative)
    found, signs = gaps.unpack(memoryview(body), 400_001)
    assert np.array_equal(found, positions)
    assert np.array_equal(signs, negative)
    assert len(body) == gaps.size(positions)


@pytest.mark.parametrize("place", [0, 32_766, 32_767, 32_768, 65_533, 65_534, 65_535, 99_999])
def test_gaps_at_the_edges_of_a_jump(place):
    values = torch.zeros(100_000)
    values[place] = -3.0
    _, arrived = there_and_back(values)
    assert torch.equal(arrived, values)


def test_the_smallest_form_is_chosen():
    assert kind(wire.encode(quantised(10_000), **HERE)) is wire.Kind.GAPS
    half = torch.where(torch.arange(10_000) % 2 == 0, -1.5, 0.0)
    assert kind(wire.encode(half, **HERE)) is wire.Kind.BASE3
    assert kind(wire.encode(torch.arange(9.0), **HERE)) is wire.Kind.DENSE
    # A far pair of non-zeros costs a jump each, which one byte of base 3 may undercut.
    assert kind(wire.encode(torch.tensor([1.0, -1.0, 1.0]), **HERE)) is wire.Kind.BASE3


def test_a_million_gaussian_coordinates_take_less_than_3200_bytes():
    # ‖v‖₁/‖v‖₂ = √(2d/π) ≈ 798 non-zeros on average, standard deviation ≤ 29: two bytes each, and 44.
    payload = wire.encode(quantised(10**6).float(), **HERE)
    assert 44 + 2 * (798 - 6 * 29) < len(payload) < 44 + 2 * (798 + 6 * 29) < 3200


def test_zeros_of_either_sign_arrive_as_zero():
    values = torch.tensor([-0.0, 0.0, 2.0] * 20)
    _, arrived = there_and_back(values)
    assert torch.equal(arrived, values)
    payload, arrived = there_and_back(-torch.zeros(8))
    assert len(payload) == wire.HEADER.size + 4
    assert torch.equal(bits(arrived), torch.zeros(8, dtype=torch.int32))


def test_subnormal_and_largest_numbers_survive():
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        for number in (info.max, info.tiny, info.smallest_normal / 2):
            values = torch.tensor([0.0, number, -number] * 7, dtype=dtype)
            assert torch.equal(bits(there_and_back(values)[1]), bits(values))


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_is_not_finite_is_sent_as_that_fact(bad, dtype):
    values = torch.ones(50, dtype=dtype)
    values[3] = bad
    for mask in (None, torch.ones(50, dtype=torch.bool)):
        payload, arrived = there_and_back(values, mask)
        assert arrived is None
        assert len(payload) == wire.HEADER.size


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"values must be floating point .*; got torch\.int64"):
        wire.encode(torch.arange(3), **HERE)


def test_a_mask_that_hides_something_is_refused():
    with pytest.raises(ValueError, match="mask must keep every coordinate that is not zero"):
        wire.encode(torch.ones(3), **HERE, mask=torch.tensor([True, False, True]))


def test_strided_values_are_sent_in_order():
    values = torch.arange(12.0).view(3, 4).t().reshape(-1)[::2]
    assert torch.equal(there_and_back(values)[1], values)


VALUES = quantised(500).float()
PAYLOAD = wire.encode(VALUES, **HERE)
AWAITED = {"elements": 500, "dtype": torch.float32, **HERE}


@pytest.mark.parametrize(
    ("name", "other"), [("elements", 499), ("dtype", torch.float64), ("step", 6), ("step", 8), ("sender", 0)]
)
def test_a_payload_of_another_step_sender_length_or_type_is_refused(name, other):
    with pytest.raises(Refused, match=f"expected {name} .*; this has {name}"):
        wire.decode(PAYLOAD, **{**AWAITED, name: other})


def test_every_truncation_and_every_addition_is_refused():
    for length in range(len(PAYLOAD)):
        with pytest.raises(Refused, match=r"header takes|header announces"):
            wire.decode(PAYLOAD[:length], **AWAITED)
    with pytest.raises(Refused, match="header announces"):
        wire.decode(PAYLOAD + b"\0", **AWAITED)


def test_every_flipped_bit_is_found():
    for place in range(len(PAYLOAD)):
        for bit in range(8):
            damaged = bytearray(PAYLOAD)
            damaged[place] ^= 1 << bit
            with pytest.raises(Refused):
                wire.decode(bytes(damaged), **AWAITED)


def forged(kind, body, elements=10, dtype=torch.float32):
    """A body under a header that is right."""
    return wire._frame(kind, dtype, HERE["sender"], HERE["step"], elements, body)


ONE, NEGATIVE, INFINITE, NOTHING = (np.float32(x).tobytes() for x in (1.0, -1.0, np.inf, 0.0))
FORGERIES = [
    ("a norm below zero", forged(wire.Kind.GAPS, NEGATIVE + b"\0\0"), "a norm is never below zero"),
    ("minus zero as norm", forged(wire.Kind.GAPS, np.float32(-0.0).tobytes()), "a norm is never below zero"),
    ("an infinite norm", forged(wire.Kind.GAPS, INFINITE + b"\0\0"), "a number is not finite"),
    ("half a norm", forged(wire.Kind.BASE3, ONE[:2]), "a norm takes 4 bytes"),
    ("a norm of nothing", forged(wire.Kind.GAPS, ONE), "the norm is zero exactly if"),
    ("no norm of something", forged(wire.Kind.GAPS, NOTHING + b"\0\0"), "the norm is zero exactly if"),
    ("a position beyond d", forged(wire.Kind.GAPS, ONE + b"\x0a\0"), "a position lies at 10, beyond the 10"),
    ("half a word", forged(wire.Kind.GAPS, ONE + b"\0"), "a word is 2 bytes"),
    ("a jump at the end", forged(wire.Kind.GAPS, ONE + b"\xff\x7f", 40_000), "a jump to nowhere"),
    ("a signed jump", forged(wire.Kind.GAPS, ONE + b"\xff\xff\0\0", 40_000), "a jump carries a sign"),
    ("too many words", forged(wire.Kind.GAPS, ONE + b"\0\0" * 11), "have no room for 11 words"),
    ("byte 243", forged(wire.Kind.BASE3, ONE + b"\xf3\0"), "at most 242; one is 243"),
    ("a sign beyond d", forged(wire.Kind.BASE3, ONE + b"\x01\x03", 6), "signs beyond the 6 coordinates"),
    ("too few signs", forged(wire.Kind.BASE3, ONE + b"\x01"), "10 signs take 2 bytes; there are 1"),
    ("too few numbers", forged(wire.Kind.DENSE, ONE * 9), "10 numbers of torch.float32 take 40 bytes; there are 36"),
    ("NaN among numbers", forged(wire.Kind.DENSE, np.float32([np.nan] * 10).tobytes()), "a number is not finite"),
    ("kept without a mask", forged(wire.Kind.KEPT, ONE), "no mask is known"),
    ("a body of nothing", forged(wire.Kind.NOT_FINITE, b"\0"), "has no body"),
    ("a kind of its own", forged(5, b""), "kind 5, .* is unknown"),
]


@pytest.mark.parametrize(("payload", "message"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES])
def test_a_forgery_with_a_right_checksum_is_refused(payload, message):
    elements = int.from_bytes(payload[20:28], "little")
    with pytest.raises(Refused, match=message):
        wire.decode(payload, elements=elements, dtype=torch.float32, **HERE)


def test_another_version_is_refused_by_name():
    other = bytearray(PAYLOAD)
    other[4] = 2
    with pytest.raises(Refused, match=r"it is of version 2; this is version 1\. Run one version on all ranks"):
        wire.decode(bytes(other), **AWAITED)


def test_a_length_that_cannot_be_costs_no_memory():
    # 2⁶⁰ coordinates are announced; nothing is made before the header fits what is awaited.
    with pytest.raises(Refused, match="expected elements 500"):
        wire.decode(forged(wire.Kind.BASE3, ONE, 2**60), **AWAITED)


def test_digits_of_base_3_are_the_bytes_number():
    assert base3.pack(np.array([1, 2, 0, 0, 1, 2], np.uint8)) == bytes([1 + 2 * 3 + 81, 2])


def test_twenty_thousand_forgeries():
    ended, _, grown = fuzz_wire.fuzz(20_000, seed=1)
    assert ended["accepted"] > 100  # else the forgeries never reach the code behind the header
    assert sum(ended.values()) == 20_000
    assert len(ended) > 15
    assert grown < 2**28


@pytest.mark.parametrize("case", ["sparse", "half of them", "dense", "kept", "nothing"])
@pytest.mark.parametrize("padding", [0, 1, 4096])
def test_a_payload_is_added_as_it_is_decoded_whatever_padding_follows(case, padding):
    generator = torch.Generator().manual_seed(3)
    density = {"sparse": 0.01, "half of them": 0.5, "dense": 1.0, "kept": 0.4, "nothing": 0.0}[case]
    mask = torch.rand(1000, generator=generator) < density
    signs = torch.randint(0, 2, (1000,), generator=generator) * 2.0 - 1
    values = mask * (torch.randn(1000, generator=generator) if case in ("dense", "kept") else 0.3 * signs)
    known = mask if case == "kept" else None
    payload = wire.encode(values, step=1, sender=2, mask=known) + bytes(padding)
    total = torch.randn(1000, generator=generator)
    expected = total + values
    payload = wire.without_padding(payload)
    assert wire.add_to(total, payload, mask=known, elements=1000, dtype=torch.float32, step=1, sender=2)
    assert torch.equal(total, expected)


def test_adding_a_sparse_payload_costs_what_it_holds(monkeypatch):
    """No vector of d numbers is made: counted, not timed."""
    values = torch.zeros(100_000)
    values[[5, 70_000]] = 0.5
    payload, total = wire.encode(values, step=0, sender=0), torch.zeros(100_000)
    made = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **named: (made.append(size), zeros(*size, **named))[1])
    wire.add_to(total, payload, elements=100_000, dtype=torch.float32, step=0, sender=0)
    assert made == []
    assert torch.equal(total, values)


def test_not_finite_adds_nothing_and_says_so():
    total = torch.ones(3)
    payload = wire.encode(torch.tensor([1.0, torch.nan, 0.0]), step=0, sender=0)
    assert not wire.add_to(total, payload, elements=3, dtype=torch.float32, step=0, sender=0)
    assert total.tolist() == [1, 1, 1]
