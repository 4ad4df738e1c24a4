"""Hugging Face Accelerate: readings go to the accelerator's trackers and travel in its checkpoints.

python examples/with_accelerate.py [FOLDER]        or        accelerate launch examples/with_accelerate.py
variegrad monitor FOLDER/monitor.jsonl --report FOLDER
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from variegrad.integrations.accelerate import BatchSizeMonitor
from variegrad.problems import load

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/with-accelerate")
torch.manual_seed(0)
problem = load("digits")
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, log_with="tensorboard", project_dir=folder)
accelerator.init_trackers("digits")
model, optimizer, loader = accelerator.prepare(
    problem.model,
    torch.optim.SGD(problem.model.parameters(), lr=0.1),
    torch.utils.data.DataLoader(problem.train, batch_size=32, shuffle=True, drop_last=True),
)
monitor = BatchSizeMonitor(
    accelerator, model, optimizer, every=8, population=len(problem.train), log=folder / "monitor.jsonl"
)

for _ in range(4):
    for x, y in loader:
        with accelerator.accumulate(model):
            logits = model(x)
            loss = cross_entropy(logits, y)
            monitor.watch(loss, output=logits)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

accelerator.save_state(str(folder / "state"))
accelerator.end_training()
monitor.close()
accelerator.print(monitor.monitor.latest)
