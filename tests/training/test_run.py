"""`checkpoint.Run`: a resumable run for a user's own program; saves beside training; the state of its moment."""

import sys
import threading
import time

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import variegrad as vg
from distributed.ranks import play
from variegrad.distributed.world import World
from variegrad.training import Ball, Box, Cadence, Phases, Position
from variegrad.training.checkpoint import FolderInUse, NotSaved, Run, load, steps


def losses(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]) ** 2


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def data():
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(24, 3, generator=generator), torch.randn(24, generator=generator))


def config(**changes):
    return vg.TrainConfig(**{"batch_size": 6, "step_size": 0.01, "passes": 3, "seed": 4, **changes})


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def made(folder, settings=None, stop=None, world=None, **options):
    """A part of a run; it is left after update `stop`, by an error if that is negative."""
    model, settings = net(), settings or config()
    with Run(folder, model, settings, world, every=Cadence(updates=4), **options) as run:
        for update in run.of(vg.train(model, losses, data(), settings, world, start=run.start)):
            run.state.setdefault("seen", []).append(update.updates)
            if stop is not None and update.updates == abs(stop):
                if stop < 0:
                    raise KeyError("the user's own")
                break
    return flat(model), run


@pytest.fixture
def whole(tmp_path):
    return made(tmp_path / "whole")[0]


@pytest.mark.parametrize("stops", [(5,), (4,), (-6,), (1, -2, 3), (-7, 9, 11)], ids=str)
def test_however_it_is_left_and_resumed_it_is_the_run_that_was_not(tmp_path, whole, stops):
    for stop in stops:
        if stop < 0:
            with pytest.raises(KeyError, match="the user's own"):
                made(tmp_path / "parts", stop=stop)
        else:
            made(tmp_path / "parts", stop=stop)
        assert load(tmp_path / "parts" / "checkpoints").step == abs(stop)
    weights, run = made(tmp_path / "parts")
    assert torch.equal(weights, whole)
    assert run.state["seen"] == list(range(1, 13))


def test_a_run_that_is_complete_writes_nothing(tmp_path, whole):
    before = {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file() and p.name != "LOCK"
    }
    weights, run = made(tmp_path / "whole")
    assert torch.equal(weights, whole)
    assert (run.start, run.last) == (Position(examples=72, updates=12), None)
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file() and p.name != "LOCK"}
    assert after == before


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_resumed(tmp_path, whole):
    with pytest.raises(ValueError, match=r"holds a run \(checkpoints up to update 12\): continue it with --resume"):
        made(tmp_path / "whole", resume=False)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with Run(tmp_path, net(), config()), pytest.raises(FolderInUse), Run(tmp_path, net(), config()):
        pass


def test_phases_are_resumed_across_a_change_of_the_batch(tmp_path):
    phases = Phases({0: config(), 30: config(batch_size=8, step_size=0.02)})
    expected, run = made(tmp_path / "whole", phases)
    assert [(s["examples"], s["settings"]["batch_size"]) for s in run.starts] == [(0, 6), (30, 8)]
    for stop in (5, 6, 8):  # at the change, and after it
        made(tmp_path / "parts", phases, stop)
    assert torch.equal(made(tmp_path / "parts", phases)[0], expected)
    with pytest.raises(ValueError, match=r"step_size was 0\.02 and is 0\.03 now"):
        made(tmp_path / "parts", Phases({0: config(), 30: config(batch_size=8, step_size=0.03)}))


CENTER, TURNED = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 1.0])}
CHANGED = {
    "radius": ({"projection": Ball(1.0000001)}, {"projection": Ball(1.0000002)}, "projection was"),
    "box": ({"projection": Box(-1.0000001, 1)}, {"projection": Box(-1, 1)}, "projection was"),
    "center": ({"projection": Ball(9.0, CENTER)}, {"projection": Ball(9.0, TURNED)}, "projection was"),
    "step size, last digit": ({"step_size": 0.1}, {"step_size": 0.10000000000000002}, "step_size was 0.1 and is"),
    "probability": ({"mechanism": vg.DropConnect(1 / 3)}, {"mechanism": vg.DropConnect(0.333333)}, "mechanism was"),
    "seed": ({"seed": 1}, {"seed": 2}, "seed was 1 and is 2 now"),
    "passes": ({"passes": 1}, {"passes": 2}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_settings_are_compared_to_the_last_digit(tmp_path, name):
    first, second, message = CHANGED[name]

    def begun(changes):
        settings = config(**changes)
        with Run(tmp_path, net(), settings) as run:
            if run.start.updates == 0:
                run.last = next(vg.train(net(), losses, data(), config()))

    begun(first)
    if message is None:
        begun(second)
    else:
        with pytest.raises(ValueError, match=message):
            begun(second)


class Half:
    """A user's own set, without a `__repr__`."""

    def __init__(self, where=0.5):
        self.where = where

    def project(self, weights):
        for w in weights.values():
            w.clamp_(max=self.where)


def test_an_object_without_a_repr_is_its_class_and_attributes(tmp_path, whole):
    one, same, other = (config(projection=Half(where)) for where in (0.5, 0.5, 0.25))
    assert one.settings()["projection"] == same.settings()["projection"] == "Half(where=0.5)"
    assert other.settings()["projection"] == "Half(where=0.25)"


# --- saves beside training ---


@pytest.fixture
def slow_disk(monkeypatch):
    saving = sys.modules["variegrad.training.checkpoint.save"]
    write, gate = saving.tensors.write, threading.Event()

    def slow(file, arrays):
        gate.wait(20)
        return write(file, arrays)

    monkeypatch.setattr(saving.tensors, "write", slow)
    return gate


def test_training_goes_on_while_a_checkpoint_is_written_and_what_is_kept_is_of_its_moment(tmp_path, slow_disk):
    model = net()
    with Run(tmp_path, model, config(), every=Cadence(updates=4)) as run:
        for update in run.of(vg.train(model, losses, data(), config())):
            if update.updates == 4:
                at_four = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            if update.updates == 7:
                assert steps(tmp_path / "checkpoints") == []  # three updates beyond, and the disk still writes
                slow_disk.set()
    found = load(tmp_path / "checkpoints", step=4)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in at_four.items())
    assert steps(tmp_path / "checkpoints") == [12, 8, 4]


def test_a_failed_save_is_raised_at_the_next_one_and_the_last_is_kept_when_there_is_room_again(tmp_path, monkeypatch):
    saving = sys.modules["variegrad.training.checkpoint.save"]
    durable = saving.durable

    def refusing(path):
        if "step-000000004" in str(path):
            raise OSError(28, "No space left on device")
        return durable(path)

    monkeypatch.setattr(saving, "durable", refusing)
    with pytest.raises(NotSaved, match="the checkpoint of step 4 was not saved"):
        made(tmp_path)
    assert load(tmp_path / "checkpoints").step == 8


def test_a_save_copies_each_number_once(tmp_path, monkeypatch):
    """What is copied is counted: the snapshot, as large as the distinct tensors, and nothing while writing."""
    from variegrad.training.checkpoint import tensors

    table = torch.randn(50, 40)
    arrays = {"embedding": table, "head": table, "turned": torch.randn(30, 20).t(), "half": table[:25]}
    copy = tensors.snapshot(arrays)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in copy.values()}
    assert sum(held.values()) == 4 * (2000 + 600 + 1000)
    made_anew = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(
        torch.Tensor, "contiguous",
        lambda t, *a: (made_anew.append(t.shape) if not t.is_contiguous() else None, contiguous(t, *a))[1],
    )  # fmt: skip
    with (tmp_path / "file").open("wb") as file:
        tensors.write(file, copy)
    assert made_anew == []


# --- several workers ---


def _resumed(rank, folder, stop, own_folders):
    world = World(rank=rank, size=2)
    weights, run = made(folder / str(rank) if own_folders else folder, stop=stop, world=world)
    return weights.numpy(), run.start.updates


@pytest.mark.parametrize("own_folders", [False, True], ids=["shared folder", "each its own"])
def test_workers_get_the_weights_from_worker_0_and_need_not_see_its_folder(tmp_path, whole, own_folders):
    play(2, _resumed, tmp_path / "parts", 5, own_folders)
    for weights, began in play(2, _resumed, tmp_path / "parts", None, own_folders):
        assert began == 5
        torch.testing.assert_close(torch.from_numpy(weights), whole, rtol=1e-4, atol=1e-6)  # other order of summation
    if own_folders:
        assert not (tmp_path / "parts" / "1").exists()


def _flipped(rank, folder):
    world, model = World(rank=rank, size=2), net()
    try:
        with Run(folder, model, config(), world, every=Cadence(updates=4)) as run:
            for update in run.of(vg.train(model, losses, data(), config(), world)):
                if update.updates == 5 and rank == 1:
                    with torch.no_grad():
                        model[2].bias.add_(0.5)
    except RuntimeError as error:
        return str(error)
    return "nothing"


def test_a_flipped_bit_on_one_worker_ends_the_run_before_a_checkpoint_holds_it(tmp_path):
    said = play(2, _flipped, tmp_path)
    for text in said:
        assert "before the checkpoint of update 8, the workers' models are no longer the same" in text
        assert "parameter 2.bias: numbers" in text
        assert "on worker 1 (1 of 2 workers differ from worker 0)" in text
    assert load(tmp_path / "checkpoints", step=4).step == 4


def _slow_save(rank, folder):
    if rank == 0:
        saving = sys.modules["variegrad.training.checkpoint.save"]
        write = saving.tensors.write
        saving.tensors.write = lambda file, arrays: (time.sleep(0.5), write(file, arrays))[1]
    return made(folder, world=World(rank=rank, size=2))[1].seconds


def test_the_others_wait_for_a_slow_disk_only_at_the_next_checkpoint(tmp_path):
    play(2, _slow_save, tmp_path)
    assert steps(tmp_path / "checkpoints") == [12, 8, 4]
