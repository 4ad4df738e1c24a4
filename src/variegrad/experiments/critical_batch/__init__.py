"""Which number predicts the critical batch size: full sweeps over B, branches, and predictions from one batch.

What is measured, predicted and claimed is declared in decision 0020; `cells` and `measure` compute it, `judge` and
`findings` compare.
"""

from __future__ import annotations

from typing import Any

from variegrad.experiments.critical_batch.cells import NAME, VERSION, cells, group, run
from variegrad.experiments.critical_batch.findings import plot, summary
from variegrad.experiments.critical_batch.measure import SLOWER
from variegrad.experiments.critical_batch.tasks import TEXT, settled
from variegrad.experiments.experiment import Experiment

HALF_OCTAVES = [12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384]
CHEAP: dict[str, Any] = {
    "pool": 1, "evaluated": 512, "length": 4096, "window": 1536, "windows": 12, "branch_windows": 16, "spacing": 2,
    "repeats": 2, "tuned_batch_sizes": [8, 16, 32, 64, 128, 256, 512], "batch_sizes": HALF_OCTAVES,
    "optimizers": ["sgd", "momentum", "adamw", "sign", "muon"], "slower": list(SLOWER),
}  # fmt: skip
DEAR = {
    **CHEAP, "evaluated": 256, "length": 2048, "window": 512, "windows": 4, "branch_windows": 8, "slower": [1, 16],
    "repeats": 1, "tuned_batch_sizes": [8, 16, 32, 64, 128], "batch_sizes": [16, 32, 64, 128],
    "optimizers": ["sgd", "adamw"],
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "a9a logistic": {**CHEAP, "source": "a9a", "max_examples": 16384, "network": "logistic", "held_out": False,
                     "optimizers": ["sgd", "momentum", "adamw", "sign"]},
    "digits MLP": {**CHEAP, "source": "digits", "max_examples": 2000, "network": "mlp:32:tanh", "held_out": False},
    "MNIST CNN": {**DEAR, "source": "mnist", "max_examples": 8192, "network": "mnist-cnn:4", "pool": 2,
                  "held_out": False},
    "digits logistic": {**CHEAP, "source": "digits", "max_examples": 2000, "network": "logistic", "windows": 32,
                        "held_out": True},
    "MNIST MLP": {**CHEAP, "source": "mnist", "max_examples": 8192, "network": "mlp:32:relu", "pool": 2,
                  "windows": 32, "held_out": True},
    "CIFAR CNN": {**DEAR, "source": "cifar10", "max_examples": 8192, "network": "groupnorm-cnn:8", "pool": 2,
                  "held_out": True},
    "character GPT": {**DEAR, "source": TEXT, "max_examples": 16384, "network": "gpt:2x32", "pool": 16,
                      "held_out": True},
}  # fmt: skip
SMOKE = {
    "pool": 1, "evaluated": 64, "length": 64, "window": 128, "windows": 4, "branch_windows": 4, "spacing": 4,
    "tuned_batch_sizes": [8, 32], "batch_sizes": [16, 32], "optimizers": ["sgd", "adamw"], "slower": [1],
    "source": "digits", "max_examples": 128, "repeats": 2,
}  # fmt: skip
LARGE = {
    "length": 65536, "window": 6144, "windows": 32, "branch_windows": 32, "spacing": 1, "evaluated": 2048, "repeats": 4,
    "tuned_batch_sizes": [8 * 2**j for j in range(9)], "batch_sizes": [*HALF_OCTAVES, 512, 768],
    "optimizers": ["sgd", "momentum", "adamw", "sign", "muon"], "slower": list(SLOWER),
}  # fmt: skip
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"seeds": 2, "tasks": {
        "digits logistic": {**SMOKE, "network": "logistic", "held_out": False, "optimizers": ["sgd"]},
        "digits MLP": {**SMOKE, "network": "mlp:4:tanh", "held_out": True, "optimizers": ["adamw"]},
    }},
    "small": {"seeds": 4, "tasks": TASKS},
    "paper": {"seeds": 8, "tasks": {
        name: {**task, **LARGE, "optimizers": task["optimizers"] if name == "a9a logistic" else LARGE["optimizers"],
               **({"pool": 1, "network": "mnist-cnn:32"} if name == "MNIST CNN" else {}),
               **({"network": "groupnorm-cnn:32"} if name == "CIFAR CNN" else {}),
               **({"network": "gpt:5x128", "pool": 64} if name == "character GPT" else {})}
        for name, task in TASKS.items()
    }},
}  # fmt: skip

EXPERIMENT = Experiment(
    name=NAME,
    version=VERSION,
    title="Which number predicts the critical batch size",
    claim="At a learning rate tuned for each batch size B_D limits it; at other rates, stability and curvature.",
    choices="Declared in decision 0020 before any run; B₀ = 8, truth by sweeps over the batch size; half of the tasks "
    "served to freeze the rule. Small profile: networks of 124 to 30,000 weights, up to 16,000 examples.",
    profiles=PROFILES, cells=cells, run=run, plot=plot, summary=summary, group=group, settled=settled,
)  # fmt: skip
