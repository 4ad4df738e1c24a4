from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """The folder with the published files; tests that need it are skipped where there is none."""
    root = os.environ.get("VARIEGRAD_DATA")
    if not root:
        pytest.skip("needs published data files: set VARIEGRAD_DATA to their folder")
    return Path(root)
