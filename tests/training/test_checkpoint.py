"""Checkpoints: what was written is what is read, to the bit; everything else is found, named and passed over."""

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from variegrad.training import checkpoint
from variegrad.training.checkpoint import FolderInUse, NoneUsable, NotSaved, Progress, load, save, steps
from variegrad.training.checkpoint import manifest as manifests

FAR = Progress(samples_seen=640, workers=2, batch_size=64, seed=3, settings={"step_size": 0.1}, state={"skipped": 1})


def weights(step=0):
    return {"w": torch.arange(6.0).view(2, 3) + step, "b": torch.tensor([step], dtype=torch.int64)}


def saved(folder, *numbers, keep=3):
    for step in numbers:
        save(folder, step, weights(step), FAR, keep=keep)
    return folder


def bits(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8) if tensor.numel() else tensor


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_loaded_is_what_was_saved(tmp_path):
    path = save(tmp_path / "new" / "run", 50, weights(50), FAR)
    found = load(tmp_path / "new" / "run")
    assert (found.step, found.folder, found.progress, found.unusable) == (50, path, FAR, ())
    assert found.tensors.keys() == weights().keys()
    for name, tensor in weights(50).items():
        assert torch.equal(found.tensors[name], tensor)
    assert sorted(p.name for p in files(tmp_path)) == ["LATEST", "manifest.json", "tensors.safetensors"]


DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)], ids=str)
def test_every_number_type_and_shape_survives_to_the_bit(tmp_path, dtype, shape):
    tensor = (torch.randn(shape, dtype=torch.float64) * 100).to(dtype)
    save(tmp_path, 1, {"t": tensor}, FAR)
    found = load(tmp_path).tensors["t"]
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(bits(found), bits(tensor))


def test_nan_payloads_and_signed_zeros_survive(tmp_path):
    odd = torch.tensor([0x7FC12345, -0x80000000, 0x7F800001, 1], dtype=torch.int32).view(torch.float32)
    save(tmp_path, 1, {"odd": odd}, FAR)
    assert torch.equal(bits(load(tmp_path).tensors["odd"]), bits(odd))


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    table = torch.randn(100, 50)
    save(tmp_path, 1, {"embedding": table, "head": table, "half": table[:50], "turned": table.t()}, FAR)
    found = load(tmp_path).tensors
    assert found["head"] is found["embedding"]
    assert torch.equal(found["half"], table[:50])
    assert torch.equal(found["turned"], table.t())
    assert (load(tmp_path).folder / "tensors.safetensors").stat().st_size < 2.6 * table.nbytes  # not 3.5


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8),
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_settings_come_back_exactly(plain):
    progress = Progress(samples_seen=1, workers=1, batch_size=1, seed=0, settings=plain, state={"list": [plain]})
    written = manifests.Manifest(step=3, progress=progress, tensors=manifests.File(size=0, sha256=""), same_as={})
    assert manifests.from_bytes(manifests.to_bytes(written)) == written


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"loss": float("nan")}}, r"state\.a\.loss must be finite; got nan"),
        ({"a": [1, float("inf")]}, r"state\.a\[1\] must be finite; got inf"),
        ({"a": {1: "one"}}, r"state\.a must have text as keys; got the key 1"),
        ({"w": torch.ones(1)}, r"state\.w must be plain .*; got Tensor\. Tensors go among the tensors"),
        ({"pair": (1, 2)}, r"state\.pair must be plain .*; got tuple"),
    ],
)
def test_state_that_json_would_change_is_refused(tmp_path, state, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path, 1, weights(), Progress(samples_seen=1, workers=1, batch_size=1, seed=0, state=state))
    assert steps(tmp_path) == []


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"])
def test_a_tensor_that_is_not_dense_numbers_is_refused(tmp_path, tensor):
    with pytest.raises(ValueError, match="tensor 't' must be dense numbers; got"):
        save(tmp_path, 1, {"t": tensor}, FAR)


@pytest.mark.parametrize(
    ("step", "keep", "message"), [(-1, 1, "step must be at least 0; got -1"), (1, 0, "keep must be")]
)
def test_arguments_out_of_range_are_refused(tmp_path, step, keep, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path, step, weights(), FAR, keep=keep)


def test_the_last_k_are_kept(tmp_path):
    saved(tmp_path, 10, 20, 30, 40, keep=2)
    assert steps(tmp_path) == [40, 30]
    assert load(tmp_path, step=30).step == 30
    assert (tmp_path / "LATEST").read_text().startswith("step-000000040 ")


def test_damaged_ones_do_not_count_among_those_kept(tmp_path):
    saved(tmp_path, 10, 20)
    (tmp_path / "step-000000020" / "tensors.safetensors").write_bytes(b"")
    saved(tmp_path, 30, keep=2)
    assert steps(tmp_path) == [30, 10]


def test_every_flipped_bit_is_found_and_the_one_before_is_loaded(tmp_path):
    """Each byte of each file, a bit of it each: exhaustive over bytes, all bits over eight neighbours."""
    saved(tmp_path, 1, 2)
    tried = 0
    for path in [*files(tmp_path / "step-000000002"), tmp_path / "LATEST"]:
        whole = path.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            found = load(tmp_path)
            assert found.step == (2 if path.name == "LATEST" else 1), (path, place)
            assert [one.name for one in found.unusable] == ["LATEST" if path.name == "LATEST" else "step-000000002"]
            tried += 1
        path.write_bytes(whole)
    assert tried > 600
    assert load(tmp_path).unusable == ()


def test_a_damaged_only_checkpoint_is_refused_with_the_reason(tmp_path):
    path = saved(tmp_path, 1) / "step-000000001" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(
        NoneUsable, match=r"step-000000001: tensors\.safetensors does not fit its SHA-256\. Start a new run"
    ):
        load(tmp_path)


def _damage_truncate(step):
    path = step / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _damage_stale(step):
    shutil.rmtree(step)
    shutil.copytree(step.with_name("step-000000001"), step)


def _damage_schema(step):
    path = step / "manifest.json"
    content = json.loads(path.read_text())
    del content[manifests.DIGEST]
    content["schema"] = manifests.SCHEMA + 1
    content[manifests.DIGEST] = manifests.digest(manifests._canonical(content))
    path.write_bytes(manifests._canonical(content))


DAMAGES = {
    "truncated": (_damage_truncate, r"tensors\.safetensors has \d+ bytes of \d+"),
    "tensors missing": (
        lambda s: (s / "tensors.safetensors").unlink(),
        r"tensors\.safetensors cannot be read \(No such",
    ),
    "never finished": (
        lambda s: (s / "manifest.json").unlink(),
        r"manifest\.json cannot be read .*: it was never finished",
    ),
    "empty manifest": (lambda s: (s / "manifest.json").write_text(""), "the manifest is no JSON of this form"),
    "list as manifest": (lambda s: (s / "manifest.json").write_text("[]"), "the manifest is no JSON of this form"),
    "edited manifest": (
        lambda s: (s / "manifest.json").write_text((s / "manifest.json").read_text().replace("640", "641")),
        "the manifest does not fit its own SHA-256",
    ),
    "another step's": (_damage_stale, "its manifest is of step 1: it is not this folder's"),
    "later schema": (
        _damage_schema,
        r"it is of schema \d, this version reads schema \d; use the version that wrote it",
    ),
    "a file in its place": (lambda s: (shutil.rmtree(s), s.write_text("")), r"manifest\.json cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_used_is_named_and_the_one_before_is_loaded(tmp_path, name):
    damage, reason = DAMAGES[name]
    saved(tmp_path, 1, 2)
    damage(tmp_path / "step-000000002")
    found = load(tmp_path)
    assert found.step == 1
    assert found.unusable[0].name == "step-000000002"
    with pytest.raises(NoneUsable, match=reason):
        load(tmp_path, step=2)


def test_a_checkpoint_that_went_missing_is_told_by_latest(tmp_path):
    saved(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "step-000000002")
    found = load(tmp_path)
    assert found.step == 1
    assert "it names step-000000002" in str(found.unusable[0])


def test_an_empty_and_a_missing_folder_are_told_apart(tmp_path):
    with pytest.raises(NoneUsable, match="there is none"):
        load(tmp_path)
    with pytest.raises(NoneUsable, match="there is no such folder"):
        load(tmp_path / "nowhere")
    assert steps(tmp_path / "nowhere") == []


def test_what_a_crash_left_behind_is_ignored_and_swept_away(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / ".begun-step-000000002").mkdir()
    (tmp_path / ".begun-step-000000002" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / ".begun-LATEST").write_text("half")
    assert load(tmp_path).unusable == ()
    saved(tmp_path, 3)
    assert not list(tmp_path.glob(".begun-*"))


def test_a_good_later_checkpoint_stops_another_course_of_the_run(tmp_path):
    saved(tmp_path, 100)
    with pytest.raises(
        ValueError, match=r"holds a checkpoint of step 100, beyond step 50 .* Resume from it, or choose"
    ):
        saved(tmp_path, 50)
    assert steps(tmp_path) == [100]


def test_a_later_checkpoint_of_a_later_version_is_left_alone(tmp_path):
    saved(tmp_path, 100)
    _damage_schema(tmp_path / "step-000000100")
    with pytest.raises(ValueError, match="holds a checkpoint of step 100"):
        saved(tmp_path, 50)


def test_a_damaged_later_checkpoint_is_set_aside_when_the_run_goes_on(tmp_path):
    saved(tmp_path, 50, 100)
    _damage_truncate(tmp_path / "step-000000100")
    assert load(tmp_path).step == 50
    saved(tmp_path, 60)
    assert (load(tmp_path).step, load(tmp_path).unusable) == (60, ())
    assert (tmp_path / "damaged-step-000000100" / "manifest.json").exists()  # for whoever wants to look


def test_a_step_may_be_saved_again(tmp_path):
    saved(tmp_path, 50)
    save(tmp_path, 50, weights(51), FAR)
    assert int(load(tmp_path).tensors["b"]) == 51
    assert steps(tmp_path) == [50]


# Links, pipes, forgeries, readers beside a writer -----------------------------------------------------------------


def _moved(path, elsewhere):
    """The same under a symbolic link, as after moving it to a larger disk."""
    elsewhere.mkdir(exist_ok=True)
    path.rename(elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


LINKED = {
    "an old checkpoint": lambda run, disk: _moved(run / "step-000000001", disk),
    "the newest checkpoint": lambda run, disk: _moved(run / "step-000000002", disk),
    "a checkpoint that is made again": lambda run, disk: _moved(run / "step-000000003", disk),
    "tensors": lambda run, disk: _moved(run / "step-000000002" / "tensors.safetensors", disk),
    "LATEST": lambda run, disk: _moved(run / "LATEST", disk),
    "the folder of checkpoints": _moved,
    "to nowhere": lambda run, disk: (run / "step-000000000").symlink_to(disk / "gone"),
    "begun, to a folder": lambda run, disk: (disk.mkdir(), (run / ".begun-x").symlink_to(disk)),
    "begun, to nowhere": lambda run, disk: (run / ".begun-x").symlink_to(disk / "gone"),
    "removed, of an earlier save": lambda run, disk: (disk.mkdir(), (run / ".begun-step-000000003").symlink_to(disk)),
}


@pytest.mark.parametrize("what", LINKED)
def test_symbolic_links_are_followed_when_read_and_removed_themselves(tmp_path, what):
    run, disk = saved(tmp_path / "run", 1, 2, 3), tmp_path / "disk"
    LINKED[what](run, disk)
    before = {path: path.read_bytes() for path in files(disk)} if disk.exists() else {}
    assert load(run).step == 3
    saved(run, 3, 4, 5, 6, keep=2)
    assert (load(run).step, load(run).unusable, steps(run)) == (6, (), [6, 5])
    assert not list(run.glob(".begun-*"))
    if what != "the folder of checkpoints":  # then it is the run itself
        assert {path: path.read_bytes() for path in files(disk)} == before if disk.exists() else not before


def _forge(folder, place, value):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content[manifests.DIGEST]
    *outer, name = place.split(".")
    inner = content
    for each in outer:
        inner = inner[each]
    inner[name] = value
    content[manifests.DIGEST] = manifests.digest(manifests._canonical(content))
    path.write_bytes(manifests._canonical(content))


ODD = ("x", None, [], ["x"], {}, {"x": []}, -1, 1.5, True)
FORGED = [
    (place, value)
    for place, fine in {
        "step": (), "progress": (), "tensors": (), "same_as": ({},), "tensors.size": (), "tensors.sha256": ("x",),
        "progress.samples_seen": (), "progress.workers": (), "progress.batch_size": (), "progress.seed": (-1,),
        "progress.settings": ({}, {"x": []}), "progress.state": ({}, {"x": []}),
    }.items()
    for value in ODD
    if not any(value is each or (value == each and type(value) is type(each)) for each in fine)
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), FORGED, ids=str)
def test_a_forged_manifest_is_damaged_whatever_field_is_of_another_kind(tmp_path, place, value):
    saved(tmp_path, 1, 2)
    _forge(tmp_path / "step-000000002", place, value)
    found = load(tmp_path)
    assert (found.step, [one.name for one in found.unusable]) == (1, ["step-000000002"])


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors"])
@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to("/dev/zero")], ids=["pipe", "folder", "device"]
)
def test_what_is_no_file_is_not_waited_for(tmp_path, name, make):
    path = saved(tmp_path, 1, 2) / "step-000000002" / name
    path.unlink()
    make(path)
    assert load(tmp_path).step == 1
    saved(tmp_path, 3, keep=2)
    assert steps(tmp_path) == [3, 1]


def test_a_pipe_as_latest_is_not_waited_for(tmp_path):
    (saved(tmp_path, 1) / "LATEST").unlink()
    os.mkfifo(tmp_path / "LATEST")
    assert "cannot be read" in str(load(tmp_path).unusable[0])


@pytest.mark.parametrize("keep", [1, 2])
def test_a_reader_beside_a_writer_always_finds_one(tmp_path, monkeypatch, keep):
    """The writer saves anew, and removes what was listed, just before each thing that the reader does."""
    from variegrad.training.checkpoint import load as _  # noqa: F401 - the module is meant, not the function

    reading = sys.modules["variegrad.training.checkpoint.load"]
    saved(tmp_path, 1)
    originals = {name: getattr(reading, name) for name in ("read", "_described", "candidates")}
    for meanwhile in range(1, 7):
        left, last = meanwhile, [steps(tmp_path)[0]]

        def beside(original, last=last):
            def wrapped(*arguments):
                nonlocal left
                left -= 1
                if left == 0:
                    for name, function in originals.items():
                        monkeypatch.setattr(reading, name, function)
                    last.append(last[-1] + 1)
                    saved(tmp_path, last[-1], keep=keep)
                return original(*arguments)

            return wrapped

        for name, function in originals.items():
            monkeypatch.setattr(reading, name, beside(function))
        assert load(tmp_path).step in last
        for name, function in originals.items():
            monkeypatch.setattr(reading, name, function)


def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "LOCK").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="LOCK"), checkpoint.lock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


# Crashes ---------------------------------------------------------------------------------------------------------

CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def _ends_at(call, folder, step):
    """Save in a process that ends without a word at its `call`-th request to the file system; its exit code."""
    child = os.fork()
    if child == 0:
        left = call

        def counted(original):
            def request(*arguments, **named):
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return original(*arguments, **named)

            return request

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            saved(folder, step, keep=1)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
def test_a_crash_at_any_point_leaves_a_whole_checkpoint(tmp_path, again):
    next_step = 1 if again else 2
    for call in range(100):
        folder = saved(tmp_path / str(call), 1, keep=1)
        code = _ends_at(call, folder, next_step)
        found = load(folder)
        assert found.step in (1, next_step)
        assert torch.equal(found.tensors["w"], weights(found.step)["w"])
        assert found.unusable == ()
        saved(folder, 3, keep=1)  # and the run goes on
        assert (load(folder).step, sorted(p.name for p in folder.iterdir())) == (3, ["LATEST", "step-000000003"])
        if code == 0:
            assert call >= 10  # else nothing was counted
            return
        assert code == 9
    pytest.fail("the save never came to its end")


def test_everything_is_on_the_disk_before_it_is_named(tmp_path, monkeypatch):
    """After a power cut only what was fsynced is there: files, their folder, the name, the name's folder."""
    events, fsync, rename, replace = [], os.fsync, os.rename, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda f: (events.append(("sync", str(Path(f"/proc/self/fd/{f}").readlink()))), fsync(f))[1]
    )
    for name, original in (("rename", rename), ("replace", replace)):
        monkeypatch.setattr(os, name, lambda a, b, o=original, **k: (events.append(("name", str(b))), o(a, b, **k))[1])
    path = save(tmp_path, 1, weights(), FAR)
    begun = str(tmp_path / ".begun-step-000000001")
    assert events == [
        ("sync", f"{begun}/tensors.safetensors"),
        ("sync", f"{begun}/manifest.json"),
        ("sync", begun),
        ("name", str(path)),
        ("sync", str(tmp_path)),
        ("sync", str(tmp_path / ".begun-LATEST")),
        ("name", str(tmp_path / "LATEST")),
        ("sync", str(tmp_path)),
    ]


def _saves_without_end(folder, say):
    for step in itertools.count(1):
        save(folder, step, {"w": torch.full((20_000,), float(step))}, FAR, keep=2)
        os.write(say, b"%d\n" % step)


def _forked(work, *arguments):
    """Run something in a process of its own; its number, and what it says through the descriptor that it is given."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(*arguments, say)
        finally:
            os._exit(1)
    os.close(say)
    return child, os.fdopen(hear)


def _kill(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_sigkill_at_random_moments_loses_nothing_that_was_saved(tmp_path):
    for attempt in range(6):
        child, said = _forked(_saves_without_end, tmp_path / str(attempt))
        with said:
            for _ in range(5 + attempt):
                last = int(said.readline())
            time.sleep(0.003 * attempt)
            _kill(child)
            last = max([last, *map(int, said.read().split())])
        found = load(tmp_path / str(attempt))
        assert found.step in (last, last + 1)
        assert torch.equal(found.tensors["w"], torch.full((20_000,), float(found.step)))


# What the system refuses -----------------------------------------------------------------------------------------


def test_a_file_system_that_refuses_to_write_leaves_what_was_there(tmp_path):
    """A limit on the size of files stands for a full disk: the same call fails, with another number."""
    saved(tmp_path, 1)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            NotSaved, match=r"step 2 was not saved .* The newest that stands is step-000000001"
        ) as caught:
            save(tmp_path, 2, {"w": torch.zeros(1000)}, FAR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    saved(tmp_path, 2)
    assert load(tmp_path).step == 2


IN_A_SMALL_DISK = """
import errno, os, subprocess, sys, torch
from variegrad.training.checkpoint import FolderInUse, NotSaved, Progress, load, lock, save, steps
folder, far = sys.argv[1], Progress(samples_seen=1, workers=1, batch_size=1, seed=0)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
save(folder, 1, {"w": torch.ones(1000)}, far)
try:
    save(folder, 2, {"w": torch.ones(100_000)}, far)
except NotSaved as error:
    assert error.errno == errno.ENOSPC, error
    assert "step 2 was not saved" in str(error) and "No space left" in str(error), error
    assert "The newest that stands is step-000000001" in str(error), error
assert load(folder).step == 1 and load(folder).unusable == () and steps(folder) == [1]
save(folder, 2, {"w": torch.ones(1000)}, far)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
try:
    save(folder, 3, {"w": torch.ones(1)}, far)
except NotSaved as error:
    assert error.errno == errno.EROFS and "Read-only" in str(error), error
try:
    with lock(folder):
        raise SystemExit("locked?")
except OSError as error:
    assert error.errno == errno.EROFS
assert load(folder).step == 2 and steps(folder) == [2, 1]
print("as stated")
"""


def _refused(*command):
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_a_full_disk_and_a_read_only_folder(tmp_path):
    if os.geteuid() != 0 or not shutil.which("unshare") or _refused("unshare", "--mount", "true"):
        pytest.skip("needs root and mount namespaces: a small disk is mounted")
    command = ["unshare", "--mount", sys.executable, "-c", IN_A_SMALL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "as stated\n", done.stderr


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotSaved, match=r"step 1 was not saved .* There is none before it"):
        saved(tmp_path / "run", 1)


# Two runs, other settings ----------------------------------------------------------------------------------------


def _holds(folder, say):
    with checkpoint.lock(folder):
        os.write(say, b"held\n")
        signal.alarm(60)  # also if the test fails before it ends this process
        signal.pause()


def test_a_second_run_on_a_folder_is_refused_until_the_first_has_ended(tmp_path):
    child, said = _forked(_holds, tmp_path)
    with said:
        assert said.readline() == "held\n"
        message = rf"one run per folder; process {child} on \S+ is writing to it\. Wait for it or choose another"
        with pytest.raises(FolderInUse, match=message), checkpoint.lock(tmp_path):
            pass
        _kill(child)
    with checkpoint.lock(tmp_path):  # the system gave it back
        saved(tmp_path, 1)


def test_a_second_run_in_the_same_process_is_refused(tmp_path):
    with (
        checkpoint.lock(tmp_path),
        pytest.raises(FolderInUse, match="another run in this process"),
        checkpoint.lock(tmp_path / "." / "x" / ".."),
    ):
        pass


def test_a_lock_is_not_handed_on_to_children(tmp_path):
    with checkpoint.lock(tmp_path):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            signal.pause()
    try:
        with checkpoint.lock(tmp_path):
            pass
    finally:
        _kill(child)


def test_a_lock_of_unknown_content_still_locks(tmp_path):
    (tmp_path / "LOCK").write_text("not JSON")
    with checkpoint.lock(tmp_path):
        assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()


def test_a_changed_setting_is_refused_by_name():
    before = {"step_size": 0.1, "passes": 5, "seed": 0, "mechanism": {"DropConnect": {"p": 0.4}}}
    checkpoint.check_settings(before, {**before, "passes": 9}, may_change=("passes",))
    with pytest.raises(ValueError, match=r"mechanism was \{'DropConnect': \{'p': 0\.4\}\} and is None now"):
        checkpoint.check_settings(before, {**before, "mechanism": None})
    without = {name: value for name, value in before.items() if name != "seed"}
    with pytest.raises(ValueError, match=r"passes was 5 and is 9 now; seed was 0 and is not set now"):
        checkpoint.check_settings(before, {**without, "passes": 9})
    with pytest.raises(ValueError, match=r"momentum was not set and is 0\.9 now"):
        checkpoint.check_settings(before, {**before, "momentum": 0.9})
