"""Tiny models with random weights, built here: no test needs a hub."""

import json
import random
import string
from pathlib import Path

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "over", "under", "house", "river", "red", "blue", "and"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus():
    rng = random.Random(1)
    return [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(200)] + list(string.printable)


def byte_tokenizer(folder: Path, *, chat=True):
    """A byte-level BPE, as GPT-2 and Llama 3 have."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trained.train_from_iterator(corpus(), vocab_size=360, special_tokens=specials, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    if chat:
        tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return tokenizer


def word_tokenizer(folder: Path, length=64):
    """A word piece tokenizer with BERT's special tokens."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(corpus(), vocab_size=300, show_progress=False)
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder / "raw"))
    tokenizer = BertTokenizerFast(str(folder / "raw" / "vocab.txt"), model_max_length=length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def llama(folder: Path, *, seed=0, chat=True, **changes):
    """A causal language model of two layers; returns model and tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer(folder, chat=chat)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Random weights of the usual size give nearly equal logits, where rounding alone decides.
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()
    model.save_pretrained(folder)
    return model, tokenizer


def bert(folder: Path, kind: str, labels=("NEGATIVE", "POSITIVE"), *, seed=0):
    """A BERT with the head of a task (``BertForSequenceClassification`` ...); returns model and tokenizer."""
    import torch
    import transformers

    tokenizer = word_tokenizer(folder)
    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    model = getattr(transformers, kind)(
        transformers.BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, initializer_range=0.2,
            id2label=names, label2id={name: number for number, name in names.items()},
        )
    ).eval()  # fmt: skip
    model.save_pretrained(folder)
    return model, tokenizer


def set_config(folder: Path, **changes):
    """Changes fields of a saved ``config.json``."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
