"""LSTM, GRU and RNN, packed or not, have the losses and gradients of torch's own kernels, and rules see inside them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import variegrad as vg
from reference import loop_gradients
from variegrad.per_example.evaluate import evaluate
from variegrad.per_example.norms import engine_of
from variegrad.per_example.recurrent import unfused

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

SETTINGS = [
    (nn.LSTM, {}), (nn.LSTM, {"num_layers": 2, "bidirectional": True}), (nn.LSTM, {"proj_size": 3, "bias": False}),
    (nn.LSTM, {"batch_first": True, "proj_size": 2}), (nn.GRU, {"num_layers": 2}),
    (nn.GRU, {"bias": False, "bidirectional": True}),
    (nn.GRU, {"batch_first": True}), (nn.RNN, {"num_layers": 2, "bidirectional": True}),
    (nn.RNN, {"nonlinearity": "relu", "bias": False, "batch_first": True}),
]  # fmt: skip
KINDS = pytest.mark.parametrize(
    ("kind", "settings"), SETTINGS, ids=lambda s: s.__name__ if isinstance(s, type) else str(s)
)
LENGTHS = [[5, 3, 6, 1, 4], [2, 2, 2], [1, 7, 4, 4, 6, 2, 3]]


class Tagger(nn.Module):
    """Uses every output: the sequence, and the last states of all layers."""

    def __init__(self, kind, settings, packed):
        super().__init__()
        self.packed, self.batch_first = packed, settings.get("batch_first", False)
        self.embedding, self.core = nn.Embedding(11, 3), kind(3, 4, **settings)
        width = settings.get("proj_size") or 4
        self.head = nn.Linear(width * (2 if settings.get("bidirectional") else 1), 2)

    def forward(self, tokens, lengths):
        x = self.embedding(tokens if self.batch_first else tokens.T)
        if self.packed:
            x = pack_padded_sequence(x, lengths, batch_first=self.batch_first, enforce_sorted=False)
        y, state = self.core(x)
        if self.packed:
            y, _ = pad_packed_sequence(y, batch_first=self.batch_first)
        y = y if self.batch_first else y.transpose(0, 1)
        last = torch.cat(state, -1) if isinstance(state, tuple) else state
        running = torch.arange(y.shape[1]) < lengths.unsqueeze(1)
        return (self.head(y).square().sum(2) * running).sum(1) + last.transpose(0, 1).flatten(1).sin().sum(1)


def losses(model, batch):
    return model(*batch)


def batch_of(lengths, packed):
    torch.manual_seed(len(lengths))
    return torch.randint(11, (len(lengths), max(lengths))), torch.tensor(lengths)


@KINDS
@pytest.mark.parametrize("packed", [False, True])
def test_norms_and_sums_are_those_of_torchs_kernels(kind, settings, packed) -> None:
    torch.manual_seed(0)
    model = Tagger(kind, settings, packed).double()
    for lengths in LENGTHS:
        batch = batch_of(lengths, packed)
        own = losses(model, batch)
        torch.testing.assert_close(evaluate(model, losses, batch), own)
        rows = loop_gradients(model, losses, batch)
        found = vg.example_sq_norms(model, losses, batch)
        torch.testing.assert_close(found, sum(r.flatten(1).square().sum(1) for r in rows.values()))
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, rows[name].sum(0), msg=name)
        model.zero_grad()


@KINDS
def test_single_precision_and_the_fused_kernels_of_the_cpu(kind, settings) -> None:
    torch.manual_seed(0)
    model = Tagger(kind, settings, False)
    batch = batch_of(LENGTHS[0], False)
    rows = loop_gradients(model, losses, batch)
    found = vg.example_sq_norms(model, losses, batch)
    torch.testing.assert_close(
        found.float(), sum(r.flatten(1).square().sum(1) for r in rows.values()), rtol=1e-3, atol=0
    )


def test_states_that_vanish_are_no_change_of_the_layout() -> None:
    """Gradients of 1e-19 in single precision, under weights of 2⁻³¹: their squares underflow, they do not."""
    torch.manual_seed(0)
    model = Tagger(nn.GRU, {}, True)
    with torch.no_grad():
        model.core.weight_hh_l0 *= 0.01
        model.core.bias_hh_l0[4:8] = -8  # the update gate
    for k in range(4):
        torch.manual_seed(k)
        lengths = torch.randint(2, 12, (70,))
        batch = torch.randint(11, (70, int(lengths.max()))), lengths

        def last(model, batch):
            x = pack_padded_sequence(model.embedding(batch[0].T), batch[1], enforce_sorted=False)
            return model.core(x)[1][0].square().sum(1)

        vg.example_sq_norms(model, last, batch)
    assert [known.uncovered for known in engine_of(model).known.values()] == [{}] * len(engine_of(model).known)


@pytest.mark.parametrize("packed", [False, True])
def test_a_rule_serves_every_weight(packed) -> None:
    torch.manual_seed(0)
    model = Tagger(nn.LSTM, {"num_layers": 2}, packed)
    said = str(vg.explain(model, losses, batch_of(LENGTHS[0], packed)))
    assert "unused" not in said
    assert "fallback" not in said
    assert "loop" not in said


def test_dropout_between_layers_and_unbatched_input_and_given_states() -> None:
    torch.manual_seed(0)
    for core in (nn.LSTM(3, 4, num_layers=2, dropout=0.5), nn.GRU(3, 4, num_layers=2, dropout=0.5)):
        core.double()
        x, h = torch.randn(6, 5, 3).double(), torch.randn(2, 5, 4).double()
        state = (h, h.sin()) if isinstance(core, nn.LSTM) else h
        for mode in (False, True):
            core.train(mode)
            torch.manual_seed(1)
            own = core(x, state)
            torch.manual_seed(1)
            with unfused(core):
                found = core(x, state)
            torch.testing.assert_close(found, own)
        with unfused(core):
            alone, _ = core.eval()(x[:, 0])
        torch.testing.assert_close(alone, core(x[:, :1])[0][:, 0])


def test_nothing_is_left_behind_and_other_models_are_not_touched() -> None:
    core = nn.LSTM(3, 4)
    with pytest.raises(RuntimeError, match="stop"), unfused(core):
        raise RuntimeError("stop")
    assert torch.overrides._get_current_function_mode_stack() == []
    with unfused(nn.Linear(2, 2)):
        assert torch.overrides._get_current_function_mode_stack() == []
    assert F.linear(torch.ones(1, 2), torch.ones(1, 2)) == 2
