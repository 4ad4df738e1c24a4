"""Are the limits of a step right, and what do they cost? Three tables, with a dated report.

    python benchmarks/step_limits.py                 # all of it, some minutes
    python benchmarks/step_limits.py --draws 20      # quick

1. κ by `step_limits` and by second derivatives of autograd, beside the share of first-order progress that real SGD
   steps of batch 16 lose (600 steps from one checkpoint; digits, a ReLU network).
2. Coverage of the 95 % intervals of B_D, B_H, κ (against autograd's, on a tanh network, where there are no kinks) and
   λ_max, over independent batches.
3. Time in plain steps (one gradient of the same batch), median of interleaved rounds.
"""

import argparse
import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from overhead import machine
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from variegrad.decision import step_limits
from variegrad.problems import cuda_convnet, load, mnist_cnn, resnet20

HERE = Path(__file__).parent
BATCH = 16


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def digits(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), activation(), nn.Linear(32, 10)), load("digits", seed=0).train.tensors


def trained(model, data, updates, generator):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(updates):
        rows = torch.randint(len(data[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        losses(model, [column[rows] for column in data]).mean().backward()
        optimizer.step()


def by_autograd(model, data, rate):
    """B_D, B_H, κ and λ_max of the whole data set, from second derivatives."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def mean(w):
        return F.cross_entropy(functional_call(model, w, (data[0],)), data[1])

    def one(w, x, y):
        return F.cross_entropy(functional_call(model, w, (x[None],)), y[None])

    def hessian(v):
        return jvp(grad(mean), (weights,), (v,))[1]

    def dot(a, b):
        return sum((a[k] * b[k]).sum() for k in a)

    G = grad(mean)(weights)
    rows = vmap(grad(one), (None, 0, 0))(weights, *data)
    images = vmap(hessian, chunk_size=64)(rows)
    sq, curved = dot(G, G), dot(G, hessian(G))
    second = sum(v.square().flatten(1).sum(1) for v in rows.values()).mean()
    example = sum((rows[k] * images[k]).flatten(1).sum(1) for k in rows).mean()
    v = {name: torch.randn_like(w) for name, w in weights.items()}
    for _ in range(100):
        norm = dot(v, v).sqrt()
        v = hessian({name: part / norm for name, part in v.items()})
    return {
        "batch_size_bound": float(second / sq),
        "curvature_bound": float(example / curved),
        "kappa": float(0.5 * rate * (curved + (example - curved) / BATCH) / sq),
        "largest_curvature": float(dot(v, v).sqrt()),
    }


def by_real_steps(model, data, rate, steps, generator):
    """The share of first-order progress that steps of the loop lose, with its standard error."""
    weights = list(model.parameters())
    with torch.no_grad():
        start = float(losses(model, data).mean())
    G = torch.autograd.grad(losses(model, data).mean(), weights)
    sq = float(sum(g.square().sum() for g in G))
    lost = []
    for _ in range(steps):
        rows = torch.randint(len(data[0]), (BATCH,), generator=generator)
        step = torch.autograd.grad(losses(model, [column[rows] for column in data]).mean(), weights)
        found = [p.data for p in weights]
        for p, before, g in zip(weights, found, step, strict=True):
            p.data = before - rate * g
        with torch.no_grad():
            progress = start - float(losses(model, data).mean())
        for p, before in zip(weights, found, strict=True):
            p.data = before
        first = rate * float(sum((a * b).sum() for a, b in zip(G, step, strict=True)))
        lost.append((first - progress) / (rate * sq))
    return statistics.fmean(lost), statistics.stdev(lost) / len(lost) ** 0.5


def kappa_table(steps):
    model, data = digits(nn.ReLU)
    generator, rows, done = torch.Generator().manual_seed(1), [], 0
    for updates in (0, 20, 100, 400):
        trained(model, data, updates - done, generator)
        done = updates
        for rate in (0.05, 0.2):
            real, error = by_real_steps(model, data, rate, steps, generator)
            found = step_limits(model, losses, data, learning_rate=rate, batch_size=BATCH).kappa
            rows.append(
                {
                    "updates": updates,
                    "learning_rate": rate,
                    "real": real,
                    "standard_error": error,
                    "step_limits": [found.value, found.low, found.high],
                    "autograd": by_autograd(model, data, rate)["kappa"],
                }
            )
            print(rows[-1], flush=True)
    return rows


def coverage_table(draws):
    model, data = digits(nn.Tanh)
    generator, rows, done = torch.Generator().manual_seed(1), [], 0
    for updates in (0, 100, 1000):
        trained(model, data, updates - done, generator)
        done = updates
        truth = by_autograd(model, data, 0.2)
        for size in (64, 256):
            held = dict.fromkeys(truth, 0)
            for _ in range(draws):
                chosen = torch.randint(len(data[0]), (size,), generator=generator)
                batch = [column[chosen] for column in data]
                found = step_limits(model, losses, batch, learning_rate=0.2, batch_size=BATCH)
                for name, value in truth.items():
                    held[name] += getattr(found, name).low <= value <= getattr(found, name).high
            rows.append({"updates": updates, "examples": size} | {name: hits / draws for name, hits in held.items()})
            print(rows[-1], flush=True)
    return rows


def cost_table(rounds):
    images = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    flat = torch.randn(128, 784), torch.randint(10, (128,))
    grey = torch.randn(128, 1, 28, 28), flat[1]
    mlp = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    table = {
        "MNIST CNN": (mnist_cnn(seed=0), grey),
        "ResNet-20": (resnet20(seed=0), images),
        "cuda-convnet": (cuda_convnet(seed=0), images),
        "MLP 784-1024-1024-10": (mlp, flat),
    }
    rows = []
    for name, (model, batch) in table.items():
        weights = list(model.parameters())
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            torch.autograd.grad(losses(model, batch).mean(), weights)
            middle = time.perf_counter()
            step_limits(model, losses, batch, learning_rate=0.1)
            times.append((middle - start, time.perf_counter() - middle))
        ratio = statistics.median(ours / plain for plain, ours in times[1:])
        rows.append({"model": name, "plain_ms": 1e3 * statistics.median(t[0] for t in times[1:]), "plain_steps": ratio})
        print(rows[-1], flush=True)
    return rows


def written(found):
    lines = [
        f"# Limits of a step, {found['date']}",
        "",
        f"`python benchmarks/step_limits.py`, {found['machine']['cpu']}, torch {found['machine']['versions']['torch']}",
        "",
    ]
    lines += [
        "## κ beside real steps",
        "",
        "| updates | η | real steps | `step_limits` | autograd |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['updates']} | {r['learning_rate']} | {r['real']:.3f} ± {r['standard_error']:.3f} | "
        f"{r['step_limits'][0]:.3f} [{r['step_limits'][1]:.3f}, {r['step_limits'][2]:.3f}] | {r['autograd']:.3f} |"
        for r in found["kappa"]
    ]
    lines += [
        "",
        "## Coverage of 95 % intervals",
        "",
        "| updates | examples | B_D | B_H | κ | λ_max |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['updates']} | {r['examples']} | {r['batch_size_bound']:.2f} | {r['curvature_bound']:.2f} "
        f"| {r['kappa']:.2f} | {r['largest_curvature']:.2f} |"
        for r in found["coverage"]
    ]
    lines += ["", "## Cost, batch 128", "", "| model | plain step | `step_limits` |", "|---|---|---|"]
    lines += [f"| {r['model']} | {r['plain_ms']:.0f} ms | {r['plain_steps']:.1f} plain steps |" for r in found["cost"]]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "cost": cost_table(arguments.rounds),
        "kappa": kappa_table(arguments.steps),
        "coverage": coverage_table(arguments.draws),
    }
    target = HERE / "reports" / f"step-limits-{found['date']}"
    target.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    target.with_suffix(".md").write_text(written(found))


if __name__ == "__main__":
    main()
