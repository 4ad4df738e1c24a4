import sys
from dataclasses import dataclass

import pytest

from variegrad.cli import main


@dataclass(frozen=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def variegrad(monkeypatch, capfd):
    """Run the command in this process, as its entry point does."""
    monkeypatch.delenv("VARIEGRAD_TRACEBACK", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["variegrad", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capfd.readouterr()
        return Said(stopped.value.code, said.out, said.err)

    return run
