"""MLflow: readings as metrics of the run, by the one adapter for every logger with `log(values, step)`.

pip install mlflow
python examples/with_mlflow.py
"""

import mlflow
import torch
from torch.nn.functional import cross_entropy

import variegrad as vg
from variegrad.integrations.scalars import to_log
from variegrad.problems import load

torch.manual_seed(0)
problem = load("digits")
model = problem.model
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(problem.train, batch_size=64, shuffle=True, drop_last=True)

with mlflow.start_run(run_name="digits"):
    monitor = vg.Monitor(model, every=8, population=len(problem.train), on_reading=to_log(mlflow.log_metrics))
    for x, y in loader:
        losses = cross_entropy(model(x), y, reduction="none")
        monitor.watch(losses)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print(monitor.summary())
