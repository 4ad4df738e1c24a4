"""PyTorch Lightning: a callback. Run again after a crash, training and readings resume from the checkpoint.

python examples/with_lightning.py [FOLDER]
variegrad monitor FOLDER/monitor.jsonl --report FOLDER
"""

import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn.functional import cross_entropy

from variegrad.integrations.lightning import BatchSizeMonitor
from variegrad.problems import load


class Digits(L.LightningModule):
    """Knows nothing of variegrad."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        """The mean loss, as ever."""
        x, y = batch
        return cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/with-lightning")
L.seed_everything(0, verbose=False)
problem = load("digits")
monitor = BatchSizeMonitor(every=8, population=len(problem.train), log=folder / "monitor.jsonl")
trainer = L.Trainer(
    max_epochs=4,
    accelerator="cpu",
    callbacks=[monitor, ModelCheckpoint(folder, save_last=True, every_n_train_steps=20)],
    logger=CSVLogger(folder),
    enable_progress_bar=False,
    enable_model_summary=False,
)
loader = torch.utils.data.DataLoader(problem.train, batch_size=64, shuffle=True, drop_last=True)
trainer.fit(Digits(problem.model), loader, ckpt_path="last")

print(monitor.monitor.latest)
