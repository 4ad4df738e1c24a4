import os
import signal
from pathlib import Path

import jaxtyping
import pytest
import torch

# Shapes and types in signatures are checked wherever a test calls these rooms; set up before they are imported.
CHECKED = ("moments", "batches", "keys", "measurement", "along", "training", "mechanisms", "cli", "problems",
           "per_example", "reports", "estimators", "experiments", "monitor", "integrations")  # fmt: skip
jaxtyping.install_import_hook([f"variegrad.{room}" for room in CHECKED], "typechecking.checked")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    """Each test starts from one seed, in one thread where several workers share the machine."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def data_root():
    """The folder with the published data files; a test that needs it is skipped where there is none."""
    root = os.environ.get("VARIEGRAD_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs published data files: set VARIEGRAD_DATA to their folder")
    return Path(root)
