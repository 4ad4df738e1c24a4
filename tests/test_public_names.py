"""What `import variegrad` shows, what it loads, and which names go on working."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import variegrad


def loaded_by(code):
    """The top-level packages that a program has loaded, in a process of its own."""
    program = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_dir_shows_the_public_names_alone():
    assert sorted(dir(variegrad)) == sorted([*variegrad.__all__, "__version__"])
    assert variegrad.__all__ == sorted(variegrad.__all__)
    for name in variegrad.__all__:
        assert getattr(variegrad, name) is not None


def test_no_function_has_the_name_of_a_module():
    modules = {path.stem for path in Path(variegrad.__file__).parent.iterdir()}
    assert modules & set(variegrad.__all__) == {"theory"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        _ = variegrad.mesure


@pytest.mark.parametrize(
    ("old", "name"), [("estimate", "advise"), ("measure", "measure_differential"), ("report", "write_report")]
)
def test_a_former_module_works_with_a_warning(old, name):
    module = importlib.import_module(f"variegrad.{old}")
    with pytest.warns(DeprecationWarning, match=f"import {name} from there"):
        assert callable(getattr(module, name))
    if old != "report":
        assert callable(getattr(variegrad, old))  # still the function


def test_importing_loads_nothing():
    own = loaded_by("import variegrad")
    assert own - loaded_by("from __future__ import annotations; import importlib, typing, warnings") == {"variegrad"}


TRAINING = """
import sys
import torch, numpy
import torch.optim, torch.utils.data, torch.func  # what a training program has anyway
import variegrad as vg

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = vg.Monitor(model, every=1, warm_up=2)
for _ in range(12):
    x, y = torch.randn(16, 4), torch.randint(0, 2, (16,))
    losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    monitor.watch(losses)
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()
found = vg.measure(model, lambda m, b: m(b[0]).square().sum(1), [(torch.randn(8, 4),)])
assert found.batch_size_bound > 0
"""
# torch imports these for itself, now or later.
OF_TORCH = {"torch", "torchgen", "functorch", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec",
            "filelock", "tqdm", "triton", "setuptools", "pkg_resources", "typing_extensions",
            "_remote_module_non_scriptable"}  # fmt: skip
DECLARED = {"scipy", "sklearn", "matplotlib", "rich", "typer", "joblib", "psutil", "jaxtyping", "safetensors", "jinja2"}


def test_a_monitor_loads_torch_and_numpy_alone():
    loaded = loaded_by(TRAINING.partition("for _ in range(12)")[0])
    foreign = loaded - loaded_by("import torch, numpy, torch.optim, torch.func") - set(sys.stdlib_module_names)
    assert {name for name in foreign - OF_TORCH if not name.startswith("_") and name != "cython_runtime"} == {
        "variegrad"
    }


def test_a_monitored_training_loads_scipy_for_its_intervals_and_nothing_else_that_is_declared():
    assert loaded_by(f"{TRAINING}\nassert monitor.latest is not None") & DECLARED - OF_TORCH == {"scipy"}


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"torch", "numpy", "scipy", "sklearn", "matplotlib"}),
        (["measure", "--help"], {"torch", "numpy", "scipy", "sklearn", "matplotlib"}),
        (["measure", "--batch-size", "0"], {"torch", "numpy"}),
        (["bound", "data.svm"], {"torch", "matplotlib", "jaxtyping"}),
        (
            ["measure", "digits", "--max-examples", "20", "--points", "1"],
            {"matplotlib", "jaxtyping"},
        ),
    ],
)
def test_a_command_loads_what_it_needs(arguments, absent, tmp_path):
    (tmp_path / "data.svm").write_text("1 1:1\n-1 2:1\n")
    arguments = [str(tmp_path / "data.svm") if argument == "data.svm" else argument for argument in arguments]
    program = (
        f"import sys; sys.argv = ['variegrad', *{arguments!r}]\nfrom variegrad.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('LOADED')"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not set(done.stdout.partition("LOADED")[2].split()) & absent
