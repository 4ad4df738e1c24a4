"""Figure 2c: the loss ratio under r-replication along the passes, ResNet-20 with group normalisation on CIFAR-10."""

from __future__ import annotations

from variegrad.experiments.figure_2b import SMALL
from variegrad.experiments.loss_ratio import loss_ratio

PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:8x8:relu", "replications": [1, 8],
              "batch_sizes": [4, 16], "grid": [-4, -2], "passes": 1, "points": 1, "seeds": 2},
    "small": {**SMALL, "max_examples": 128, "network": "resnet20", "replications": [1, 32], "batch_sizes": [16, 128],
              "passes": 4, "points": 2, "seeds": 4},
    "paper": {**SMALL, "max_examples": 50_000, "network": "resnet20", "replications": [1, 2, 4, 8, 32, 128],
              "passes": 100, "points": 100},
}  # fmt: skip

EXPERIMENT = loss_ratio(
    name="figure-2c",
    title="Figure 2c: replication and DropConnect, residual network",
    choices="ResNet-20 with group normalisation, so that every example has a gradient of its own (the paper names He "
    "et al. 2016 and no depth). The small profile has 128 training images, and a perceptron is used instead of the "
    "network in the smoke profile. Otherwise as in Figure 2b.",
    profiles=PROFILES,
)
