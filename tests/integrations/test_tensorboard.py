"""TensorBoard: each reading once, at its step, without numbers that a curve cannot show."""

import math

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from integrations.training import model
from monitor.readings import ODD, a_reading
from variegrad.integrations.scalars import Unread, scalars
from variegrad.integrations.tensorboard import ReadingWriter
from variegrad.monitor import Monitor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NAMES = ("step", "batch_size_bound", "low", "high", "lower_confidence_bound", "efficiency", "cannot_tell")


def test_each_reading_is_written_once_at_its_step(tmp_path):
    monitor = Monitor(model())
    with SummaryWriter(str(tmp_path)) as writer:
        readings = ReadingWriter(writer, monitor)
        readings.write()
        for step in (16, 32):
            monitor.history.append(a_reading(step))
            readings.write()
            readings.write()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(f"variegrad/{name}" for name in NAMES)
    for name, value in scalars(a_reading(), "").items():
        found = events.Scalars(f"variegrad/{name}")
        assert [event.step for event in found] == [16, 32]
        expected = [16, 32] if name == "step" else [value] * 2
        assert [event.value for event in found] == pytest.approx(expected)


@pytest.mark.parametrize("case", ODD)
def test_no_number_says_more_than_is_known(case):
    reading = a_reading(**ODD[case])
    found = scalars(reading, "")
    assert all(map(math.isfinite, found.values()))
    assert found["cannot_tell"] == reading.cannot_tell
    assert ("high" in found) == (not reading.unbounded_above)
    assert ("lower_confidence_bound" in found) == (not reading.cannot_tell)
    assert ("batch_size_bound" in found) == (not reading.cannot_tell and math.isfinite(reading.batch_size_bound))


def test_what_was_read_before_a_checkpoint_is_not_handed_on_again():
    monitor = Monitor(model())
    monitor.history.append(a_reading(16))
    state = monitor.state_dict()
    resumed = Monitor(model())
    unread = Unread(resumed)
    unread.load_state_dict(state)
    assert unread.take() is None
    resumed.history.append(a_reading(32))
    assert unread.take().step == 32
