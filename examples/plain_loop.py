"""A plain training loop on the embedded digits: one added line between forward and backward.

python examples/plain_loop.py [FOLDER]
variegrad monitor FOLDER/monitor.jsonl --report FOLDER
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import variegrad as vg
from variegrad.problems import load

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/plain-loop")
torch.manual_seed(0)
problem = load("digits")
model, data = problem.model, problem.train
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = vg.Monitor(model, every=8, population=len(data), log=folder / "monitor.jsonl")

for epoch in range(4):
    for x, y in torch.utils.data.DataLoader(data, batch_size=64, shuffle=True, drop_last=True):
        losses = cross_entropy(model(x), y, reduction="none")  # one loss per example
        monitor.watch(losses)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: {monitor.latest}")

monitor.close()
print(monitor.latest.advice(new_batch_size=128, optimizer=optimizer))
