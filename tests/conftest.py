import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    """Each test starts from one seed, in one thread where several workers share the machine."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    torch.manual_seed(0)
