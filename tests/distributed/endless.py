"""A run without end, to which something happens: `python endless.py TIMEOUT [leave | pause] [packed]`."""

import sys
import time

import torch
from torch import nn
from torch.utils.data import TensorDataset

import variegrad as vg


def losses(model, batch):
    return model(batch[0]).square().sum(1)


with vg.workers(timeout=float(sys.argv[1])) as world:
    torch.manual_seed(0)
    packed = {"mechanism": vg.Quantize(), "granularity": "worker"} if "packed" in sys.argv else {}
    config = vg.TrainConfig(batch_size=4, step_size=1e-6, passes=float("inf"), **packed)
    for step in vg.train(nn.Linear(3, 20_000), losses, TensorDataset(torch.ones(9, 3)), config, world):
        if step.updates == 5:
            print("under way", flush=True)
        if "leave" in sys.argv and step.updates == 9 and world.rank == 1:
            raise SystemError("left")
        if "pause" in sys.argv and step.updates == 9 and world.rank == 1:
            time.sleep(2.6 * float(sys.argv[1]))  # a slow disk, a debugger, a long evaluation
        if "pause" in sys.argv and step.updates == 12:
            break
    if "pause" in sys.argv and world.is_first:
        time.sleep(1.6 * float(sys.argv[1]))  # and before the end of the block
