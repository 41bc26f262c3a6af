"""How much memory a model will take, known before anything is loaded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uia_lab.engine.headers import gguf_header, safetensors_weights

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Activations, buffers of the libraries, and what Python itself takes in a worker with torch or without.
HEADROOM = 0.15
PROCESS_BYTES = {"transformers": 350 << 20, "llamacpp": 80 << 20}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory of a loaded model, in bytes.

    Args:
        weights_bytes: The weights in the format they are loaded in.
        cache_bytes_a_token: Keys and values of one token; 0 where the model does not generate.
        cache_bytes: Keys and values of all requests at once.
        process_bytes: The worker itself.
    """

    weights_bytes: int
    cache_bytes_a_token: int
    cache_bytes: int
    process_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it with some headroom."""
        return int((self.weights_bytes + self.cache_bytes) * (1 + HEADROOM)) + self.process_bytes

    def to_dict(self) -> dict[str, int]:
        """The figures by name."""
        return {**asdict(self), "total_bytes": self.total_bytes}


def cache_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int:
    """Bytes that the keys and values of one token take: 2 x layers x key-value heads x head size x width.

    Args:
        config: The model's ``config.json``.
        dtype: Number format of the cache.
    """
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not layers or not heads:
        return 0
    key_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or (config.get("hidden_size") or 0) // heads
    return int(2 * layers * key_heads * size * BYTES[dtype])


def estimate_transformers(
    folder: Path, config: Mapping[str, Any], dtype: str, *, generates: bool, tokens: int, most: int
) -> Estimate:
    """The estimate for safetensors weights.

    Args:
        folder: Where they lie.
        config: The model's ``config.json``.
        dtype: Number format they are loaded in.
        generates: Whether it keeps keys and values.
        tokens: Tokens of all requests at once.
        most: Bytes the cache gets at most.

    Raises:
        BackendFailed: The weights are missing or damaged.
    """
    weights = safetensors_weights(folder)
    a_token = cache_bytes_per_token(config, dtype) if generates else 0
    return Estimate(
        weights.parameters * BYTES[dtype], a_token, min(a_token * tokens, most), PROCESS_BYTES["transformers"]
    )


def estimate_gguf(file: Path, tokens: int) -> Estimate:
    """The estimate for a GGUF file, whose cache llama.cpp keeps in 16 bits.

    Args:
        file: The file.
        tokens: Tokens of all requests at once.

    Raises:
        BackendFailed: It is no GGUF file.
    """
    header = gguf_header(file)
    kind = header.get("general.architecture", "")
    heads = header.get(f"{kind}.attention.head_count")
    shape = {
        "num_hidden_layers": header.get(f"{kind}.block_count"),
        # Some models have a number of heads for each layer: a list, of which the header keeps the length.
        "num_attention_heads": heads,
        "num_key_value_heads": header.get(f"{kind}.attention.head_count_kv"),
        "head_dim": header.get(f"{kind}.attention.key_length"),
        "hidden_size": header.get(f"{kind}.embedding_length"),
    }
    a_token = cache_bytes_per_token(shape, "float16")
    return Estimate(file.stat().st_size, a_token, a_token * tokens, PROCESS_BYTES["llamacpp"])
