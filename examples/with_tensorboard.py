"""Readings as TensorBoard scalars, from a loop that has only the mean loss and the logits.

python examples/with_tensorboard.py [FOLDER]
tensorboard --logdir FOLDER
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard import SummaryWriter

import variegrad as vg
from variegrad.integrations.tensorboard import ReadingWriter
from variegrad.problems import load

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/with-tensorboard")
torch.manual_seed(0)
problem = load("digits")
model, data = problem.model, problem.train
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = vg.Monitor(model, every=8, population=len(data))

with SummaryWriter(str(folder)) as writer:
    readings = ReadingWriter(writer, monitor)
    for _ in range(4):
        for x, y in torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, drop_last=True):
            logits = model(x)
            loss = cross_entropy(logits, y)
            monitor.watch(loss, output=logits)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            readings.write()

print(monitor.latest)
