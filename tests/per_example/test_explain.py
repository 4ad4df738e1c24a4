"""The engine accounts for every parameter: its rule, its cost, or why it goes to the fallback."""

import pytest
import torch
from torch import nn

from cases import energy
from variegrad import explain


def test_every_parameter_is_accounted_for():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3))
    account = explain(model, energy, torch.randn(6, 3, 6, 6))
    assert [s.parameter for s in account.served] == [name for name, _ in model.named_parameters()]
    text = str(account)
    assert "convolution" in text
    assert "rank one" in text
    assert all(s.milliseconds is not None for s in account.served)


def test_a_fallback_says_why():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Bilinear(3, 3, 4, bias=False)

        def forward(self, x):
            return self.inner(x, x)

    account = explain(TwoInputs(), energy, torch.randn(4, 3))
    assert all(s.rule.startswith("fallback: no rule for ") for s in account.served)


def test_one_example_is_refused():
    with pytest.raises(ValueError, match="at least 2 examples"):
        explain(nn.Linear(4, 2), energy, torch.randn(1, 4))
