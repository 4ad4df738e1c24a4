"""`descend` is w ← w − γ·Σ∇f_i over batches in an order that is a function of the seed."""

import copy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from variegrad.keys import epoch_order
from variegrad.training import descend


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def model(dropout=0.0):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)).double()


def dataset(n=11):
    generator = torch.Generator().manual_seed(4)
    return TensorDataset(torch.randn(n, 4, generator=generator).double(), torch.arange(n) % 3)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def run(net, updates, data=None, **options):
    settings = {"batch_size": 4, "step_size": 0.05, "seed": 1, **options}
    return list(islice(descend(net, losses, dataset() if data is None else data, **settings), updates))


def test_it_equals_a_loop_written_by_hand():
    net, by_hand, data = model(), model(), dataset()
    records = run(net, 7)
    seen, made = 0, 0
    for epoch in range(3):
        order = epoch_order(1, epoch, 11)
        for start in (0, 4, 8):  # the last batch of an epoch is short: three examples
            if made == 7:
                break
            x, y = (column[order[start : start + 4]] for column in data.tensors)
            per_example = losses(by_hand, (x, y))
            gradients = torch.autograd.grad(per_example.sum(), list(by_hand.parameters()))
            with torch.no_grad():
                for p, g in zip(by_hand.parameters(), gradients, strict=True):
                    p.sub_(0.05 * g)
            seen, made = seen + len(x), made + 1
            assert (records[made - 1].updates, records[made - 1].examples) == (made, seen)
            assert records[made - 1].mean_loss == pytest.approx(float(per_example.detach().mean()), rel=1e-14)
    assert torch.allclose(weights(net), weights(by_hand), rtol=1e-14, atol=1e-15)


def test_it_equals_torch_s_own_sgd_on_the_summed_loss():
    net, other, data = model(), model(), dataset()
    run(net, 3)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05)
    for start in (0, 4, 8):
        x, y = (column[epoch_order(1, 0, 11)[start : start + 4]] for column in data.tensors)
        optimizer.zero_grad()
        losses(other, (x, y)).sum().backward()
        optimizer.step()
    assert torch.allclose(weights(net), weights(other), rtol=1e-14, atol=0)


def test_the_run_is_a_function_of_the_seed_alone():
    first, again, other = model(0.5), model(0.5), model(0.5)
    run(first, 8)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    run(again, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(first), weights(again))
    run(other, 8, seed=2)
    assert not torch.equal(weights(first), weights(other))


def test_a_run_can_be_continued_anywhere():
    whole, parts = model(0.5), model(0.5)
    run(whole, 8)
    run(parts, 5)
    run(parts, 3, first_update=5)
    assert torch.equal(weights(whole), weights(parts))


def test_any_data_set_and_frozen_parameters():
    class Examples(Dataset):
        def __len__(self):
            return 11

        def __getitem__(self, i):
            return dataset()[i]

    class Doubled(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return 2 * x, y

    first, second = model(), model()
    for net in (first, second):
        net[0].requires_grad_(False)
    untouched = copy.deepcopy(first[0].weight)
    run(first, 4)
    run(second, 4, data=Examples())
    assert torch.equal(weights(first), weights(second))
    assert torch.equal(first[0].weight, untouched)
    assert all(p.grad is None for p in first.parameters())
    doubled, plain = model(), model()
    run(doubled, 1, data=Doubled(*dataset().tensors))
    run(plain, 1, data=TensorDataset(2 * dataset().tensors[0], dataset().tensors[1]))
    assert torch.equal(weights(doubled), weights(plain))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 example; got 0"),
        ({"step_size": 0.0}, "step_size must be positive; got 0.0"),
        ({"step_size": float("nan")}, "step_size must be positive; got nan"),
        ({"data": dataset(0)}, "the training set holds no examples"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(model(), 1, **options)


def test_a_run_that_diverges_stops():
    with pytest.raises(ValueError, match=r"the loss of example \d of the batch is (inf|nan)"):
        run(model().float(), 50, data=TensorDataset(dataset().tensors[0].float(), dataset().tensors[1]), step_size=1e38)
