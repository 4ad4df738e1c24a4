"""Hugging Face Trainer: a callback. Run again after a crash, training and readings resume from the checkpoint.

python examples/with_transformers.py [FOLDER]
variegrad monitor FOLDER/monitor.jsonl --report FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from variegrad.integrations.transformers import BatchSizeMonitor

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/with-transformers")
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=16, n_embd=16, n_layer=2, n_head=2))
# Sequences that step by 1, 2 or 3: something to learn without a download.
starts, strides = torch.randint(0, 16, (256, 1)), torch.randint(1, 4, (256, 1))
tokens = (starts + strides * torch.arange(16)) % 16
dataset = [{"input_ids": row, "labels": row} for row in tokens]

trainer = Trainer(
    model,
    TrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=64,
        save_steps=20,
        logging_steps=20,
        learning_rate=3e-3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    ),
    train_dataset=dataset,
)
monitor = BatchSizeMonitor(trainer, every=8, population=len(dataset), log=folder / "monitor.jsonl")
trainer.add_callback(monitor)
trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)

print(monitor.monitor.latest)
