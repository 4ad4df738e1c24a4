"""Figure 2b: the loss ratio under r-replication along the passes, cuda-convnet on CIFAR-10."""

from __future__ import annotations

from typing import Any

from variegrad.experiments.loss_ratio import loss_ratio

SMALL: dict[str, Any] = {
    "problem": "cifar10/2", "without_data": "digits", "max_examples": 1024, "network": "convnet:8",
    "replications": [1, 8, 64], "batch_sizes": [16, 128], "drops": [0.0, 0.5], "grid": [-20, -16, -12, -8],
    "passes": 40, "points": 8, "seeds": 26, "tuning": 2,
}  # fmt: skip
PAPER: dict[str, Any] = {
    **SMALL, "problem": "cifar10", "max_examples": 50_000, "network": "convnet:64", "batch_sizes": [16, 512],
    "replications": [1, 2, 4, 8, 32, 128], "passes": 100, "points": 20, "seeds": 3,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:8:relu", "replications": [1, 8],
              "batch_sizes": [4, 16], "grid": [-8, -4], "passes": 1, "points": 1, "seeds": 2},
    "small": SMALL,
    "paper": PAPER,
}  # fmt: skip

EXPERIMENT = loss_ratio(
    name="figure-2b",
    title="Figure 2b: replication and DropConnect, cuda-convnet",
    choices="The small profile has 1,024 training images of 16 × 16 pixels, an eighth of the network's channels and "
    "B = 128 for 512. Draws with replacement, no augmentation, no weight decay; DropConnect with p = 0.5 on each "
    "example's gradient, rescaled, in its moment-matched form. Losses over the replicated training set; one step size "
    "for each configuration, of least mean training loss.",
    profiles=PROFILES,
)
