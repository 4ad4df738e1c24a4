"""Without its extra an integration says which one to install; with it, it stays short."""

import runpy
import sys
from pathlib import Path

import pytest

import variegrad.integrations

FOLDER = Path(variegrad.integrations.__path__[0])


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("lightning", "lightning.pytorch"),
        ("transformers", "transformers"),
        ("accelerate", "accelerate"),
        ("tensorboard", "torch.utils.tensorboard"),
    ],
)
def test_a_missing_extra_is_named(name, needs, monkeypatch):
    monkeypatch.setitem(sys.modules, needs, None)
    with pytest.raises(ImportError, match=rf"integrations\.{name} needs .*: pip install 'variegrad\[{name}\]'"):
        runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_an_integration_is_short(path):
    assert len(path.read_text().splitlines()) <= 150
