"""Hugging Face models from small configurations need no code of the user, and no fallback."""

import pytest
import torch
import torch.nn.functional as F

from reference import loop_gradients
from variegrad.per_example.norms import batch_norms, engine_of

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
TOKENS = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def next_token(model, batch):
    tokens = batch["input_ids"]
    logits = model(**batch).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


def first_token(model, batch):
    return F.cross_entropy(model(**batch).logits, batch["input_ids"][:, 0] % 3, reduction="none")


def image(model, batch):
    return F.cross_entropy(model(pixel_values=batch[0]).logits, batch[1], reduction="none")


def text():
    tokens, mask = torch.randint(3, 97, (5, 12)), torch.ones(5, 12, dtype=torch.long)
    mask[2, 8:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def llama(tied):
    config = transformers.LlamaConfig(**TOKENS, **SMALL, num_key_value_heads=2, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config), next_token, text()


def gpt2():
    config = transformers.GPT2Config(**TOKENS, n_positions=32, n_embd=24, n_layer=2, n_head=3)
    return transformers.GPT2LMHeadModel(config), next_token, text()


def bert():
    config = transformers.BertConfig(vocab_size=97, pad_token_id=0, **SMALL, num_labels=3, max_position_embeddings=32)
    return transformers.BertForSequenceClassification(config), first_token, text()


def vit():
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=3)
    return transformers.ViTForImageClassification(config), image, (torch.randn(5, 3, 16, 16), torch.arange(5) % 3)


MODELS = {"gpt2": gpt2, "llama": lambda: llama(False), "llama-tied": lambda: llama(True), "bert": bert, "vit": vit}


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("name", MODELS)
def test_a_model_family_equals_the_loop_without_a_fallback(name):
    model, losses, batch = MODELS[name]()
    model.eval()
    rows = loop_gradients(model, losses, batch)
    whole = sum(r.double().reshape(len(r), -1).square().sum(1) for r in rows.values())
    for _ in range(2):
        found = batch_norms(model, losses, batch)
        assert torch.allclose(sum(found.sq_norms.values()), whole, rtol=1e-4)
        for key, r in rows.items():
            assert torch.allclose(found.total[key], r.sum(0), rtol=1e-3, atol=1e-5), key
    assert all(not known.uncovered for known in engine_of(model).known.values())
