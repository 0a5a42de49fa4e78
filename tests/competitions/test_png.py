"""PNG masks to crops without decoding an image."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.competitions.formats.png import parse, read_mask


def encode(pixels: np.ndarray) -> bytes:
    good, content = cv2.imencode(".png", pixels)
    assert good
    return content.tobytes()


def paeth(left: int, up: int, corner: int) -> int:
    slope = left + up - corner
    return min((left, up, corner), key=lambda v: abs(slope - v))  # min takes the first of equals, as the standard does


def encode_with_filters(pixels: np.ndarray, kinds: list[int]) -> bytes:
    """An 8-bit grey PNG whose row r uses the filter kinds[r]."""
    height, width = pixels.shape
    raw = bytearray()
    for r in range(height):
        raw.append(kinds[r])
        for c in range(width):
            left = int(pixels[r, c - 1]) if c else 0
            up = int(pixels[r - 1, c]) if r else 0
            corner = int(pixels[r - 1, c - 1]) if r and c else 0
            predicted = [0, left, up, (left + up) // 2, paeth(left, up, corner)][kinds[r]]
            raw.append((int(pixels[r, c]) - predicted) % 256)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressed = zlib.compress(bytes(raw))
    half = len(compressed) // 2
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", compressed[:half])
        + chunk(b"IDAT", compressed[half:])
        + chunk(b"IEND", b"")
    )


def assert_same(mask_pixels: np.ndarray, content: bytes) -> None:
    mask = read_mask(content, *mask_pixels.shape)
    frame = np.zeros_like(mask_pixels)
    x0, y0, x1, y1 = mask.box
    frame[y0:y1, x0:x1] = mask.crop
    np.testing.assert_array_equal(frame, mask_pixels > 0)
    if mask_pixels.any():
        assert mask.crop.any(axis=0).all() or mask.crop[:, [0, -1]].any(axis=0).all()  # the box is tight
        assert mask.crop[[0, -1]].any(axis=1).all()
        assert mask.crop[:, [0, -1]].any(axis=0).all()


@settings(max_examples=80, deadline=None)
@given(data=st.data(), height=st.integers(1, 9), width=st.integers(1, 9))
def test_any_mix_of_filters(data: st.DataObject, height: int, width: int) -> None:
    values = data.draw(st.lists(st.sampled_from([0, 0, 0, 255]), min_size=height * width, max_size=height * width))
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    pixels = np.array(values, np.uint8).reshape(height, width)
    content = encode_with_filters(pixels, kinds)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE), pixels)
    assert_same(pixels, content)
    assert read_mask(content, height, width).binary


def test_object_carried_down_by_the_filter_alone() -> None:
    """Below the second row every stored difference is zero, yet the object goes on to the foot."""
    pixels = np.zeros((6, 5), np.uint8)
    pixels[1:, 2] = 255
    assert_same(pixels, encode_with_filters(pixels, [0, 0, 2, 2, 2, 2]))


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_masks(channels: int) -> None:
    pixels = np.zeros((11, 7), np.uint8)
    pixels[2:5, 3:6] = 255
    picture = np.repeat(pixels[:, :, None], channels, axis=2)
    if channels == 4:
        picture[:, :, 3] = 255  # an opaque background is no object
    assert_same(pixels, encode(picture))


def test_one_bit_and_sixteen_bit_masks() -> None:
    pixels = np.zeros((11, 7), np.uint8)
    pixels[2:5, 3:6] = 255
    good, one_bit = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_BILEVEL, 1])
    assert good
    assert_same(pixels, one_bit.tobytes())
    assert_same(pixels, encode(pixels.astype(np.uint16) * 257))


def test_other_values() -> None:
    pixels = np.zeros((4, 4), np.uint8)
    pixels[1, 1:4] = (100, 128, 255)
    mask = read_mask(encode(pixels), 4, 4)
    assert not mask.binary and mask.box.tolist() == [2, 1, 4, 2]
    mask = read_mask(encode((pixels > 0).astype(np.uint8)), 4, 4)  # 0 and 1
    assert not mask.binary and mask.box.tolist() == [1, 1, 4, 2]


def test_empty_mask() -> None:
    mask = read_mask(encode(np.zeros((5, 6), np.uint8)), 5, 6)
    assert mask.box.tolist() == [0, 0, 0, 0] and mask.crop.shape == (0, 0) and mask.binary


def test_damage_is_told_apart() -> None:
    content = encode(np.full((20, 30), 255, np.uint8))
    with pytest.raises(ValueError, match="30x20 pixels, the image is 31x20"):
        read_mask(content, 20, 31)
    for end in (20, len(content) // 2, len(content) - 1):
        with pytest.raises(ValueError, match="cut off"):
            parse(content[:end])
    with pytest.raises(ValueError, match="checksum is wrong"):
        parse(content[:45] + bytes([content[45] ^ 1]) + content[46:])
    with pytest.raises(ValueError, match="is empty"):
        parse(b"")
    with pytest.raises(ValueError, match="not a PNG"):
        parse(b"\xff\xd8\xff\xe0" + content)


def test_pixels_that_are_fewer_or_more_than_promised() -> None:
    whole = encode_with_filters(np.zeros((3, 3), np.uint8), [0, 0, 0])
    header = struct.pack(">IIBBBBB", 3, 4, 8, 0, 0, 0, 0)
    taller = whole[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:]
    with pytest.raises(ValueError, match="12 of 16 bytes"):
        read_mask(taller, 4, 3)


@settings(max_examples=300, deadline=None)
@given(
    chunks=st.lists(
        st.tuples(st.sampled_from([b"IHDR", b"IDAT", b"PLTE", b"tEXt"]), st.integers(0, 2), st.binary(max_size=20)),
        max_size=4,
    ),
    end=st.booleans(),
)
def test_any_chunks_are_a_mask_or_a_clear_error(chunks: list[tuple[bytes, int, bytes]], end: bool) -> None:
    """Chunks with right checksums: what is in them may be anything."""
    head = struct.pack(">IIBBBBB", 5, 4, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, what, raw in [*chunks, *([(b"IEND", 0, b"")] if end else [])]:
        data = {0: raw, 1: head[: len(raw)], 2: zlib.compress(raw)}[what] if kind != b"IEND" else b""
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    try:
        mask = read_mask(content, 4, 5)
    except ValueError:
        return
    assert mask.crop.shape == (mask.box[3] - mask.box[1], mask.box[2] - mask.box[0])
