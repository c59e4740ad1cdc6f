"""Pictures as people have them: turned, transparent, grey, printed, deep, moving, broken, hostile."""

import contextlib
import dataclasses
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploylab import image
from deploylab.errors import InputError
from deploylab.signs import dataset


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def quadrants(width: int = 40, height: int = 24) -> Image.Image:
    """Red, green / blue, white: no turn or flip of it equals another."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})])
def test_formats_give_the_same_pixels(kind, options):
    got = image.decode(encoded(quadrants(), kind, **options))
    assert got.shape == (24, 40, 3)
    assert got.dtype == np.uint8
    assert np.abs(got[4:8, 4:8].astype(int) - (255, 0, 0)).max() <= 3  # JPEG loses a little


def test_a_file_and_its_bytes_are_the_same(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(quadrants()))
    for given_as in (path, str(path), memoryview(path.read_bytes()), bytearray(path.read_bytes())):
        assert np.array_equal(image.decode(given_as), np.asarray(quadrants()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_seen_upright(orientation, kind):
    # What is stored, in the words of EXIF 2.32: where row 0 and column 0 of it belong.
    upright = np.asarray(quadrants())
    stored = {
        1: upright,
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # left, top
        6: np.rot90(upright, 1),  # right, top
        7: upright[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: np.rot90(upright, -1),  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    got = image.decode(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    assert got.shape == upright.shape
    for row, column in ((3, 3), (3, -4), (-4, 3), (-4, -4)):
        assert np.abs(got[row, column].astype(int) - upright[row, column]).max() < 40


@pytest.mark.parametrize(
    "junk", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, about the damage made here on purpose
def test_damaged_exif_does_not_matter(junk):
    assert image.decode(encoded(quadrants(), "JPEG", exif=junk)).shape == (24, 40, 3)


def test_transparency_is_laid_over_white():
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert image.decode(encoded(half))[0, 0].tolist() == [127, 127, 127]
    clear = Image.new("LA", (8, 8), (0, 0))
    assert image.decode(encoded(clear))[0, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 10, 20])
    assert image.decode(encoded(palette))[0, 0].tolist() == [200, 10, 20]
    assert image.decode(encoded(palette, transparency=1))[0, 0].tolist() == [255, 255, 255]
    assert (
        image.decode(encoded(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3)))[0, 0].tolist() == [255] * 3
    )


def test_grey_and_black_and_white():
    assert image.decode(encoded(Image.new("L", (8, 8), 77)))[0, 0].tolist() == [77, 77, 77]
    assert image.decode(encoded(Image.new("1", (8, 8), 1)))[0, 0].tolist() == [255, 255, 255]
    assert np.abs(image.decode(encoded(Image.new("L", (8, 8), 77), "JPEG"))[0, 0].astype(int) - 77).max() <= 1


def test_sixteen_bits_keep_their_brightness():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    got = image.decode(encoded(Image.fromarray(ramp)))
    assert np.abs(got[..., 0].astype(float) - ramp / 257).max() <= 1
    assert (got[..., 0] == got[..., 2]).all()


def test_sixteen_bit_colour():
    """A PNG written by hand, because Pillow writes none: 1 x 1 pixel, 16 bits, RGB (ISO/IEC 15948)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = (1).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    pixel = b"\0" + b"".join(value.to_bytes(2, "big") for value in (0xFFFF, 0x8000, 0x0100))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixel)) + chunk(b"IEND", b"")
    assert image.decode(png)[0, 0].tolist() == [255, 128, 1]


@pytest.mark.parametrize(
    ("ink", "rgb"), [((0, 255, 255, 0), (255, 0, 0)), ((255, 255, 0, 0), (0, 0, 255)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_cmyk_is_not_inverted(ink, rgb):
    got = image.decode(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95))
    assert np.abs(got[8, 8].astype(int) - rgb).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert image.decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.97])
def test_a_truncated_picture_is_an_error(kind, part):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(InputError, match="complete file"):
        image.decode(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"\xff\xd8\xff", "JPEG, PNG, WEBP"),
        (encoded(quadrants(), "GIF"), "GIF89a|GIF87a"),
        (encoded(quadrants(), "BMP"), "supported format"),
        (encoded(quadrants(), "TIFF"), "supported format"),
    ],
)
def test_what_is_no_supported_picture_is_told(data, told):
    with pytest.raises(InputError, match=told):
        image.decode(data)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    for path in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            image.decode(path)


def test_too_many_bytes_are_not_read():
    data = encoded(quadrants())
    with pytest.raises(InputError, match="more than 10 bytes"):
        image.decode(data, max_bytes=10)
    with pytest.raises(InputError, match="more than"):
        image.decode("/dev/zero", max_bytes=1000)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})])
def test_a_bomb_is_refused_before_it_is_decoded(kind, options):
    data = encoded(Image.new("RGB", (300, 200)), kind, **options)
    with pytest.raises(InputError, match="300 x 200 pixels; at most 59,999"):
        image.decode(data, max_pixels=59_999)
    assert image.decode(data, max_pixels=60_000).shape == (200, 300, 3)


def test_a_bomb_beyond_pillows_own_limit_is_refused():
    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match=r"large|60000"):
        image.decode(png)


def test_a_very_long_picture_is_refused_because_resizing_it_takes_gigabytes():
    with pytest.raises(InputError, match="1 x 70000"):
        image.decode(encoded(Image.new("L", (1, 70_000))))
    assert image.SIGNNET(encoded(Image.new("L", (1, 60_000), 255))).min() == 1.0


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=300),
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x40\0\0\0WEBPVP8X"]),
)
def test_arbitrary_bytes_are_decoded_or_refused(data, start):
    try:
        pixels = image.decode(start + data)
    except InputError:
        return
    assert pixels.ndim == 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_picture_is_decoded_or_refused(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    payload = bytearray(encoded(quadrants(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        assert image.decode(bytes(payload)).shape[2] == 3


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.sampled_from([1, 7, 64]), seed=st.integers(0, 9))
def test_preprocessing_any_size(width, height, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for preprocessor in (image.Preprocessor(size), image.Preprocessor(size, keep=0.875)):
        got = preprocessor(pixels)
        assert got.shape == (1, 3, size, size)
        assert got.dtype == np.float32
        assert got.flags.c_contiguous
        assert got.min() >= 0
        assert got.max() <= 1
        assert np.array_equal(got, preprocessor(encoded(Image.fromarray(pixels))))
        assert np.array_equal(got, preprocessor(pixels[::-1][::-1]))


def test_one_colour_stays_that_colour():
    pixels = np.full((30, 50, 3), (10, 120, 250), np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    got = image.Preprocessor(16, mean, std)(pixels)
    expected = (np.array([10, 120, 250]) / 255 - mean) / std
    assert np.allclose(got[0, :, 3, 5], expected, atol=1e-6)
    assert np.ptp(got[0, 0]) == 0


def test_shrinking_averages_instead_of_picking():
    board = np.indices((256, 256)).sum(0) % 2 * 255
    got = image.SIGNNET(np.repeat(board[..., None], 3, 2).astype(np.uint8))
    assert np.abs(got - 0.5).max() < 0.02


def test_the_centre_square_is_kept():
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 50:150] = 255
    assert image.Preprocessor(32, keep=0.875)(pixels).min() == 1.0
    assert image.Preprocessor(32)(pixels).min() == 0.0


def test_a_batch_is_its_pictures():
    first, second = encoded(quadrants()), np.asarray(quadrants(64, 64))
    batch = image.IMAGENET.batch([first, second])
    assert batch.shape == (2, 3, 224, 224)
    assert np.array_equal(batch[0], image.IMAGENET(first)[0])
    assert np.array_equal(batch[1], image.IMAGENET(second)[0])
    assert batch.flags.c_contiguous
    with pytest.raises(InputError, match="no picture"):
        image.SIGNNET.batch([])


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((3, 64, 64), np.uint8), "channels first"),
        (np.zeros((64, 64), np.uint8), r"\(H, W, 3\), got \(64, 64\)"),
        (np.zeros((64, 64, 4), np.uint8), "RGB"),
        (np.zeros((0, 64, 3), np.uint8), "RGB"),
        (np.zeros((64, 64, 3), np.float32), "uint8"),
    ],
)
def test_arrays_that_are_no_picture_are_told(array, told):
    with pytest.raises(InputError, match=told):
        image.SIGNNET(array)


# Decoding at a fraction of the size

SCALED = dataclasses.replace(image.SIGNNET, reducing_gap=2.0)


def sign(label: str = "stop") -> Image.Image:
    return Image.open(next(sample.path for sample in dataset.samples() if sample.label == label))


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((64, 64), (64, 64)),
        ((255, 255), (255, 255)),
        ((256, 256), (128, 128)),
        ((640, 480), (320, 240)),
        ((1100, 825), (275, 207)),
        ((4000, 3000), (500, 375)),
        ((9000, 130), (9000, 130)),
    ],
)
def test_a_jpeg_is_decoded_no_smaller_than_wanted(size, decoded):
    opened = SCALED.open(encoded(Image.new("RGB", size, "red"), "JPEG"))
    assert opened.image.size == decoded
    assert opened.load().image.size == decoded
    assert image.SIGNNET.open(encoded(Image.new("RGB", size), "JPEG")).load().image.size == size


def test_only_a_jpeg_can_be_decoded_smaller():
    for kind in ("PNG", "WEBP"):
        data = encoded(sign(), kind)
        assert SCALED.open(data).load().image.size == (640, 480)
        assert np.array_equal(SCALED(data), image.SIGNNET(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("keep", [None, 0.875])
def test_the_rounded_edge_of_a_smaller_decode_is_left_out(orientation, keep):
    """1101 x 829 at a quarter is 275.25 x 207.25, stored as 276 x 208: without the box all would be shifted."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(sign().resize((1101, 829), Image.Resampling.BICUBIC), "JPEG", quality=95, exif=exif)
    full, scaled = (
        dataclasses.replace(image.SIGNNET, keep=keep, reducing_gap=gap).resize(data).astype(int) for gap in (None, 2.0)
    )
    assert np.abs(full - scaled).mean() < 0.4  # of 255; about 2 with the edge left in
    assert not np.array_equal(full, scaled)


def test_bounds_apply_to_the_full_size():
    data = encoded(Image.new("RGB", (4000, 3000)), "JPEG")
    with pytest.raises(image.TooLargeError, match="4000 x 3000"):
        SCALED.open(data, max_pixels=11_000_000)
    assert SCALED.open(data).pixels == 500 * 375
    assert SCALED.open(encoded(Image.new("RGB", (4000, 3000)), "JPEG", progressive=True)).pixels == 12_000_000


def test_a_progressive_jpeg_of_endless_scans_is_refused():
    data = encoded(sign(), "JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    endless = data[:-2] + data[first : first + 12] * 300 + data[-2:]
    with pytest.raises(image.TooLargeError, match="more than 200 scans"):
        image.SIGNNET(endless)
    assert image.SIGNNET(data).shape == (1, 3, 64, 64)
