"""Whatever one of two workers lacks: the training is the one without a monitor, and a reading is right or missing."""

import pytest

from monitor.ranks import run

# Scenario → the steps of eight that have no reading, and the steps at which one worker had no examples.
SCENARIOS = {
    "plain": ([], []),
    "join": ([], []),
    "join accumulate": ([], []),
    "rank 0 only": (range(1, 9), []),
    "one step not watched": ([4], []),
    "one micro-batch not watched": ([4], []),
    "masked": ([], [2, 4, 6, 8]),
    "empty": ([], [2, 4, 6, 8]),
    "accumulate": ([], []),
    "no no_sync": ([], []),
    "sparse": ([], []),
    "error": ([5], []),
    "an extra pass": ([], []),
    "set to zero": ([], []),
    "other settings on rank 1": (range(1, 9), []),
    "no monitor on rank 1": (range(1, 9), []),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return run("faulty_program.py", tmp_path_factory.mktemp("ranks"), 2, *SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_training_is_the_one_without_a_monitor_and_readings_are_right_or_missing(seen, scenario):
    lost, alone = SCENARIOS[scenario]
    for rank in seen:
        found = rank[scenario]
        assert found["same"]
        if "window" not in found:
            continue
        steps = [step for k, step in enumerate(found["expected"]) if k + 1 not in lost]
        assert list(found["window"]) == steps
        for step, (product, norm) in found["window"].items():
            expected = found["expected"][step]
            assert norm == pytest.approx(expected[1], rel=1e-4)
            assert product == pytest.approx(expected[0], abs=1e-4 * expected[1])
        late = [9, 10] if scenario.startswith("join") else []
        assert [step for step, count in found["missing"].items() if count] == [s for s in steps if s in [*alone, *late]]
        assert len(found["warned"]) <= 1
        assert all(warning.count("no reading at step") == 1 for warning in found["warned"])


def test_history_says_why_there_is_no_reading(seen):
    first = {name: [text for text, *_ in found.get("reasons", [])] for name, found in seen[0].items()}
    assert first["rank 0 only"] == ["1 of 2 workers did not call watch at this step"]
    assert first["one step not watched"] == ["1 of 2 workers did not call watch at this step"]
    assert "not all workers have attached" in first["no monitor on rank 1"][0]
    assert "different settings: every=1" in first["other settings on rank 1"][0]
    assert "ZeroDivisionError" in seen[1]["error"]["reasons"][0][0]


def test_the_reading_of_both_workers_is_the_same(seen):
    for scenario, found in seen[0].items():
        other = seen[1][scenario].get("window", {})
        assert {s: v for s, v in found["window"].items() if s in other} == {
            s: v for s, v in other.items() if s in found["window"]
        }
