"""Images and sounds as requests carry them: data, never an address or a path that somebody else chose."""

import base64
import binascii
import io
import wave
from collections.abc import Mapping
from typing import Any

import numpy as np

from uia_lab.domain.errors import BadRequest, Unsupported

MAX_PIXELS = 64 << 20
MAX_SECONDS = 3600
_SHORTEST_S, _LOWEST, _HIGHEST = 0.01, 1000, 384_000


def image(value: Any) -> Any:
    """A Pillow image.

    Args:
        value: Base64 or a ``data:`` address of an image file, or rows of ``[red, green, blue]``, each from
            0 to 255.

    Raises:
        BadRequest: It is none of them.
        Unsupported: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise Unsupported("images need Pillow: pip install pillow", param="inputs") from None
    if isinstance(value, list):
        try:
            pixels: Any = np.asarray(value, np.uint8)
        except (TypeError, ValueError, OverflowError):
            pixels = np.empty(0)
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise BadRequest(
                "an image must be base64 text or rows of [red, green, blue] from 0 to 255", param="inputs"
            )
        return Image.fromarray(pixels)
    data = _bytes(value, "an image")
    try:
        opened = Image.open(io.BytesIO(data))
        if opened.width * opened.height > MAX_PIXELS:
            raise BadRequest(f"the image has more than {MAX_PIXELS >> 20} Mi pixels", param="inputs")
        return opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise BadRequest(f"the image cannot be read: {error}", param="inputs") from None


def sound(value: Any, rate: int | None) -> tuple[Any, int]:
    """Samples of a sound, from -1 to 1, and how many there are a second.

    Args:
        value: Base64 or a ``data:`` address of a WAV file, a list of samples, or an object with the samples
            under ``array`` or ``raw`` and ``sampling_rate``.
        rate: Samples a second of a plain list.

    Raises:
        BadRequest: It is none of them, or not between a hundredth of a second and an hour.
    """
    if isinstance(value, Mapping):
        rate = value.get("sampling_rate", rate)
        value = value.get("array", value.get("raw"))
    if isinstance(value, list):
        try:
            samples: Any = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            samples = np.empty(0)
        if isinstance(rate, bool) or not isinstance(rate, int) or not _LOWEST <= rate <= _HIGHEST:
            raise BadRequest(
                f"sampling_rate must be a whole number from {_LOWEST} to {_HIGHEST}", param="sampling_rate"
            )
    else:
        samples, rate = _wav(_bytes(value, "a sound"))
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise BadRequest("the samples must be one list of numbers", param="inputs")
    if not _SHORTEST_S <= len(samples) / rate <= MAX_SECONDS:
        raise BadRequest(f"a sound must last from {_SHORTEST_S} s to {MAX_SECONDS} s", param="inputs")
    return samples, rate


def resampled(samples: Any, rate: int, wanted: int) -> Any:
    """The samples at another rate, by linear interpolation."""
    if rate == wanted:
        return samples
    count = max(1, round(len(samples) * wanted / rate))
    places = np.linspace(0, len(samples) - 1, count)
    return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)


def _wav(data: bytes) -> tuple[Any, int]:
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise BadRequest(f"the sound is no WAV file of plain samples: {error}", param="inputs") from None
    if width not in (1, 2, 4) or not _LOWEST <= rate <= _HIGHEST or not channels:
        raise BadRequest(f"a WAV file of {8 * width} bits and {rate} Hz cannot be read", param="inputs")
    kind, zero, scale = {1: ("u1", 128, 128), 2: ("<i2", 0, 1 << 15), 4: ("<i4", 0, 1 << 31)}[width]
    whole = len(frames) // (width * channels) * width * channels
    values = (np.frombuffer(frames[:whole], kind).astype(np.float32) - zero) / scale
    return values.reshape(-1, channels).mean(axis=1), rate


def _bytes(value: Any, what: str) -> bytes:
    """The content of base64 text. An address or a path is refused: whoever asks must not make us fetch it."""
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{what} must be base64 text or a list of numbers", param="inputs")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(
            f"{what} must be base64 text; addresses and file names are not fetched", param="inputs"
        ) from None
