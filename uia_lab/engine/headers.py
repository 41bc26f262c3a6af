"""What the head of a weights file says, read without torch and without reading the weights."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from uia_lab.domain.errors import BackendFailed

MAX_HEADER = 100 << 20
MAX_CONFIG = 4 << 20
_MAX_ENTRIES = 1 << 20
_MAX_TEXT = 64 << 20
_WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
# GGUF's types of a value: number -> struct format.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Weights:
    """Size of a model's weights.

    Args:
        parameters: Numbers in all tensors.
        bytes: Their size as they are stored.
    """

    parameters: int
    bytes: int


def safetensors_weights(folder: Path) -> Weights:
    """The weights of all safetensors files in a folder.

    Raises:
        BackendFailed: There are none, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BackendFailed(f"{folder} has no safetensors weights; pickled ones are not loaded")
    parameters = size = 0
    for file in files:
        for name, tensor in safetensors_header(file).items():
            if name == "__metadata__":
                continue
            numbers = math.prod(tensor["shape"])
            parameters += numbers
            size += numbers * _WIDTHS.get(tensor["dtype"], 4)
    return Weights(parameters, size)


def safetensors_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: dtype, shape and place of each tensor by its name.

    Raises:
        BackendFailed: It is no such file, or not all of it is there.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", _exactly(stream, 8))
            if length > MAX_HEADER:
                raise BackendFailed(f"{file} is no safetensors file: its header would have {length:,} bytes")
            header: dict[str, Any] = json.loads(_exactly(stream, length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            missing = 8 + length + max(ends, default=0) - file.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError) as error:
        raise BackendFailed(f"{file} is no safetensors file: {error}") from error
    if missing > 0:
        raise BackendFailed(f"{file} is damaged: {missing:,} bytes are missing at its end")
    return header


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        BackendFailed: It cannot be read.
    """
    file = folder / "config.json"
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise BackendFailed(f"{file} is larger than {MAX_CONFIG >> 20} MiB")
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BackendFailed(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BackendFailed(f"{file} is no JSON object")
    return config


def gguf_header(file: Path) -> Mapping[str, Any]:
    """The metadata of a GGUF file by name; of a list, its length only.

    Raises:
        BackendFailed: It is no such file, or its head is damaged.
    """
    try:
        with file.open("rb") as stream:
            magic, version, _, count = struct.unpack("<4sIQQ", _exactly(stream, 24))
            if magic != b"GGUF" or version not in (2, 3):
                raise BackendFailed(f"{file} is no GGUF file of version 2 or 3")
            if count > _MAX_ENTRIES:
                raise BackendFailed(f"{file} is damaged: it claims {count:,} entries")
            return {_text(stream): _value(stream, _number(stream, "I")) for _ in range(count)}
    except (OSError, ValueError, struct.error, EOFError) as error:
        raise BackendFailed(f"{file} is no GGUF file: {error}") from error


def _value(stream: IO[bytes], kind: int) -> Any:
    if kind in _SCALARS:
        return _number(stream, _SCALARS[kind])
    if kind == _TEXT:
        return _text(stream)
    if kind != _ARRAY:
        raise ValueError(f"unknown type {kind}")
    inner, count = _number(stream, "I"), _number(stream, "Q")
    if count > _MAX_TEXT:
        raise ValueError(f"a list of {count:,}")
    if inner in _SCALARS:
        stream.seek(count * struct.calcsize(_SCALARS[inner]), 1)
    elif inner == _TEXT:
        for _ in range(count):
            stream.seek(_number(stream, "Q"), 1)
    else:
        raise ValueError(f"a list of type {inner}")
    return count


def _text(stream: IO[bytes]) -> str:
    length = _number(stream, "Q")
    if length > _MAX_TEXT:
        raise ValueError(f"a text of {length:,} bytes")
    return _exactly(stream, length).decode(errors="replace")


def _number(stream: IO[bytes], form: str) -> Any:
    return struct.unpack(f"<{form}", _exactly(stream, struct.calcsize(f"<{form}")))[0]


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError(f"it ends after {len(data)} of {count} bytes")
    return data
