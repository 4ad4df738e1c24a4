"""Things that are switched on at step 40 of a training: it ends as without a monitor; a reading is right or missing."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from one_step import gram, moments
from variegrad import Monitor

# Torch's own remark on a hook of the model, with and without a monitor.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

BEGINS, STEPS = 40, 64


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(self.table(x))))


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Plain:
    """A loop, and what happens to it from step 40 on."""

    frozen: tuple[str, ...] = ()

    def begin(self, model, optimizer):
        """Once, at step 40."""

    def batch(self, step, batch):
        return batch

    def loss(self, per_example, model, step):
        return per_example.mean()

    def watched(self, per_example, batch):
        return per_example

    truth = staticmethod(losses)


class Penalty(Plain):
    def loss(self, per_example, model, step):
        penalty = sum(p.square().sum() for p in model.parameters()) if step >= BEGINS else 0
        return per_example.mean() + 0.01 * penalty


class PenaltyForAWhile(Penalty):
    def loss(self, per_example, model, step):
        return super().loss(per_example, model, step if step < 48 else 0)


class Unfrozen(Plain):
    frozen = ("body.weight", "table.weight")

    def begin(self, model, optimizer):
        model.body.weight.requires_grad_(True)


class Frozen(Plain):
    def begin(self, model, optimizer):
        model.table.weight.requires_grad_(False)


class NewHead(Plain):
    def begin(self, model, optimizer):
        model.head = nn.Linear(8, 3).double()
        optimizer.add_param_group({"params": list(model.head.parameters())})


class Hook(Plain):
    def begin(self, model, optimizer):
        self.fired = 0
        model.body.weight.register_hook(self.hook)

    def hook(self, gradient):
        self.fired += 1
        return gradient * (torch.arange(8) >= 4)[:, None]


class Mask(Plain):
    def begin(self, model, optimizer):
        from torch.nn.utils import prune

        prune.random_unstructured(model.body, "weight", 0.5)


class SparseTable(Plain):
    def begin(self, model, optimizer):
        model.table.sparse = True


class EmptyBatch(Plain):
    def batch(self, step, batch):
        return tuple(t[:0] for t in batch) if step >= BEGINS and step % 3 == 1 else batch

    def loss(self, per_example, model, step):
        return per_example.sum() / 12


class NotFinite(Plain):
    def loss(self, per_example, model, step):
        return per_example.mean() * (float("inf") if step == BEGINS else 1)


class AnotherLoss(Plain):
    def loss(self, per_example, model, step):
        return per_example.mean() + (model.table.weight.mean() if step >= BEGINS else 0)


class Weights(Plain):
    def loss(self, per_example, model, step):
        w = torch.linspace(0.5, 2, len(per_example)).double() if step >= BEGINS else 1
        return (w * per_example).mean()


class OptimizerInBackward(Plain):
    def begin(self, model, optimizer):
        def step(p):
            with torch.no_grad():
                p -= 0.05 * p.grad
                p.grad = None

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)


class ClippedActivations(Plain):
    def begin(self, model, optimizer):
        model.register_full_backward_hook(lambda *_: None)


KINDS = [
    Plain, Penalty, PenaltyForAWhile, Unfrozen, Frozen, NewHead, Hook, Mask, SparseTable, EmptyBatch, NotFinite,
    AnotherLoss, Weights, OptimizerInBackward, ClippedActivations,
]  # fmt: skip
# No reading from step 41 on (a while after, if checks must find out), or only on some steps.
SILENT = {Penalty, PenaltyForAWhile, Hook, Weights, AnotherLoss, NotFinite, OptimizerInBackward}


def train(kind, monitored, accumulate=1):
    torch.manual_seed(0)
    model, case = Net().double(), kind()
    for name, p in model.named_parameters():
        p.requires_grad_(name not in case.frozen)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    monitor = Monitor(model, every=1, examples=64, window=64, accumulate=accumulate) if monitored else None
    found = []
    for step in range(STEPS):
        if step == BEGINS:
            case.begin(model, optimizer)
        g = torch.Generator().manual_seed(step)
        batch = torch.randint(0, 20, (12,), generator=g), torch.randint(0, 3, (12,), generator=g)
        batch = case.batch(step, batch)
        parts = [tuple(t[k::accumulate] for t in batch) for k in range(accumulate)]
        if monitored:
            before = {n: p.detach().clone() for n, p in model.state_dict().items()}
        for part in parts:
            per_example = losses(model, part)
            if monitored:
                monitor.watch(case.watched(per_example, part))
            (case.loss(per_example, model, step) / accumulate).backward()
        if monitored and monitor.latest is not None and monitor.latest.step == step + 1:
            found.append((step, before, batch, monitor.state_dict()["window"][-1][-2:], monitor.latest.source))
        if all(p.grad is None or not p.grad.is_sparse for p in model.parameters()):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()
    return model, monitor, found, case


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_switched_on_at_step_40_ends_no_training_and_spoils_no_reading(kind, accumulate):
    plain, *_, hooked = train(kind, False, accumulate)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model, monitor, found, watched = train(kind, True, accumulate)
    for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b) or (a.isnan() == b.isnan()).all()
    assert getattr(hooked, "fired", None) == getattr(watched, "fired", None)  # no hook of the user's fired once more
    ours = [str(w.message) for w in said if "Monitor" in str(w.message)]
    assert len(ours) <= 2, ours
    steps = [step for step, *_ in found]
    assert set(range(1, BEGINS)) <= set(steps)
    if kind not in SILENT:
        assert max(steps) == STEPS - 1, monitor.history.reasons
    # Every reading is right: by the loop, at the weights of its step.
    if kind in (Penalty, PenaltyForAWhile, AnotherLoss):  # noticed at a check, the next 2^k-th reading at the latest
        steps = [s for s in steps if s < BEGINS]
    for step, before, batch, pair, source in found[::7]:
        if step in steps and "of 12 examples" in source:
            twin = Net().double()
            twin.load_state_dict(before)
            trained = {n: p.requires_grad for n, p in model.named_parameters()}
            for name, p in twin.named_parameters():
                p.requires_grad_(trained[name] if step >= BEGINS else name not in kind.frozen)
                if kind is Frozen and step < BEGINS:
                    p.requires_grad_(True)
            expected = moments(gram(twin, losses, batch))
            assert pair == pytest.approx(expected, rel=1e-6, abs=1e-9), step
    assert monitor.latest.first_step > (BEGINS if kind in (Unfrozen, Frozen, NewHead) else 0)
