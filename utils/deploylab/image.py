"""From the bytes of a picture to the array a network takes: one way for every lab, engine and server.

Bytes are bounded before they are read, pixels before they are decoded, so that an upload cannot exhaust the memory.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from deploylab.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MAX_SIDE = 65_535  # what JPEG can express; resizing one row of 50 million pixels would need gigabytes
MAX_SCANS = 200  # a progressive JPEG has about ten; each costs a pass over all pixels, and an empty one a few bytes

Picture: TypeAlias = bytes | bytearray | memoryview | str | Path
"""An encoded picture: its bytes, or the path of its file."""

# EXIF 2.32, tag Orientation: how the stored pixels must be turned to be seen upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where the last column (0) and the last row (1) of the stored pixels are then: left, top, right, bottom.
_EXCESS = {
    1: (None, None, 0, 1),
    2: (0, None, None, 1),
    3: (0, 1, None, None),
    4: (None, 1, 0, None),
    5: (None, None, 1, 0),
    6: (1, None, None, 0),
    7: (1, 0, None, None),
    8: (None, 0, 1, None),
}
_ORIENTATION_TAG = 0x0112


class TooLargeError(InputError):
    """The picture has more bytes, pixels or passes than are accepted."""


class FormatError(InputError):
    """The bytes are not a picture in a supported format."""


def decode(data: Picture, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a JPEG, PNG or WebP picture to uint8 RGB of shape (H, W, 3), upright according to its EXIF orientation.

    Transparent pixels are laid over white, grey and CMYK become RGB, 16 bits become 8, an animation gives its first
    frame. Raises :class:`InputError` for anything else, for truncated data, and for more than ``max_bytes`` bytes or
    ``max_pixels`` pixels, which is checked before decoding.
    """
    return np.array(decode_image(data, max_bytes=max_bytes, max_pixels=max_pixels))


def decode_image(data: Picture, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As :func:`decode`, but as a Pillow image in mode RGB, without a copy to NumPy."""
    return open_picture(data, max_bytes=max_bytes, max_pixels=max_pixels).load().image


@dataclass(frozen=True, slots=True)
class Decoded:
    """A Pillow image in mode RGB, upright, and the part of it that is the picture: left, top, right, bottom.

    The part is None for the whole. A JPEG decoded at an eighth of its size has its last row and column rounded up.
    """

    image: Image.Image
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A picture whose header was read and found acceptable, and which is not decoded yet.

    ``pixels`` is how many the decoder will hold in memory at once.
    """

    image: Image.Image
    pixels: int
    excess: tuple[float, float] = (0.0, 0.0)
    """Pixels of the last column and the last row beyond the picture."""

    def load(self) -> Decoded:
        """Decode. Can be done once. Raises :class:`InputError` for damaged or truncated data."""
        with self.image as image:
            try:
                image.load()
                orientation = _orientation(image)
                upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
                return Decoded(_rgb(upright), _box(upright.size, self.excess, orientation))
            except Exception as error:  # each decoder has its own set of exceptions
                raise InputError(f"the {image.format} picture is damaged or truncated ({error}); {_ADVICE}") from error


def open_picture(
    data: Picture, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> Opened:
    """Read the header of a picture and check its size. Raises as :func:`decode` does, except for damage further on.

    With ``at_least`` a JPEG will be decoded at 1/2, 1/4 or 1/8 of its size, the smallest of these that leaves both
    sides ``at_least`` pixels or more. libjpeg does that inside the inverse DCT, which saves most of the time and
    memory a camera's photograph takes (Pillow, ``Image.draft``). Bounds apply to the full size.
    """
    payload = _read(data, max_bytes)
    form = _format(payload)
    if form == "WEBP":
        _check_size(_webp_size(payload), max_pixels)  # Pillow would allocate its canvas while opening it
    try:
        image = Image.open(io.BytesIO(payload), formats=(form,))
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"the picture is too large: {error}") from error
    except Exception as error:
        raise InputError(f"the picture is damaged ({error}); {_ADVICE}") from error
    width, height = image.size
    _check_size(image.size, max_pixels)
    _check_scans(image, payload)
    drafted = None if at_least is None else image.draft(None, (at_least, at_least))
    if drafted is None:
        return Opened(image, width * height)
    if "progressive" not in image.info:  # whose coefficients are all held until the last scan
        width, height = image.size
    _, (_, _, right, bottom) = drafted
    return Opened(image, width * height, (image.width - right, image.height - bottom))


_ADVICE = f"give a complete file in one of the formats {', '.join(FORMATS)}"


@dataclass(frozen=True)
class Preprocessor:
    """Turns a picture into what a network takes: float32 (1, 3, ``size``, ``size``), C-contiguous, RGB.

    The picture is resized to a square with Pillow's bilinear filter, which averages over the source pixels when it
    shrinks (antialiased). Then ``(pixel / 255 - mean) / std``, each given for R, G, B. ``keep`` < 1 takes only the
    centre square of side ``keep * min(H, W)``; the customary ImageNet evaluation, "shorter side to 256, centre crop
    of 224", is ``keep = 224 / 256``. ``keep=None`` squeezes the whole picture into the square.

    ``reducing_gap`` lets libjpeg shrink a large JPEG while decoding it, down to no less than ``reducing_gap`` times
    the pixels that are needed; Pillow's resize does the rest. That changes pixels slightly, so it is off unless asked
    for. The name and the meaning are those of Pillow's ``Image.thumbnail``.
    """

    size: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    keep: float | None = None
    reducing_gap: float | None = None

    def __call__(self, picture: Picture | np.ndarray) -> np.ndarray:
        """Preprocess encoded bytes, a file, or a uint8 RGB array (H, W, 3). Raises :class:`InputError`."""
        return self.normalise(self.resize(picture)[None])

    def batch(self, pictures: Iterable[Picture | np.ndarray]) -> np.ndarray:
        """Preprocess several pictures into one array (N, 3, size, size)."""
        resized = [self.resize(picture) for picture in pictures]
        if not resized:
            raise InputError("no picture given; a batch needs at least one")
        return self.normalise(np.stack(resized))

    def open(self, data: Picture, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Opened:
        """Prepare to decode a picture, no larger than :meth:`resize` has a use for if ``reducing_gap`` is given."""
        return open_picture(data, max_bytes=max_bytes, max_pixels=max_pixels, at_least=self._least_side)

    def resize(self, picture: Picture | np.ndarray | Decoded) -> np.ndarray:
        """The first half of the work: uint8 RGB (size, size, 3)."""
        if isinstance(picture, np.ndarray):
            decoded = Decoded(Image.fromarray(np.ascontiguousarray(check_rgb(picture))))
        else:
            decoded = picture if isinstance(picture, Decoded) else self.open(picture).load()
        box = decoded.box
        if self.keep is not None:
            box = _centre_square(box or (0, 0, *decoded.image.size), self.keep)
        return np.asarray(decoded.image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))

    @property
    def _least_side(self) -> int | None:
        return None if self.reducing_gap is None else math.ceil(self.reducing_gap * self.size / (self.keep or 1))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """The second half: uint8 (N, H, W, 3) to float32 (N, 3, H, W)."""
        scaled = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)
        scaled /= np.float32(255)
        if self.mean != (0.0, 0.0, 0.0):
            scaled -= np.asarray(self.mean, np.float32)[:, None, None]
        if self.std != (1.0, 1.0, 1.0):
            scaled /= np.asarray(self.std, np.float32)[:, None, None]
        return scaled


SIGNNET = Preprocessor(64)
"""What SignNet takes; its own normalisation is the first layer of the network."""

IMAGENET = Preprocessor(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), keep=224 / 256)
"""What torchvision's classification weights were trained for (its documentation, "IMAGENET1K_V1" transforms)."""


def check_rgb(array: np.ndarray) -> np.ndarray:
    """Return ``array`` if it is uint8 (H, W, 3) with H, W >= 1; raise :class:`InputError` saying what differs."""
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        raise InputError(f"expected pixels as (H, W, 3), got {array.shape}: channels first? use x.transpose(1, 2, 0)")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(f"expected RGB pixels of shape (H, W, 3), got {array.shape}")
    if array.dtype != np.uint8:
        raise InputError(f"expected uint8 pixels 0..255, got dtype {array.dtype}")
    if max(array.shape[:2]) > MAX_SIDE:
        raise InputError(f"the picture's longer side has {max(array.shape)} pixels, at most {MAX_SIDE} are accepted")
    return array


def _read(data: Picture, max_bytes: int) -> bytes:
    if isinstance(data, (bytes, bytearray, memoryview)):
        payload = bytes(data) if len(data) <= max_bytes else None
    else:
        try:
            with open(data, "rb") as stream:
                payload = stream.read(max_bytes + 1)
        except OSError as error:
            raise InputError(f"cannot read the picture {data}: {error.strerror or error}") from error
    if payload is None or len(payload) > max_bytes:
        raise TooLargeError(f"the picture has more than {max_bytes:,} bytes; make it smaller or raise max_bytes")
    if not payload:
        raise InputError(f"the picture is empty (0 bytes); {_ADVICE}")
    return payload


def _check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is None:
        return
    width, height = size
    if width * height > max_pixels or max(size) > MAX_SIDE:
        raise TooLargeError(
            f"the picture has {width} x {height} pixels; at most {max_pixels:,} pixels "
            f"and {MAX_SIDE} a side are accepted, so scale it down first"
        )


def _format(payload: bytes) -> str:
    """The format by the first bytes (ISO/IEC 10918-1, ISO/IEC 15948, RFC 9649)."""
    if payload.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if payload.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if payload[:4] == b"RIFF" and payload[8:12] == b"WEBP":
        return "WEBP"
    raise FormatError(f"not a picture in a supported format ({_described(payload)}); {_ADVICE}")


def _check_scans(image: Image.Image, payload: bytes) -> None:
    """Refuse a progressive JPEG whose scans would keep the decoder busy for minutes (libjpeg-turbo, ``-maxscans``)."""
    if "progressive" in image.info and payload.count(b"\xff\xda") > MAX_SCANS:
        raise TooLargeError(f"the progressive JPEG has more than {MAX_SCANS} scans; save it again as a plain JPEG")


def _webp_size(payload: bytes) -> tuple[int, int] | None:
    """Width and height out of a WebP's header (RFC 9649), None if it is cut off."""
    if len(payload) < 30:
        return None
    chunk = payload[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(payload[24:27], "little"), 1 + int.from_bytes(payload[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(payload[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(payload[26:28], "little") & 0x3FFF, int.from_bytes(payload[28:30], "little") & 0x3FFF
    return None


def _described(payload: bytes) -> str:
    return f"{len(payload):,} bytes beginning with {payload[:8]!r}"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF does not make the pixels worse: every viewer shows such a picture
        return 1


def _box(
    size: tuple[int, int], excess: tuple[float, float], orientation: int
) -> tuple[float, float, float, float] | None:
    """The part of an upright image without the excess that its last column and row had before it was turned."""
    if excess == (0, 0):
        return None
    width, height = size
    left, top, right, bottom = (
        excess[axis] if axis is not None else 0.0 for axis in _EXCESS.get(orientation, _EXCESS[1])
    )
    return left, top, width - right, height - bottom


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image  # convert() would copy it
    if image.mode.startswith("I"):  # 16-bit grey; Pillow keeps the high byte of 16-bit colour, so do the same here
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _centre_square(box: tuple[float, float, float, float], keep: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    half = keep * min(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - half, y - half, x + half, y + half
