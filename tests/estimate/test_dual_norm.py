"""Sign methods and Muon: the bracket of 1 + (N/‖∇F‖_*)² holds, and Adam's relatives are inner products."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import variegrad as vg
from reference import loop_gradients
from variegrad.estimators import (
    Euclidean,
    Preconditioned,
    Sign,
    Spectral,
    by_layer,
    dual_norm_estimate,
    estimate_in_dual_norm,
    geometry_of,
    terms_of_groups,
)
from variegrad.estimators.dual_norm import FoldSums, sum_of

GEOMETRIES = [Sign(), Spectral()]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (3, 2, 5)])
def test_the_steepest_step_has_norm_one_and_gains_the_dual_norm(geometry, shape) -> None:
    g = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = geometry.steepest(g)
    norm = u.abs().max() if isinstance(geometry, Sign) else torch.linalg.matrix_norm(u.flatten(1), 2)
    assert float(norm) == pytest.approx(1)
    assert float((u * g).sum()) == pytest.approx(float(geometry.of(g)))


def test_steepest_of_a_zero_or_low_rank_matrix_makes_up_no_direction() -> None:
    assert not Spectral().steepest(torch.zeros(3, 4)).any()
    g = torch.outer(torch.arange(3.0), torch.ones(4))
    torch.testing.assert_close(torch.linalg.matrix_rank(Spectral().steepest(g)), torch.tensor(1))


def population(geometry, m, signal, seed):
    """Gradients G + σ∘ξ of one 12 × 20 matrix, and the truth (N, ‖G‖_*)."""
    torch.manual_seed(seed)
    spread = torch.linspace(0.5, 2, 240, dtype=torch.float64).view(12, 20)
    mean = signal * (torch.outer(torch.linspace(-1, 1, 12), torch.linspace(1, 2, 20)) + 0.2).double()
    rows = mean + spread * torch.randn(m, 12, 20, dtype=torch.float64)
    noise = spread.sum() if isinstance(geometry, Sign) else spread.square().sum(1).sqrt().sum()
    return rows, float(noise), float(geometry.of(mean))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("signal", [0.05, 0.3, 1.0])
def test_the_bracket_covers_the_bound_and_its_ends_err_to_their_sides(geometry, signal) -> None:
    covered, below, plug_in, cross = 0, 0, [], []
    draws = 60
    for seed in range(draws):
        rows, noise, norm = population(geometry, 64, signal, seed)
        sums = FoldSums(geometry)
        for start in range(0, 64, 24):
            sums.add(rows[start : start + 24], start)
        found = dual_norm_estimate(sums.terms(), geometry=geometry, count=64)
        truth = 1 + (noise / norm) ** 2
        covered += found.low <= truth <= found.high
        below += found.low <= truth
        plug_in.append(float(sums.terms().signal[0]))
        cross.append(float(sums.terms().cross.mean()))
    assert sum(plug_in) / draws >= norm >= sum(cross) / draws
    # 60 draws of a true 0.95 fall below 52 with probability 0.004.
    assert covered >= 52
    assert below >= 52


def test_both_ends_meet_as_the_batch_grows() -> None:
    rows, noise, norm = population(Sign(), 6000, 1.0, 0)
    sums = FoldSums(Sign())
    sums.add(rows, 0)
    found = dual_norm_estimate(sums.terms(), geometry=Sign(), count=6000)
    assert found.plug_in == pytest.approx(1 + (noise / norm) ** 2, rel=0.02)
    assert found.cross_fitted == pytest.approx(1 + (noise / norm) ** 2, rel=0.02)
    assert not found.cannot_tell


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_groups_of_unequal_size_estimate_the_same_noise_and_signal(geometry) -> None:
    sizes = [16, 24, 8, 32, 16, 16, 40, 8]
    noises = []
    for seed in range(40):
        rows, noise, _ = population(geometry, sum(sizes), 0.5, seed)
        means = torch.stack([part.mean(0) for part in rows.split(sizes)])
        terms = terms_of_groups(geometry, means, sizes)
        noises.append(float(terms.noise[0]))
        assert float(terms.signal[0]) == pytest.approx(float(geometry.of(rows.mean(0))))
    # √E ≥ E√: without a correction for matrices of a few groups, spectral noise is too low, never too high.
    assert sum(noises) / 40 == pytest.approx(noise, rel=0.02 if isinstance(geometry, Sign) else 0.4)
    assert sum(noises) / 40 < noise * 1.02


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LSTM(5, 4, batch_first=True), Last(), nn.Linear(4, 3)).double()
    return model, (torch.randn(40, 2, 6, dtype=torch.float64), torch.randint(3, (40,)))


class Last(nn.Module):
    def forward(self, x):
        return x[0][:, -1]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_model_is_the_sum_of_its_parameters_from_any_source(problem, geometry) -> None:
    model, batch = problem
    terms = {}
    for name, rows in loop_gradients(model, losses, batch).items():
        if geometry.covers(rows[0]):
            terms[name] = FoldSums(geometry)
            terms[name].add(rows, 0)
    expected = dual_norm_estimate(sum_of(t.terms() for t in terms.values()), geometry=geometry, count=40)
    found = estimate_in_dual_norm(model, losses, batch, geometry=geometry, per=by_layer)
    for name in ("plug_in", "cross_fitted", "low", "high", "noise"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-8)
    assert set(found.parts) == {"0", "2", "4"}
    assert found.left_out == (
        () if isinstance(geometry, Sign) else tuple(n for n, p in model.named_parameters() if p.dim() < 2)
    )


def test_a_zero_gradient_is_undefined_and_a_noiseless_one_has_bound_one() -> None:
    sums = FoldSums(Sign())
    sums.add(torch.zeros(32, 3), 0)
    assert math.isnan(dual_norm_estimate(sums.terms(), geometry=Sign(), count=32).plug_in)
    sums = FoldSums(Sign())
    sums.add(torch.ones(32, 3), 0)
    found = dual_norm_estimate(sums.terms(), geometry=Sign(), count=32)
    assert found.low == found.plug_in == found.high == found.cross_fitted == 1


@pytest.mark.parametrize(
    ("geometry", "count", "error", "text"),
    [(Euclidean(), 40, TypeError, "estimate"), (Sign(), 20, ValueError, "at least 32")],
)
def test_what_cannot_be_estimated_is_refused(problem, geometry, count, error, text) -> None:
    model, (x, y) = problem
    with pytest.raises(error, match=text):
        estimate_in_dual_norm(model, losses, (x[:count], y[:count]), geometry=geometry)


ADAPTIVE = [
    (torch.optim.Adam, {}), (torch.optim.AdamW, {"amsgrad": True}), (torch.optim.NAdam, {}), (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}), (torch.optim.RMSprop, {}), (torch.optim.RMSprop, {"centered": True}),
    (torch.optim.Adagrad, {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), ADAPTIVE)
def test_the_preconditioner_is_what_the_optimizer_divides_by(kind, settings) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = kind([parameter], lr=1e-3, **settings)
    gradients = torch.randn(40, 5, dtype=torch.float64)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    root = Preconditioned.of(optimizer, {"p": parameter}).roots["p"]
    # A further step with a gradient that is e_j tiny moves each coordinate in proportion to P: compare the ratios.
    before, state = parameter.detach().clone(), optimizer.state[parameter]
    for name in ("exp_avg", "momentum_buffer"):
        if name in state:
            state[name].fill_(1.0)
    parameter.grad = torch.full_like(parameter, 1e-9)
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = (1.0 - 1e-12, group["betas"][1])
    optimizer.step()
    moved = (before - parameter.detach()).abs()
    expected = root.square()
    torch.testing.assert_close(moved / moved.sum(), expected / expected.sum(), rtol=3e-3, atol=0)


def test_geometry_of_an_optimizer_by_its_kind_and_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    parameters = dict(model.named_parameters())
    kinds = lambda o: {name: type(g).__name__ for name, g in geometry_of(o, parameters).items()}  # noqa: E731
    assert set(kinds(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)).values()) == {"Euclidean"}

    class Lion(torch.optim.SGD):
        pass

    assert set(kinds(Lion(model.parameters(), 0.1)).values()) == {"Sign"}

    class MuonWithAdam(torch.optim.Adam):
        pass

    both = MuonWithAdam(
        [{"params": [model[0].weight], "use_muon": True}, {"params": [model[1].weight], "use_muon": False}]
    )
    (model(torch.ones(1, 3)).sum()).backward()
    both.step()
    assert kinds(both) == {"0.weight": "Spectral", "1.weight": "Preconditioned"}
    with pytest.raises(TypeError, match="LBFGS has none"):
        closed = torch.optim.LBFGS(model.parameters())
        closed.step(lambda: model(torch.ones(1, 3)).sum())
        geometry_of(closed, parameters)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_preconditioned_squared_norms_of_sparse_and_complex_gradients() -> None:
    root = Preconditioned({"t": torch.rand(6, 2).double()})
    gradient = torch.sparse_coo_tensor(torch.tensor([[1, 4, 1]]), torch.randn(3, 2), (6, 2), check_invariants=True)
    torch.testing.assert_close(root.sq_norm("t", gradient), root.sq_norm("t", gradient.to_dense()))
    torch.testing.assert_close(Euclidean().sq_norm("t", gradient), Euclidean().sq_norm("t", gradient.to_dense()))
    waves = nn.Parameter(torch.randn(6, dtype=torch.cfloat))
    pairs = torch.rand(6, 2)
    found = Preconditioned.of({waves: pairs}, {"w": waves}).sq_norm("w", waves.detach())
    truth = (torch.view_as_real(waves.detach()).square() / (pairs.sqrt() + 1e-8)).sum()
    assert float(found) == pytest.approx(float(truth), rel=1e-5)
    assert float(Euclidean().sq_norm("w", waves.detach())) == pytest.approx(
        float(waves.detach().abs().square().sum()), rel=1e-5
    )


def test_estimate_and_the_geometry_of_adam_agree(problem) -> None:
    model, batch = problem
    adam = torch.optim.Adam(model.parameters())
    losses(model, batch).mean().backward()
    adam.step()
    roots = geometry_of(adam, dict(model.named_parameters()))["0.weight"].roots
    rows = torch.cat([(r * roots[n]).flatten(1) for n, r in loop_gradients(model, losses, batch).items()], 1)
    gram = rows @ rows.T
    rho = (gram.sum() - gram.trace()) / 39 / gram.trace()
    assert vg.estimate(model, losses, batch, preconditioner=adam).coherence == pytest.approx(float(rho), rel=1e-8)
