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


def t5(folder: Path, *, seed=0):
    """An encoder and decoder of two layers; returns model and tokenizer."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = byte_tokenizer(folder)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            task_specific_params={
                "summarization": {"prefix": "summarize: "},
                "translation_en_to_de": {"prefix": "translate English to German: "},
            },
        )
    ).eval()  # fmt: skip
    model.save_pretrained(folder)
    return model, tokenizer


def vit(folder: Path, *, seed=0):
    """A vision transformer for pictures of 16 x 16."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            image_size=16, patch_size=8, id2label={0: "cat", 1: "dog", 2: "bird"},
            label2id={"cat": 0, "dog": 1, "bird": 2}, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(folder)
    settings = {
        "image_processor_type": "ViTImageProcessor", "do_normalize": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "size": {"height": 16, "width": 16},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model, None


def wav2vec2(folder: Path, *, seed=0):
    """A speech recogniser that writes letters."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    torch.manual_seed(seed)
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(letters), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(5, 64),
            num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
            initializer_range=0.2, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(folder)
    return model, tokenizer


def whisper(folder: Path, *, seed=0):
    """A speech recogniser that writes text, an encoder and a decoder as Whisper has them."""
    import torch
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    byte_tokenizer(folder, chat=False)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokenizer = WhisperTokenizer(
        vocab=words["vocab"], merges=[tuple(pair) for pair in words["merges"]], unk_token="</s>",
        bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    )  # fmt: skip
    # What comes behind the last special token counts as a moment of the recording, not as text.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|notimestamps|>"]})
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
            max_source_positions=50, max_target_positions=24, init_std=0.2, suppress_tokens=None,
            begin_suppress_tokens=None, **ids,
        )
    ).eval()  # fmt: skip
    model.generation_config.max_length = 16
    model.save_pretrained(folder)
    return model, tokenizer


def gguf(folder: Path, file: Path, *, seed=0):
    """The causal language model as a GGUF file; returns model and tokenizer.

    Args:
        folder: Where the model is saved too.
        file: The file to write.
    """
    from gguf import GGUFWriter, TokenType

    model, tokenizer = llama(folder, seed=seed)
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    words = json.loads((folder / "tokenizer.json").read_text())
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types([TokenType.CONTROL if n in special else TokenType.NORMAL for _, n in by_id])
    writer.add_token_merges([" ".join(pair) for pair in words["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_chat_template(CHATML)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, value in model.state_dict().items():
        array, key = value.float().numpy(), name.removesuffix(".weight")
        if key in outer:
            writer.add_tensor(f"{outer[key]}.weight", array)
            continue
        _, _, layer, part = key.split(".", 3)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
            # llama.cpp rotates neighbours, transformers halves.
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(f"blk.{layer}.{names[part]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer
