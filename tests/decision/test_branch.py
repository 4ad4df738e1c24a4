"""The branch check finds the critical batch size of loops whose answer is known, within its budget, and resumes."""

import json
import math

import numpy as np
import pytest
import torch

import variegrad as vg
from variegrad.decision import LearningRateRule, Verdict

B, WINDOW = 16, 16 * 256


class Quadratic:
    """SGD on a diagonal quadratic with Gaussian noise: expected losses have a closed recursion."""

    def __init__(self, seed, *, learning_rate=None, noise=None):
        draw = np.random.default_rng(seed)
        self.seed = seed
        self.h = np.exp(draw.uniform(-4, 0, 20))
        self.start = draw.standard_normal(20)
        self.noise = math.exp(draw.uniform(-2, 1)) if noise is None else noise
        self.learning_rate = math.exp(draw.uniform(-4, -0.3)) if learning_rate is None else learning_rate
        self.start_loss = float(0.5 * (self.h * self.start**2).sum())

    def __call__(self, trial):
        step, w = self.learning_rate * trial.learning_rate_factor, self.start
        noise = np.random.default_rng([self.seed, trial.seed]).standard_normal((WINDOW // B, len(w)))
        for z in noise.reshape(trial.updates, trial.k, -1).mean(1):  # the same examples for every batch size
            w = w - step * (self.h * w + self.noise / math.sqrt(B) * z)
        return float(0.5 * (self.h * w**2).sum())

    def progress(self, k, rule):
        step, mean, variance = self.learning_rate * rule.factor(k), self.start, np.zeros(20)
        for _ in range(WINDOW // (B * k)):
            mean = mean * (1 - step * self.h)
            variance = variance * (1 - step * self.h) ** 2 + step**2 * self.noise**2 / (B * k)
        return self.start_loss - 0.5 * (self.h * (mean**2 + variance)).sum()

    def critical(self, rule, tolerance=0.1):
        """By a sweep of expected progress, interpolated in log B."""
        base, before, share = self.progress(1, rule), 1, 1.0
        for k in (2, 4, 8, 16, 32, 64):
            found = self.progress(k, rule) / base
            if found < 1 - tolerance:
                return B * before * 2 ** ((share - (1 - tolerance)) / (share - found))
            before, share = k, found
        return math.inf


@pytest.mark.parametrize("rule", [LearningRateRule.LINEAR, LearningRateRule.SQUARE_ROOT])
def test_the_interval_holds_the_critical_batch_and_the_estimate_is_near(rule):
    held, near, cells = [], [], 0
    for seed in range(60):
        loop = Quadratic(seed)
        if loop.progress(1, rule) <= 0.02 * loop.start_loss:
            continue
        cells += 1
        truth = loop.critical(rule)
        found = vg.branch(loop, batch_size=B, start_loss=loop.start_loss, window=WINDOW, rule=rule)
        held.append(found.low <= truth <= found.high)
        if math.isfinite(truth) and math.isfinite(found.high):
            near.append(abs(math.log2(found.critical / truth)) <= 0.5)
    assert cells >= 50
    assert np.mean(held) >= 0.94
    assert np.mean(near) >= 0.9


def test_a_null_effect_is_rarely_refused_and_a_doubled_error_rarely_accepted():
    # Progress at k is exactly the share 0.9 of the base: both wrong answers are errors, each at 2.5 % at most.
    draw = np.random.default_rng(0)
    refused = accepted = 0
    for seed in range(300):
        noise = draw.standard_normal(200)

        def run(trial, noise=noise):
            share = 1.0 if trial.k == 1 else 0.9
            return 1.0 - share * 0.5 + (0.05 * noise[trial.seed * 2 + (trial.k > 1)])

        found = vg.branch(run, batch_size=B, start_loss=1.0, window=8 * B, windows=32)
        refused += found.tested[0].verdict is Verdict.REFUSED
        accepted += found.tested[0].verdict is Verdict.ACCEPTED
        assert found.tested[0].windows == 32 or found.tested[0].verdict is not Verdict.UNDECIDED, seed
    # 2.5 % of 300 is 7.5 ± 2.7.
    assert refused <= 16
    assert accepted <= 16


def test_a_finished_window_is_never_trained_twice_and_the_ledger_resumes(tmp_path):
    loop, calls = Quadratic(1), []

    def run(trial):
        calls.append((trial.k, trial.seed))
        return loop(trial)

    ledger = tmp_path / "new" / "windows.jsonl"  # in a folder that is made
    whole = vg.branch(run, batch_size=B, start_loss=loop.start_loss, window=WINDOW, ledger=ledger)
    assert len(calls) == len(set(calls))
    assert whole.examples == len(calls) * WINDOW
    with ledger.open("a") as file:
        file.write("[2, 99")  # cut off by a kill
    first, lines = len(calls), len(ledger.read_text().splitlines())
    again = vg.branch(run, batch_size=B, start_loss=loop.start_loss, window=WINDOW, ledger=ledger)
    assert len(calls) == first
    assert str(again) == str(whole)
    assert ledger.read_text().endswith("[2, 99\n")  # what comes next is a line of its own
    assert len(ledger.read_text().splitlines()) == lines
    for other in ({"start_loss": loop.start_loss + 1}, {"settings": {"learning_rate": 0.2}}):
        with pytest.raises(ValueError, match="does not contain windows of this call"):
            vg.branch(
                run, **({"batch_size": B, "start_loss": loop.start_loss, "window": WINDOW, "ledger": ledger} | other)
            )
    assert json.loads(ledger.read_text().splitlines()[0])["batch_size"] == B


def test_an_interrupted_check_keeps_its_windows(tmp_path):
    loop, calls = Quadratic(1), []

    def run(trial):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append((trial.k, trial.seed))
        return loop(trial)

    arguments = {"batch_size": B, "start_loss": loop.start_loss, "window": WINDOW, "ledger": tmp_path / "windows.jsonl"}
    with pytest.raises(KeyboardInterrupt):
        vg.branch(run, **arguments)
    rest = []
    vg.branch(lambda trial: rest.append((trial.k, trial.seed)) or loop(trial), **arguments)
    assert not set(rest) & set(calls)


def test_the_budget_is_kept_and_spent_means_undecided():
    loop = Quadratic(1)
    found = vg.branch(loop, batch_size=B, start_loss=loop.start_loss, window=WINDOW, budget=3 * WINDOW)
    assert found.examples <= 3 * WINDOW
    assert found.stopped == "budget spent"
    assert (found.low, found.high) == (B, math.inf)


def test_a_base_without_progress_decides_nothing():
    found = vg.branch(lambda trial: 1.0 + 0.01 * trial.seed, batch_size=B, start_loss=1.0, window=8 * B, windows=4)
    assert found.low == B
    assert found.high == math.inf
    assert all(tested.verdict is Verdict.UNDECIDED for tested in found.tested)


def rises(trial):  # the base loses, and a larger batch loses more
    return 1.0 + 0.1 * trial.k + 0.001 * trial.seed


def stands(trial):
    return 1.0 + 0.01 * (-1) ** trial.seed


@pytest.mark.parametrize("run", [rises, stands])
def test_without_progress_at_the_present_batch_no_batch_is_named(run):
    found = vg.branch(run, batch_size=B, start_loss=1.0, window=64 * B, windows=8)
    assert str(found).startswith("critical batch size: undecided")
    assert "batch 16 itself makes no clear progress" in found.stopped
    assert "nan" not in str(found)
    assert len(found.tested) == 1  # no other batch size can be compared either
    assert math.isnan(found.critical)
    ratio = found.tested[0].relative_progress
    assert ratio.low == -math.inf
    assert ratio.high == math.inf


@pytest.mark.parametrize("windows", [0, 1, 5])
def test_a_budget_that_tests_nothing_names_no_batch(windows):
    found = vg.branch(stands, batch_size=B, start_loss=1.0, window=64 * B, budget=64 * B * windows)
    assert found.stopped == "budget spent"
    assert str(found).startswith("critical batch size: undecided")
    assert math.isnan(found.critical)


@pytest.mark.parametrize("start", [1.0, 0.0, -5.0])
def test_the_size_of_a_divergence_does_not_hide_it(start):
    draw = np.random.default_rng(0)

    def run(trial):
        blown = math.exp(draw.uniform(0, 200)) if trial.k >= 4 else 0.0
        return start - 0.5 + 0.01 * trial.seed + blown

    found = vg.branch(run, batch_size=B, start_loss=start, window=64 * B)
    assert (found.low, found.high) == (2 * B, 4 * B)
    assert found.tested[-1].windows == 4


@pytest.mark.parametrize(
    ("rule", "keeps"),
    [(LearningRateRule.SQUARE_ROOT, "71%"), (LearningRateRule.FIXED, "50%"), (LearningRateRule.LINEAR, "")],
)
def test_a_loss_that_the_rule_makes_alone_is_told(rule, keeps):
    def run(trial):  # no noise and no curvature: progress is the sum of the learning rates
        return 1.0 - 0.01 * trial.updates * trial.learning_rate_factor + 1e-4 * trial.seed

    found = vg.branch(run, batch_size=B, start_loss=1.0, window=64 * B, rule=rule)
    told = f"a step far below the tuned one keeps {keeps} at batch 32" in str(found)
    assert told == bool(keeps)
    assert math.isfinite(found.high) == bool(keeps)


def test_a_branch_that_diverges_is_refused():
    found = vg.branch(
        lambda trial: math.nan if trial.k >= 4 else 0.5 + 0.001 * trial.seed,
        batch_size=B,
        start_loss=1.0,
        window=32 * B,
    )
    assert (found.low, found.high) == (2 * B, 4 * B)


def test_half_lives_are_those_of_as_many_examples():
    parameter = torch.nn.Parameter(torch.zeros(1))
    trial = vg.Trial(batch_size=64, k=4, examples=640, seed=0, rule=LearningRateRule.SQUARE_ROOT, half_lives=True)
    sgd = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    trial.rescale(sgd)
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.2)
    assert sgd.param_groups[0]["momentum"] == pytest.approx(0.9**4)
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99))
    trial.rescale(adam)
    assert adam.param_groups[0]["betas"] == pytest.approx((0.9**4, 0.99**4))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"window": 100}, "window"),
        ({"window": B}, "window"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"confidence": 1.0}, "confidence"),
        ({"windows": 3}, "windows"),
        ({"rule": LearningRateRule.TUNED}, "rule"),
        ({"start_loss": math.nan}, "start_loss"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_trained(changed, named):
    def run(_):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=named):
        vg.branch(run, **({"batch_size": B, "start_loss": 1.0, "window": WINDOW} | changed))


def test_a_base_that_diverges_is_said():
    with pytest.raises(ValueError, match="current batch size"):
        vg.branch(lambda _: math.nan, batch_size=B, start_loss=1.0, window=WINDOW)


@pytest.mark.parametrize("content", ["", "not JSON\n", "[1, 2]\n"])
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "other.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match="does not contain windows of this call"):
        vg.branch(lambda _: 0.5, batch_size=B, start_loss=1.0, window=WINDOW, ledger=file)
    assert file.read_text() == content
