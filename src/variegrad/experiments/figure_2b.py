"""Figure 2b: the loss ratio under r-replication along the passes, cuda-convnet on CIFAR-10."""

from __future__ import annotations

from typing import Any

from variegrad.experiments.loss_ratio import loss_ratio

SMALL: dict[str, Any] = {
    "problem": "cifar10", "without_data": "digits", "max_examples": 512, "network": "convnet:8",
    "replications": [1, 8, 64], "batch_sizes": [16, 512], "drops": [0.0, 0.5], "grid": [-14, -12, -10, -8, -6],
    "passes": 8, "points": 4, "seeds": 3, "tuning": 1,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:8:relu", "replications": [1, 8],
              "batch_sizes": [4, 16], "grid": [-4, -2], "passes": 1, "points": 1, "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "max_examples": 50_000, "network": "convnet:64", "replications": [1, 2, 4, 8, 32, 128],
              "passes": 100, "points": 100},
}  # fmt: skip

EXPERIMENT = loss_ratio(
    name="figure-2b",
    title="Figure 2b: replication and DropConnect, cuda-convnet",
    choices="The small profile has 512 training images and an eighth of the network's channels. Draws with "
    "replacement, no augmentation, no weight decay; DropConnect with p = 0.5 on each example's gradient, "
    "rescaled. Losses over the replicated training set; one step size for each arm, of least mean training "
    "loss.",
    profiles=PROFILES,
)
