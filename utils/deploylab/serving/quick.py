"""Which requests take so little that an event loop can answer them between two looks at its connections."""

from __future__ import annotations

from typing import Any

from deploylab.serving import problems
from deploylab.serving.app import is_plain
from deploylab.serving.http1 import Way

QUICK_PIXELS = 1_000_000
QUICK_BYTES = 1 << 19
"""A JPEG up to here is decoded in a few milliseconds."""

_AT_ONCE = ("/healthz", "/readyz")
_FRAMES = (0xC0, 0xC1)  # ISO/IEC 10918-1, table B.1: sequential, Huffman coded
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA


def way(environ: dict[str, Any], body: bytes) -> Way:
    """How a request is answered: small JPEGs, questions for the state of the service and refusals at once."""
    if is_plain(environ):
        return Way.RECOGNISE if is_small_jpeg(body) else Way.THREAD
    return Way.HERE if environ["PATH_INFO"] in _AT_ONCE or problems.FOUND in environ else Way.THREAD


def is_small_jpeg(data: bytes) -> bool:
    """Whether the decoder needs but one pass over few pixels. Every other format can hide a lot in a few bytes."""
    if not data.startswith(b"\xff\xd8") or len(data) > QUICK_BYTES:
        return False
    position, pixels, components = 2, 0, 0
    try:
        while data[position] == 0xFF:
            marker = data[position + 1]
            length = data[position + 2] << 8 | data[position + 3]
            if marker == _SCAN:
                return 0 < pixels <= QUICK_PIXELS and data[position + 4] == components
            if marker in _OTHER_FRAMES or length < 2:
                return False
            if marker in _FRAMES:
                height = data[position + 5] << 8 | data[position + 6]
                width = data[position + 7] << 8 | data[position + 8]
                pixels, components = width * height, data[position + 9]
            position += 2 + length
    except IndexError:
        pass
    return False
