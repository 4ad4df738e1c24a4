"""Step-aware limits: right on quadratics with a known answer, honest intervals, and nothing of the model is changed."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import variegrad as vg
from variegrad.decision import LearningRateRule, Limit, step_limits
from variegrad.decision.measured import fieller

CURVATURE = torch.tensor([2.0, 1.0, 0.5, 0.25, 0.1], dtype=torch.float64)


class Point(nn.Module):
    """F(w) = E ½(w − a)ᵀA(w − a): every example has the Hessian A, its gradient is A(w − a)."""

    def __init__(self, scale=None):
        super().__init__()
        self.scale = torch.ones(5, dtype=torch.float64) if scale is None else scale
        self.w = nn.Parameter(torch.full((5,), 1.0, dtype=torch.float64) / self.scale)


def quadratic(model, targets):
    away = model.scale * model.w - targets
    return 0.5 * (CURVATURE * away.square()).sum(1)


def targets(count, seed, spread=2.0):
    return spread * torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def truth(batch_size, learning_rate, spread=2.0):
    G = CURVATURE  # at w = 1, E a = 0
    noise = (CURVATURE * spread).square()
    sq, curved = G.square().sum(), (CURVATURE * G.square()).sum()
    example = curved + (CURVATURE * noise).sum()
    kappa = 0.5 * learning_rate * (curved + (example - curved) / batch_size) / sq
    return {
        "batch_size_bound": float((sq + noise.sum()) / sq),
        "curvature_bound": float(example / curved),
        "kappa": float(kappa),
        "largest_curvature": 2.0,
    }


def test_intervals_hold_the_truth():
    # 120 draws at 95 %: fewer than 105 hits have a chance below 1e-3 if coverage is 0.95.
    expected = truth(16, 0.3)
    hits = dict.fromkeys(expected, 0)
    for seed in range(120):
        found = step_limits(Point(), quadratic, targets(96, seed), learning_rate=0.3, batch_size=16)
        for name, value in expected.items():
            interval = getattr(found, name)
            hits[name] += interval.low <= value * (1 + 1e-6) and value * (1 - 1e-6) <= interval.high
    assert all(count >= 105 for count in hits.values()), hits


def test_what_the_limits_are_made_of_is_unbiased():
    # Means of 200 draws, within four standard errors of the closed forms.
    G = CURVATURE
    curved = float((CURVATURE * G.square()).sum())
    expected = {
        "sq_gradient": float(G.square().sum()),
        "gradient_curvature": curved,
        "example_curvature": curved + float((CURVATURE * (2 * CURVATURE).square()).sum()),
    }
    draws = {name: [] for name in expected}
    for seed in range(200):
        found = step_limits(Point(), quadratic, targets(48, seed), learning_rate=0.3)
        for name, values in draws.items():
            values.append(getattr(found, name))
    for name, drawn in draws.items():
        values = torch.tensor(drawn)
        assert abs(float(values.mean()) - expected[name]) < 4 * float(values.std()) / len(values) ** 0.5, name


def test_kappa_is_the_share_of_progress_that_real_steps_lose():
    rate = 0.3
    kappa = truth(16, rate)["kappa"]
    generator = torch.Generator().manual_seed(1)
    steps = CURVATURE * (1 - 2.0 * torch.randn(40_000, 16, 5, dtype=torch.float64, generator=generator)).mean(1)
    progress = (0.5 * CURVATURE * (1 - (1 - rate * steps).square())).sum(1).mean()
    assert float(1 - progress / (rate * CURVATURE.square().sum())) == pytest.approx(kappa, abs=0.02)


def test_a_preconditioner_is_a_change_of_variables():
    root = torch.tensor([3.0, 1.0, 0.5, 2.0, 0.1], dtype=torch.float64)
    plain = step_limits(Point(), quadratic, targets(400, 3), learning_rate=0.01, preconditioner=[root.square()])
    changed = step_limits(Point(scale=root), quadratic, targets(400, 3), learning_rate=0.01)
    for name in ("kappa", "batch_size_bound", "curvature_bound", "largest_curvature"):
        assert getattr(plain, name).value == pytest.approx(getattr(changed, name).value, rel=1e-5), name


def test_a_preconditioner_is_that_of_an_optimizer_too():
    model = Point()
    adam = torch.optim.Adam(model.parameters(), lr=0.0)
    quadratic(model, targets(64, 5)).mean().backward()
    adam.step()
    moment = adam.state[model.w]["exp_avg_sq"] / (1 - 0.999)
    given = [adam, {model.w: moment}, [1 / (moment.sqrt() + 1e-8)]]
    one, two, three = (
        step_limits(model, quadratic, targets(64, 3), learning_rate=0.01, preconditioner=p) for p in given
    )
    assert one.kappa.value == pytest.approx(three.kappa.value)
    assert two.kappa.value == pytest.approx(three.kappa.value)


def test_no_interval_of_the_bound_reaches_below_one_example():
    for seed in range(10):  # hardly any noise, and hardly anything else
        for spread in (1e-3, 1e3):
            found = step_limits(Point(), quadratic, targets(40, seed, spread), learning_rate=0.01)
            assert found.batch_size_bound.low >= 1


def test_rules_agree_at_the_batch_in_use_and_the_tuned_rule_is_the_law():
    found = step_limits(Point(), quadratic, targets(4096, 0), learning_rate=0.05, batch_size=16)
    for rule in LearningRateRule:
        assert found.relative_progress(16, rule) == pytest.approx(1)
    bound = found.batch_size_bound.value
    assert found.relative_progress(64, LearningRateRule.TUNED) == pytest.approx((bound + 15) / (bound + 63))
    for rule in LearningRateRule:
        limit = found.limit(rule, tolerance=0.2)
        if math.isfinite(limit.batch_size) and limit.binds is not Limit.STABILITY:
            assert found.relative_progress(limit.batch_size, rule) == pytest.approx(0.8, abs=1e-6)
            assert limit.low <= limit.batch_size <= limit.high


@pytest.mark.parametrize(
    ("learning_rate", "spread", "rule", "binds"),
    [
        (0.01, 2.0, LearningRateRule.TUNED, Limit.NOISE),
        (0.01, 2.0, LearningRateRule.FIXED, Limit.RULE),
        (0.01, 2.0, LearningRateRule.SQUARE_ROOT, Limit.RULE),
        (0.01, 0.1, LearningRateRule.LINEAR, Limit.CURVATURE),
    ],
)
def test_what_binds(learning_rate, spread, rule, binds):
    found = step_limits(Point(), quadratic, targets(4096, 0, spread), learning_rate=learning_rate, batch_size=16)
    assert found.limit(rule).binds is binds


def test_a_step_that_may_make_no_progress_leaves_the_rules_undecided():
    found = step_limits(Point(), quadratic, targets(64, 0), learning_rate=0.9, batch_size=1)
    assert found.kappa.high >= 1
    assert found.limit(LearningRateRule.LINEAR).binds is Limit.UNDECIDED
    assert "undecided" in str(found)


def test_beyond_the_stable_learning_rate_nothing_is_promised():
    found = step_limits(Point(), quadratic, targets(4096, 0, 0.1), learning_rate=0.1, batch_size=16)
    assert found.relative_progress(16 * 20, LearningRateRule.LINEAR) == 0.0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(8, 24), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        q, k, v = self.inner(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).mean(1))


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_nothing_of_the_model_is_changed_and_fused_attention_works():
    model = Attention().train()
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(64, 5, 8, generator=generator),
        torch.randint(0, 3, (64,), generator=generator),
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    storages = [p.data_ptr() for p in model.parameters()]
    state = torch.get_rng_state()
    found = vg.step_limits(model, cross_entropy, batch, learning_rate=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert storages == [p.data_ptr() for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert found.kappa.low <= found.kappa.value <= found.kappa.high
    assert "noise" in str(found)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": 0.1, "momentum": 1.0}, "momentum"),
        ({"learning_rate": 0.1, "confidence": 1.0}, "confidence"),
        ({"learning_rate": 0.1, "batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.1, "preconditioner": [torch.ones(4)]}, "preconditioner"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        step_limits(Point(), quadratic, targets(64, 0), **arguments)


def test_a_batch_that_is_too_small_or_has_no_gradient_is_refused():
    with pytest.raises(ValueError, match="at least 32 examples"):
        step_limits(Point(), quadratic, targets(8, 0), learning_rate=0.1)
    model = Point()
    with torch.no_grad():
        model.w.zero_()
    with pytest.raises(ValueError, match="gradients of the batch are zero"):
        step_limits(model, quadratic, torch.zeros(64, 5, dtype=torch.float64), learning_rate=0.1)


def test_batch_norm_in_training_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="BatchNorm"):
        step_limits(model, cross_entropy, (torch.randn(64, 4), torch.zeros(64, dtype=torch.long)), learning_rate=0.1)


def test_fieller_of_a_well_known_denominator_is_the_usual_interval_and_unbounded_otherwise():
    low, high = fieller(2.0, 1.0, [[1e-6, 0.0], [0.0, 1e-12]], 2.0)
    assert (low, high) == pytest.approx((2 - 2e-3, 2 + 2e-3), abs=1e-5)
    low, high = fieller(2.0, 0.1, [[1e-6, 0.0], [0.0, 0.04]], 2.0)
    assert high == math.inf
    assert 0 < low < 20


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2)

    def forward(self, tokens):
        return self.out(self.table(tokens).mean(1))


@pytest.mark.parametrize(
    ("model", "batch", "said"),
    [
        (nn.Linear(4, 2).bfloat16(), (torch.randn(64, 4).bfloat16(), torch.zeros(64, dtype=torch.long)), "bfloat16"),
        (nn.Linear(4, 2), (torch.full((64, 4), math.nan), torch.zeros(64, dtype=torch.long)), "not finite"),
        (Table(), (torch.zeros(64, 3, dtype=torch.long), torch.zeros(64, dtype=torch.long)), "second derivatives"),
    ],
    ids=["16 bits", "not finite", "sparse table"],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(model, batch, said):
    with pytest.raises(ValueError, match=said):
        step_limits(model, cross_entropy, batch, learning_rate=0.1)


def test_other_batches_of_other_sizes_on_one_model_and_no_hook_of_an_optimizer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def step(p):
        raise AssertionError("an optimizer's hook ran")

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    before = [p.clone() for p in model.parameters()]
    for count in (64, 33, 100):
        batch = torch.randn(count, 4), torch.randint(3, (count,))
        assert step_limits(model, cross_entropy, batch, learning_rate=0.1).examples == count
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(("count", "lines_drawn"), [(4096, 2), (64, 1)])
def test_the_picture_and_the_table_say_what_the_numbers_say(count, lines_drawn):
    found = step_limits(Point(), quadratic, targets(count, 1), learning_rate=0.3, batch_size=16)
    (axes,) = found.plot().axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    drawn = 0
    for rule in (LearningRateRule.TUNED, LearningRateRule.LINEAR):
        if found.limit(rule).binds is Limit.UNDECIDED:
            assert not len(lines[f"learning rate {rule.value}: undecided"].get_xdata())
            continue
        sizes, shown = lines[f"learning rate {rule.value}"].get_data()
        assert np.allclose(shown, [100 * found.relative_progress(size, rule) for size in sizes])
        drawn += 1
        for size in (4, 16, 64):
            interval = found.progress_interval(size, rule)
            assert interval.low <= interval.value <= interval.high
    assert drawn == lines_drawn  # a few examples cannot tell whether the step makes progress
    assert lines["in use: B = 16"].get_data()[0] == [16]
    text = found._repr_html_()
    for rule in LearningRateRule:
        assert rule.value in text
    assert "Progress per example" in text
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
        found.plot(tolerance=1.5)
