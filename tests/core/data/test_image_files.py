"""Tests of decoding image files of many formats, written by Pillow."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from zerokara.core.config import UserError
from zerokara.core.data import file_reading
from zerokara.core.data.audit import Audit
from zerokara.core.data.file_reading import read_member
from zerokara.core.data.image_files import (
    convert_channels,
    convert_image_set,
    decode,
    decode_all,
    list_image_files,
    read_image,
    read_size,
    read_visible_luma,
    resize,
    resize_and_crop,
)
from zerokara.core.data.types import image_set

COLORS = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode_list(image: Image.Image, kind: str = "PNG", **options: Any) -> list[Any]:
    values: list[Any] = decode(encode(image, kind, **options), "a.png").tolist()
    return values


def test_rgb_and_grayscale_are_unchanged() -> None:
    for kind in ("PNG", "BMP", "PPM", "TIFF"):
        np.testing.assert_array_equal(decode(encode(Image.fromarray(COLORS), kind), "a.png"), COLORS)
    grayscale = COLORS[..., 0]
    np.testing.assert_array_equal(decode(encode(Image.fromarray(grayscale)), "a.png"), grayscale[..., None])


def test_other_modes_are_converted_to_grayscale_or_rgb() -> None:
    one = Image.new("RGB", (1, 1), (200, 100, 50))
    assert decode_list(one.quantize(4)) == [[[200, 100, 50]]]
    assert decode_list(Image.new("1", (2, 1), 1)) == [[[255], [255]]]
    assert decode_list(Image.fromarray(np.array([[0, 257, 65535]], np.uint16))) == [[[0], [1], [255]]]
    assert decode_list(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")[0][0] == [255, 255, 255]
    # Partly and fully transparent colors are blended with white.
    assert decode_list(Image.new("RGBA", (1, 1), (0, 0, 0, 51))) == [[[204, 204, 204]]]
    assert decode_list(Image.new("LA", (1, 1), (0, 0))) == [[[255]]]
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert decode_list(palette, transparency=0) == [[[255, 255, 255]]]
    assert decode_list(palette) == [[[10, 20, 30]]]


def drawn(ink: int, mode: str = "LA") -> bytes:
    """Encode a transparent image with a square of one gray level."""
    image = Image.new("LA", (8, 8), (ink, 0))
    image.paste((ink, 255), (2, 2, 6, 6))
    return encode(image.convert(mode))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_images_are_placed_on_a_color_that_contrasts(mode: str) -> None:
    audit = Audit()
    assert decode(drawn(255, mode), "a.png", audit=audit)[0, 0, 0] == 0
    assert decode(drawn(255, mode), "a.png")[3, 3, 0] == 255
    assert decode(drawn(0, mode), "a.png", audit=audit)[0, 0, 0] == 255
    assert decode(drawn(128, mode), "a.png", audit=audit)[0, 0, 0] == 255
    assert decode(drawn(255, mode), "a.png", background="white").min() == 255
    assert decode(drawn(0, mode), "a.png", background="black").max() == 0
    assert audit.converted == {"with transparency, placed on black": 1, "with transparency, placed on white": 2}
    opaque = Image.new("LA", (8, 8), (255, 255)).convert(mode)
    assert decode(encode(opaque), "a.png", audit=audit).min() == 255
    assert sum(audit.converted.values()) == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_size_in_the_header_is_that_of_the_decoded_image(kind: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.fromarray(COLORS), kind, exif=exif)
        assert read_size(data, "a") == decode(data, "a").shape[:2] == ((5, 7) if orientation < 5 else (7, 5))


def test_luma_of_the_visible_parts() -> None:
    for mode in ("LA", "RGBA"):
        assert read_visible_luma(drawn(200, mode), "a.png") == 200
    half = Image.new("LA", (2, 1), (100, 51))
    half.putpixel((1, 0), (200, 153))
    assert read_visible_luma(encode(half), "a.png") == pytest.approx((100 * 51 + 200 * 153) / 204)
    palette = Image.new("P", (1, 2))
    palette.putpalette([10, 20, 30, 80, 80, 80])
    palette.putpixel((0, 1), 1)
    assert read_visible_luma(encode(palette, transparency=0), "a.png") == 80
    assert read_visible_luma(encode(palette), "a.png") is None, "it has no transparent color"
    for alpha in (0, 255):
        assert read_visible_luma(encode(Image.new("LA", (2, 2), (9, alpha))), "a.png") is None
    with pytest.raises(UserError, match=r"a\.png cannot be decoded"):
        read_visible_luma(drawn(200)[:-30], "a.png")


def test_16_bits_with_a_transparent_color_are_scaled() -> None:
    """Pillow clips them to 8 bits when it converts them to RGBA."""
    deep = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    data = encode(deep)
    transparent = struct.pack(">H", 257)
    chunk = struct.pack(">I", 2) + b"tRNS" + transparent + struct.pack(">I", zlib.crc32(b"tRNS" + transparent))
    position = data.index(b"IDAT") - 4
    data = data[:position] + chunk + data[position:]
    with Image.open(io.BytesIO(data)) as opened:
        assert "transparency" in opened.info
    assert decode(data, "a.png").tolist() == [[[0], [1], [255]]]


@pytest.mark.parametrize("magic", ["P5", "P2"])
def test_pgm_of_16_bits(magic: str) -> None:
    values = np.array([[0, 257, 65535]], ">u2")
    body = values.tobytes() if magic == "P5" else b"0 257 65535"
    assert decode(f"{magic} 3 1 65535\n".encode() + body, "a.pgm").tolist() == [[[0], [1], [255]]]


def test_hidden_files_in_a_folder_are_not_images(tmp_path: Path) -> None:
    for name in ("._b.png", "b.png", ".DS_Store", "notes.txt", "Thumbs.db"):
        (tmp_path / name).write_bytes(FILES["b"])
    (tmp_path / "folder.png").mkdir()
    assert list_image_files([str(tmp_path)]) == [tmp_path / "b.png"]
    (tmp_path / "c.HEIC").write_bytes(b"x")
    assert list_image_files([str(tmp_path)]) == [tmp_path / "b.png", tmp_path / "c.HEIC"]  # is reported when read


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    upright = decode(encode(Image.fromarray(COLORS), exif=exif), "a.png")
    np.testing.assert_array_equal(upright, np.rot90(COLORS, -1))


def test_first_frame_of_an_animation() -> None:
    first, second = Image.new("L", (2, 1), 7), Image.new("L", (2, 1), 9)
    frames = encode(first, "GIF", save_all=True, append_images=[second])
    assert decode(frames, "a.png")[0, 0].tolist() in ([7], [7, 7, 7])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_further_images_in_a_file_are_counted(kind: str) -> None:
    first, second = Image.fromarray(COLORS), Image.fromarray(COLORS[::-1].copy())
    for more, number in (([second], 1), ([], 0)):
        audit = Audit()
        decode(encode(first, kind, save_all=True, append_images=more), "a", audit=audit)
        assert audit.converted["with several images, of which the first is used"] == number


def test_turned_and_dark_images_are_counted() -> None:
    exif, audit = Image.Exif(), Audit()
    for orientation in (1, 3, 6):
        exif[0x0112] = orientation
        decode(encode(Image.fromarray(COLORS), exif=exif), "a", audit=audit)
    decode(encode(Image.fromarray(np.full((2, 2), 4095, np.uint16))), "a", audit=audit)
    decode(encode(Image.fromarray(np.full((2, 2), 4096, np.uint16))), "a", audit=audit)
    assert audit.converted == {
        "of 16 bits without values above 4,095, which become at most 15 of 255": 1,
        "of 16 bits, reduced to 8": 1,
        "turned as their EXIF orientation says": 2,
    }


def test_a_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(UserError, match="is not a regular file"):
            read_image(tmp_path / name)


def test_many_damaged_images_are_refused() -> None:
    files = {f"{index}": b"" if index < 11 else FILES["a"] for index in range(111)}
    audit = Audit()
    audit.left_out.append("another reader's item")
    assert len(decode_all(list(files), files.__getitem__, "set", None, None, None, audit=audit)[1]) == 100
    del files["110"], files["109"]
    with pytest.raises(UserError, match=r"11 of 109 images in set cannot be used, and at most a tenth .* 0 in set is"):
        decode_all(list(files), files.__getitem__, "set", None, None, None, audit=Audit())
    del files["0"]
    assert len(decode_all(list(files)[:15], files.__getitem__, "set", None, None, None, audit=Audit())[1]) == 5


def bomb() -> bytes:
    """Create a PNG of 63 bytes whose header declares 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(1).integers(256, size=(64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"not an image", "cannot be decoded as an image .no format that Pillow supports"),
        (encode(NOISE, "JPEG")[:-300], "cannot be decoded .*truncated"),
        (encode(NOISE)[:-300], "cannot be decoded"),
        (encode(NOISE, "WEBP")[:-300], "cannot be decoded"),
        (encode(NOISE, "BMP")[:-300], "cannot be decoded"),
        (bomb(), "more than 89,478,485 pixels"),
        (encode(Image.new("F", (2, 2)), "TIFF"), "32-bit pixels"),
    ],
)
def test_invalid_image_is_rejected(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        decode(data, "cats/a.png in zoo.zip")
    assert str(error.value).startswith("cats/a.png in zoo.zip ")


def test_downscaling_averages_areas_and_crops_the_center() -> None:
    wide = np.arange(4 * 12, dtype=np.uint8).reshape(4, 12, 1)
    # 4x12 is reduced to 2x6 by means of 2x2 pixels, then cropped to columns 2 and 3.
    means = np.floor(wide.reshape(2, 2, 6, 2).mean((1, 3)) + 0.5)
    np.testing.assert_array_equal(resize_and_crop(wide, 2)[..., 0], means[:, 2:4])
    np.testing.assert_array_equal(resize_and_crop(wide.transpose(1, 0, 2), 2)[..., 0], means.T[2:4])
    unchanged_height = resize_and_crop(COLORS, 5)  # no resampling
    assert unchanged_height.tolist() == COLORS[:, 1:6].tolist()


@pytest.mark.parametrize("shape", [(3, 3), (1, 9), (9, 1), (101, 7), (64, 65)])
@pytest.mark.parametrize("size", [1, 3, 32])
def test_any_shape_becomes_a_square(shape: tuple[int, int], size: int) -> None:
    for channels in (1, 3):
        square = resize_and_crop(np.full((*shape, channels), 77, np.uint8), size)
        assert square.tolist() == [[[77] * channels] * size] * size


def test_grayscale_is_luma() -> None:
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert convert_channels(primaries, True)[0, :, 0].tolist() == [76, 150, 29, 255]
    assert convert_channels(np.full((1, 1, 1), 9, np.uint8), False).tolist() == [[[9, 9, 9]]]
    assert convert_channels(COLORS, None) is COLORS


FILES = {
    "a": encode(Image.new("L", (4, 4), 5)),
    "b": encode(Image.new("L", (4, 4), 6)),
    "color": encode(Image.new("RGB", (4, 4), (1, 2, 3))),
    "wide": encode(Image.new("L", (6, 3), 7)),
}


def read_all(names: list[str], image_size: int | None = None, grayscale: bool | None = None) -> np.ndarray:
    images, kept = decode_all(names, FILES.__getitem__, "zoo", image_size, grayscale, None)
    assert kept == list(range(len(names)))
    return images


def test_set_is_grayscale_only_if_all_images_are() -> None:
    assert read_all(["a", "b"])[:, :, 0, 0].tolist() == [[5], [6]]
    assert read_all(["a", "b", "color", "a"])[:, :, 0, 0].tolist() == [[5] * 3, [6] * 3, [1, 2, 3], [5] * 3]
    assert read_all(["color", "a"], grayscale=True)[:, :, 0, 0].tolist() == [[2], [5]]
    assert read_all(["a"], grayscale=False).shape == (1, 3, 4, 4)


def test_different_sizes_require_image_size() -> None:
    with pytest.raises(UserError, match=r"wide in zoo has 6x3 pixels, but a has 4x4: .* --image-size 4"):
        read_all(["a", "wide"])
    assert read_all(["a", "wide"], image_size=3)[:, 0, 0, 0].tolist() == [5, 7]
    assert read_all(["wide"]).shape == (1, 1, 3, 6)


def test_too_large_set_is_rejected_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 100

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert len(read_all(["a"] * 5)) == 5  # 80 bytes
    with pytest.raises(UserError, match=r"The 6 images of zoo need .* at 4x4"):
        read_all(["a"] * 6)
    with pytest.raises(UserError, match="The 2 images of zoo need"):  # a color image after grayscale ones
        read_all(["a", "color"])


def test_progress_ends_with_the_total() -> None:
    calls: list[tuple[str, int, int]] = []
    decode_all(["a"] * 300, FILES.__getitem__, "zoo", None, None, lambda *args: calls.append(args))
    assert calls == [("images read from zoo", 256, 300), ("images read from zoo", 300, 300)]


def test_conversion_in_memory_equals_decode_all() -> None:
    images = image_set(COLORS.transpose(2, 0, 1)[None], np.array([0]), ("a",), "one")
    assert convert_image_set(images, None, None) is images
    assert convert_image_set(images, None, False) is images
    small = convert_image_set(images, 3, True)
    expected = convert_channels(resize_and_crop(COLORS, 3), True)
    assert torch.equal(small.images[0], torch.from_numpy(expected.transpose(2, 0, 1).copy()))
    assert (small.labels.tolist(), small.classes, small.source) == ([0], ("a",), "one")
    grayscale = cv2.cvtColor(COLORS, cv2.COLOR_RGB2GRAY)
    assert torch.equal(convert_image_set(images, None, True).images[0, 0], torch.from_numpy(grayscale))


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_averages_areas_and_does_not_crop(channels: int) -> None:
    image = np.repeat(np.array([[0, 100, 20, 40]], np.uint8).repeat(2, 0)[..., None], channels, 2)
    assert resize(image, (1, 2)).tolist() == [[[50] * channels, [30] * channels]]
    assert resize(image, (2, 4)) is image
    assert resize(image, (5, 7)).shape == (5, 7, channels)


def test_image_files_are_read_from_folders_and_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((2, 3, 3), 7, np.uint8)).save(path)
    assert read_image(path).tolist() == np.full((2, 3, 3), 7).tolist()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert read_member(archive, "a.png") == path.read_bytes()
        with pytest.raises(UserError, match=r"none\.png cannot be read .*give an image file that exists"):
            read_image(tmp_path / "none.png")
        monkeypatch.setattr(file_reading, "MAX_BYTES", 8)
        with pytest.raises(UserError, match=r"a\.png has 0 MiB"):
            read_image(path)
        with pytest.raises(UserError, match=r"a\.png in .*a\.zip has 0 MiB"):
            read_member(archive, "a.png")
