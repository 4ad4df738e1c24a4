"""One rank that trains by several trainers with their default arguments, and the moments that a slow loop finds.

Weights move as the trainer's optimizer moves them. Every forward pass of the training is recorded with its weights, so
that the loop can follow whatever sampler, collator and wrapper the trainer uses. See test_trainers.py.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import variegrad as vg
from one_step import gram
from variegrad.integrations.scalars import scalars

RANK, WORKERS, OUT = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(os.environ["OUT"])
BATCH, STEPS, WINDOW = 6, 8, 64
MONITORED = {"every": 1, "examples": 64, "window": WINDOW}
VOCABULARY, LENGTH, IGNORED = 12, 8, -100


def accumulate(setting):
    return 3 if setting == "accumulation" else 1


def table():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(4 * BATCH * STEPS * 3, 6, generator=draw)
    return TensorDataset(x, (x[:, :3] + 0.3 * torch.randn(len(x), 3, generator=draw)).argmax(1))


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))


def sequences():
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (4 * BATCH * STEPS * 3, LENGTH), generator=draw).cumsum(1) % 11 + 1
    hidden = torch.arange(LENGTH) >= torch.randint(3, LENGTH + 1, (len(tokens), 1), generator=draw)
    return [{"input_ids": t, "labels": t.masked_fill(h, IGNORED)} for t, h in zip(tokens, hidden, strict=True)]


def language_model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=0,
            eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


class Recorded:
    """The inputs and the weights of every forward pass that has a graph."""

    def __init__(self, model):
        self.model, self.passes = model, []
        model.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, model, args, kwargs):
        if torch.is_grad_enabled() and model.training:
            inputs = (
                {"x": args[0]}
                if args
                else {k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor) and v.dim() > 0}
            )
            weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            self.passes.append(({k: v.clone() for k, v in inputs.items()}, weights))


def classifier_losses(dataset):
    labels = {tuple(row.tolist()): int(label) for row, label in zip(*dataset.tensors, strict=True)}

    def losses(model, inputs):
        y = torch.tensor([labels[tuple(row)] for row in inputs["x"].float().tolist()])
        return cross_entropy(model(inputs["x"].double()), y, reduction="none")

    return losses


def language_losses(model, inputs):
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask")).logits[:, :-1]
    return cross_entropy(logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="none", ignore_index=IGNORED).sum(1)


def expected(recorded, make, losses, micro):
    """(Û/M̂² from examples, Û/M̂² from micro-batches and workers) of each step, by a loop in float64."""
    model, found = make().double(), []
    for start in range(0, len(recorded.passes) - micro + 1, micro):
        cells = recorded.passes[start : start + micro]
        weights = cells[0][1]
        everywhere = [None] * WORKERS
        dist.all_gather_object(everywhere, [inputs for inputs, _ in cells])
        model.load_state_dict({k: v.double() for k, v in weights.items()}, strict=False)
        model.eval()
        inputs = [each for of_rank in everywhere for each in of_rank]
        joint = {name: torch.cat([each[name] for each in inputs]) for name in inputs[0]}
        g, k = gram(model, losses, joint), len(inputs)
        b = len(g) // k
        assert b * k == len(g)
        total, own = float(g.sum()), float(g.trace())
        pairs = (total - own) / (len(g) * (len(g) - 1))
        sums = sum(float(g[j * b : j * b + b, j * b : j * b + b].sum()) for j in range(k))
        between = (total - sums) / (len(g) ** 2 - k * b**2) if k > 1 else 0.0
        within = (sums - (k * b**2 - k * b) * between) / (k * b)
        found.append((pairs / (own / len(g)), between / within if k > 1 else None))
    return found


def plain(setting, folder):
    dataset = table()
    model = net()
    recorded = Recorded(model)
    trained = torch.nn.parallel.DistributedDataParallel(model) if WORKERS > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    k = accumulate(setting)
    monitor = vg.Monitor(trained, accumulate=k, **MONITORED)
    sampler = DistributedSampler(dataset, WORKERS, RANK, drop_last=True)
    for number, (x, y) in enumerate(DataLoader(dataset, BATCH, sampler=sampler, drop_last=True)):
        last = (number + 1) % k == 0
        with contextlib.nullcontext() if last or WORKERS == 1 else trained.no_sync():
            with torch.autocast("cpu", torch.bfloat16, enabled=setting == "bf16"):
                logits = trained(x)
                loss = cross_entropy(logits, y) / k
            monitor.watch(loss, output=logits)
            loss.backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
        if number + 1 == k * STEPS:
            break
    return monitor, expected(recorded, net, classifier_losses(dataset), k)


def lightning(setting, folder):
    import lightning as L

    from variegrad.integrations.lightning import BatchSizeMonitor

    dataset = table()

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    module, callback = Module(), BatchSizeMonitor(**MONITORED)
    recorded = Recorded(module.net)
    precision = {"precision": "bf16-mixed"} if setting == "bf16" else {}
    if WORKERS > 1:
        precision |= {"devices": WORKERS}
    trainer = L.Trainer(
        max_steps=STEPS, accelerator="cpu", callbacks=[callback], accumulate_grad_batches=accumulate(setting),
        default_root_dir=folder, **precision,
    )  # fmt: skip
    trainer.fit(module, DataLoader(dataset, BATCH, shuffle=True))
    return callback.monitor, expected(recorded, net, classifier_losses(dataset), accumulate(setting))


def accelerate(setting, folder):
    from accelerate import Accelerator

    from variegrad.integrations.accelerate import BatchSizeMonitor

    dataset, model, k = table(), net(), accumulate(setting)
    recorded = Recorded(model)
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=k, mixed_precision="bf16" if setting == "bf16" else "no"
    )
    trained, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.3), DataLoader(dataset, BATCH, shuffle=True)
    )
    monitor = BatchSizeMonitor(accelerator, trained, optimizer, **MONITORED)
    for number, (x, y) in enumerate(loader):
        with accelerator.accumulate(trained):
            logits = trained(x)
            loss = cross_entropy(logits, y)
            monitor.watch(loss, output=logits)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if number + 1 == k * STEPS:
            break
    monitor.close()
    return monitor.monitor, expected(recorded, net, classifier_losses(dataset), k)


def transformers(setting, folder):
    from transformers import Trainer, TrainingArguments

    from variegrad.integrations.transformers import BatchSizeMonitor

    model = language_model()
    recorded = Recorded(model)
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], max_steps=STEPS, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate(setting), bf16=setting == "bf16", learning_rate=1e-2,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=sequences())
    callback = BatchSizeMonitor(trainer, **MONITORED)
    trainer.add_callback(callback)
    trainer.train()
    return callback.monitor, expected(recorded, language_model, language_losses, accumulate(setting))


def trl(setting, folder):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from variegrad.integrations.transformers import BatchSizeMonitor

    model = language_model()
    recorded = Recorded(model)
    words = {f"w{k}": k for k in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0", eos_token="w0"
    )
    # Default arguments but for sizes: activation checkpoints are on, and the cross-entropy never forms all logits.
    arguments = SFTConfig(
        str(folder), use_cpu=True, report_to=[], max_steps=STEPS, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate(setting), bf16=setting == "bf16", learning_rate=1e-2,
    )  # fmt: skip
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist()} for row in sequences()]
    trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    callback = BatchSizeMonitor(trainer, **MONITORED)
    trainer.add_callback(callback)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "variegrad/cannot_tell" in line]
    assert lines[-1] | scalars(callback.monitor.latest) == lines[-1]
    return callback.monitor, expected(recorded, language_model, language_losses, accumulate(setting))


def main(cells):
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", message="Monitor: ")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    dist.init_process_group("gloo", init_method=f"file://{OUT}/rendezvous", rank=RANK, world_size=WORKERS)
    found = {}
    for cell in cells:
        trainer, setting = cell.split(":")
        with tempfile.TemporaryDirectory() as folder:
            monitor, truth = globals()[trainer](setting, Path(folder))
        if "accelerate" in sys.modules:
            from accelerate.state import AcceleratorState, GradientState, PartialState

            for state in (AcceleratorState, GradientState, PartialState):
                state._reset_state()
        found[cell] = {
            "found": [row[-2] / row[-1] for row in monitor.state_dict()["window"]],
            "expected": truth,
            "sources": sorted({reading.source for reading in monitor.history}),
            "steps": [reading.step for reading in monitor.history],
            "batch_sizes": sorted({reading.batch_size for reading in monitor.history}),
        }
    (OUT / f"{RANK}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # before the interpreter takes gloo down


if __name__ == "__main__":
    main(sys.argv[1:])
