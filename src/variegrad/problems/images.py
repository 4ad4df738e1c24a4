"""From bytes to features: images are centred and scaled, channel by channel, by the training set's own statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from variegrad.shapes import Float, UInt8


class Split(NamedTuple):
    """The images and labels of a training or a test set, as bytes."""

    images: UInt8[Tensor, "n c h w"]
    labels: UInt8[Tensor, " n"]


def standardised(train: Split, test: Split) -> tuple[TensorDataset, TensorDataset]:
    """Both splits as float32 images with zero mean and unit deviation per channel over the training set.

    Args:
        train: images and labels that the statistics are taken from.
        test: images and labels that are put on the same scale.

    Returns:
        The training set and the test set: float32 features, int64 labels.

    Raises:
        ValueError: if all pixels of a channel are equal, so that there is nothing to learn from.
    """
    mean, deviation = _mean_and_deviation(train.images)
    if not (deviation > 0).all():
        raise ValueError(
            f"the training images are blank: channel {int(deviation.argmin())} has one value everywhere. "
            "The files have the right size but the wrong content; download them again."
        )

    def scaled(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return images.float().sub_(mean).div_(deviation)  # in place: CIFAR-10 is 0.6 GB in float32

    first, second = ((scaled(images), labels.long()) for images, labels in (train, test))
    return TensorDataset(*first), TensorDataset(*second)


def _mean_and_deviation(images: UInt8[Tensor, "n c h w"]) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    channels = images.shape[1]
    values = torch.arange(256, dtype=torch.float64)
    # How often each byte occurs, in chunks, so that no second copy of the images is ever made in a wider type.
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for chunk in torch.split(images, 1000):
        for channel in range(channels):
            counts[channel] += torch.bincount(chunk[:, channel].flatten().int(), minlength=256)
    frequencies = counts / counts.sum(1, keepdim=True)
    mean = frequencies @ values
    variance = (frequencies * (values - mean[:, None]).square()).sum(1)
    return mean.float()[:, None, None], variance.sqrt().float()[:, None, None]
