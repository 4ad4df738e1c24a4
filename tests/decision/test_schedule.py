"""A growing batch: never above what is allowed, and read by each training code as it is meant."""

import itertools
import math
import re

import pytest

from variegrad.decision import BatchSchedule, Stage

RUNS = {
    "grows": ([0, 1000, 4000, 20_000], [7.0, 31.0, 40.0, 300.0]),
    "stays": ([0, 500], [63.5, 64.0]),
    "falls back": ([0, 100, 200, 300], [3.0, 500.0, 17.0, 1000.0]),
    "starts at one": ([0, 10, 30], [1.0, 1.0, 5.0]),
    "infinite": ([0, 10], [math.inf, math.inf]),
}


def of(name, largest=128.0):
    examples, bounds = RUNS[name]
    return BatchSchedule.along(examples, bounds, delta=1.0, largest=largest)


def batch_at(schedule, seen):
    return [stage.batch_size for stage in schedule.stages if stage.examples <= seen][-1]


@pytest.mark.parametrize("name", RUNS)
def test_no_point_of_the_run_sees_more_than_it_allows(name):
    schedule = of(name)
    for seen, bound in zip(*RUNS[name], strict=True):
        assert batch_at(schedule, seen) <= min(128, 1 + bound)
    sizes = [stage.batch_size for stage in schedule.stages]
    assert sizes == sorted(set(sizes))
    assert all(math.log2(size).is_integer() for size in sizes)
    assert schedule.stages[0].examples == 0


def test_a_schedule_by_hand():
    assert of("grows").stages == (Stage(examples=0, batch_size=8), Stage(examples=1000, batch_size=32),
                                  Stage(examples=20_000, batch_size=128))  # fmt: skip
    assert of("falls back").stages == (Stage(examples=0, batch_size=4), Stage(examples=100, batch_size=16),
                                       Stage(examples=300, batch_size=128))  # fmt: skip
    assert str(of("stays")) == "64 from 0 examples on"


@pytest.mark.parametrize("name", RUNS)
def test_megatron_s_linear_ramp_stays_below(name):
    schedule, text = of(name), of(name).megatron_core()
    last = int(re.search(r"--global-batch-size (\d+)", text)[1])
    ramp = re.search(r"--rampup-batch-size (\d+) (\d+) (\d+)", text)
    assert last == schedule.stages[-1].batch_size
    assert (ramp is None) == (len(schedule.stages) == 1)
    if ramp is None:
        return
    start, increment, samples = map(int, ramp.groups())
    assert (last - start) % increment == 0
    each = samples / ((last - start) // increment)  # what Megatron-Core does with the three numbers
    for seen in range(0, samples + 1, 7):
        assert min(last, start + increment * int(seen / each)) <= batch_at(schedule, seen), seen


@pytest.mark.parametrize("name", RUNS)
def test_olmo_core_accepts_it(name):
    schedule, length = of(name), 2048
    text = schedule.olmo_core(length)
    sizes = [int(size) for size in re.search(r"batch_sizes=\[(.*?)\]", text)[1].split(", ")]
    starts = [int(start) for start in re.findall(r"Duration.tokens\((\d+)\)", text)]
    assert len(sizes) == len(starts)
    assert starts[0] == 0
    assert all(a < b for a, b in itertools.pairwise(starts))
    assert all(b % a == 0 and b > a for a, b in itertools.pairwise(sizes))
    assert [(s // length, b // length) for s, b in zip(starts, sizes, strict=True)] == [
        (stage.examples, stage.batch_size) for stage in schedule.stages
    ]
    with pytest.raises(ValueError, match="sequence_length"):
        schedule.olmo_core(0)


@pytest.mark.parametrize("name", RUNS)
def test_levanter_s_updates_see_as_many_examples(name):
    schedule = of(name)
    rows = [
        (int(start), int(value))
        for start, value in re.findall(r"start: (\d+)\n      value: (\d+)", schedule.levanter())
    ]
    assert rows[0][0] == 0
    seen = 0
    for k, (start, value) in enumerate(rows):
        assert value == schedule.stages[k].batch_size
        assert schedule.stages[k].examples <= seen < schedule.stages[k].examples + max(1, rows[k - 1][1])
        if k + 1 < len(rows):
            seen += (rows[k + 1][0] - start) * value


def test_the_first_measurement_stands_for_all_before_it():
    # At the start all gradients may be zero, so that B_D is defined only later.
    found = BatchSchedule.along([50, 100], [7.0, 31.0], delta=1.0, largest=128)
    assert found.stages == (Stage(examples=0, batch_size=8), Stage(examples=100, batch_size=32))
    with pytest.raises(ValueError, match="at least one measurement"):
        BatchSchedule.along([], [], delta=1.0, largest=8)
