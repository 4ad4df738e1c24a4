"""Two processes and DistributedDataParallel: the readings are those of the whole batch, and equal on both.

torchrun --standalone --nproc-per-node 2 examples/with_ddp.py [FOLDER]
variegrad monitor FOLDER/monitor.jsonl --report FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import variegrad as vg
from variegrad.problems import load

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/with-ddp")
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
problem = load("digits")
model = DistributedDataParallel(problem.model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
monitor = vg.Monitor(model, every=8, population=len(problem.train), log=folder / "monitor.jsonl")

sampler = DistributedSampler(problem.train, seed=0, drop_last=True)
for epoch in range(4):
    sampler.set_epoch(epoch)
    for x, y in DataLoader(problem.train, batch_size=32, sampler=sampler, drop_last=True):
        losses = cross_entropy(model(x), y, reduction="none")
        monitor.watch(losses)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

monitor.close()
print(f"rank {rank}: {monitor.latest}\n", end="")
distributed.destroy_process_group()
