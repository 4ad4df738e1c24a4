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
