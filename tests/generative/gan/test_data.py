"""Tests of training images: sources, conversions, unreadable images, and error messages."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any, get_args

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.core.data import Split, glyphs, image_files
from zerokara.envs.frames import record
from zerokara.generative.gan import data as gan_data
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.data import Data, load_split


def config(*words: str) -> Config:
    return parse(Config, PRESETS, ["--batch-size", "16", *words], "")


def noise_image(index: int, size: tuple[int, int] = (32, 40), mode: str = "L") -> Image.Image:
    """Make an image of noise (H, W) in a mode that Pillow can convert to."""
    rng = np.random.default_rng(index)
    colors = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return colors if mode == "RGB" else colors.convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of 130 grayscale images of 32x40 pixels."""
    (tmp_path / "pictures").mkdir()
    for index in range(130):
        noise_image(index).save(tmp_path / "pictures" / f"{index:03}.png")
    return tmp_path / "pictures"


def test_a_folder_is_split_and_counted(folder: Path) -> None:
    data = Data.load(config("--data", str(folder)))
    assert data.train.shape == (1, 32, 40)
    assert (len(data.train), len(data.held_out)) == (
        108,
        9,
    )  # of 130 images, 13 are test images and a twelfth of the rest is held out
    assert data.messages == (f"{folder}: 117 images",)
    test, _ = load_split(config("--data", str(folder)), "test")
    everything = torch.cat([data.train.images, data.held_out.images, test.images]).flatten(1)
    assert len(everything.unique(dim=0)) == 130, "the splits must be disjoint"


def test_held_out_images_do_not_depend_on_the_seed(folder: Path) -> None:
    one, other = (Data.load(config("--data", str(folder), "--seed", seed)) for seed in ("1", "2"))
    assert torch.equal(one.held_out.images, other.held_out.images)


def test_zip_file_gives_the_same_images_as_a_folder(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"pictures/{path.name}")
        archive.writestr("__MACOSX/._000.png", b"not an image")
    zipped = Data.load(config("--data", str(tmp_path / "pictures.zip")))
    assert torch.equal(zipped.train.images, Data.load(config("--data", str(folder))).train.images)


def test_unreadable_images_are_named_and_left_out(folder: Path) -> None:
    whole = (folder / "001.png").read_bytes()
    (folder / "001-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b-empty.jpg").write_bytes(b"")
    (folder / "c-text.png").write_text("not an image")
    noise_image(0, (1, 1)).save(folder / "d-one-pixel.png")
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "png")
    (folder / "e-bomb.png").write_bytes(bomb.getvalue())
    (folder / "notes.txt").write_text("not an image file")
    data = Data.load(config("--data", str(folder)))
    left_out = data.messages[-1]
    for name in ("001-truncated.png", "b-empty.jpg", "c-text.png", "d-one-pixel.png", "e-bomb.png"):
        assert name in left_out
    assert left_out.startswith("5 left out:")
    assert "1x1 pixels" in left_out
    assert "notes" not in left_out


@pytest.mark.parametrize(
    ("mode", "suffix", "message"),
    [
        ("P", "png", "3 with a palette"),
        ("RGBA", "png", "3 with transparency"),
        ("LA", "png", "3 with transparency"),
        ("CMYK", "jpg", "3 in CMYK"),
        ("1", "png", "3 of 1 bit"),
    ],
)
def test_other_modes_are_converted_and_counted(folder: Path, mode: str, suffix: str, message: str) -> None:
    for index in range(1, 4):
        image = noise_image(index, mode=mode)
        if "A" in mode:
            image.putalpha(100)
        image.save(folder / f"{index:03}-odd.{suffix}")
    data = Data.load(config("--data", str(folder)))
    converted = next(remark for remark in data.messages if remark.startswith("converted: "))
    assert message in converted
    color = mode in ("P", "RGBA", "CMYK")
    assert data.train.shape[0] == (3 if color else 1)
    assert ("of one channel, repeated in three" in converted) == color


def test_16_bits_become_8(folder: Path) -> None:
    Image.fromarray(np.full((32, 40), 32_896, np.uint16)).save(folder / "000-deep.png")
    (folder / "000.png").unlink()
    test, messages = load_split(config("--data", str(folder)), "test")
    assert (test.images[0] == 128).all(), "half of the range must stay half"
    assert "1 of 16 bits, reduced to 8" in messages[-1]


def test_grayscale_option(folder: Path) -> None:
    noise_image(500, mode="RGB").save(folder / "001-red.png")
    assert Data.load(config("--data", str(folder))).train.shape == (3, 32, 40)
    assert Data.load(config("--data", str(folder), "--grayscale", "True")).train.shape == (1, 32, 40)


def test_mixed_sizes_are_refused_with_advice(folder: Path) -> None:
    noise_image(500, (50, 60)).save(folder / "001-large.png")
    with pytest.raises(UserError, match=r"2 sizes, most of 32x40 pixels: .*--image-size 32"):
        Data.load(config("--data", str(folder)))
    assert Data.load(config("--data", str(folder), "--image-size", "32")).train.shape == (1, 32, 32)
    assert Data.load(config("--data", str(folder), "--image-size", "30", "64")).train.shape == (1, 30, 64)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ((), r"at least 69 are needed \(5 are held out\), or 77 in a folder without test images of its own\."),
        (("--held-out-images", "40"), r"at least 104 are needed \(40 are held out\), or 116 in a folder .* own\."),
        (
            ("--batch-size", "90"),
            r"at least 98 are needed \(8 are held out\), or 109 in .* own; a --batch-size below 90 needs fewer\.",
        ),
    ],
)
def test_too_few_images_are_refused(folder: Path, words: tuple[str, ...], needed: str) -> None:
    for path in list(folder.iterdir())[: 54 if not words else 40]:
        path.unlink()
    number = 68 if not words else 81
    with pytest.raises(UserError, match=rf"{number} images, too few for training: {needed}"):
        Data.load(config("--data", str(folder), *words))


def test_the_number_of_files_that_the_message_names_is_enough(folder: Path) -> None:
    for path in sorted(folder.iterdir())[77:]:
        path.unlink()
    assert len(Data.load(config("--data", str(folder))).train) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "32", "40", "50"], "--image-size takes one side, or height and width"),
        (["--held-out-images", "3"], "--held-out-images must be at least 8"),
        (["--conditional"], "has no classes"),
    ],
)
def test_invalid_options_are_refused(folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        Data.load(config("--data", str(folder), *words))
    assert message in str(error.value)


def test_unsupported_sizes_are_refused(tmp_path: Path) -> None:
    for index in range(5):
        noise_image(index, (20, 64)).save(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match=r"20x64 pixels, and sides of 28 to 256 .*--image-size 64"):
        Data.load(config("--data", str(tmp_path)))


def test_folders_without_images_invalid_zip_files_and_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable images"):
        Data.load(config("--data", str(tmp_path)))
    (tmp_path / "some.zip").write_bytes(b"PK no")
    with pytest.raises(UserError, match="not a valid zip"):
        Data.load(config("--data", str(tmp_path / "some.zip")))
    with pytest.raises(UserError, match="nowhere"):
        Data.load(config("--data", str(tmp_path / "nowhere")))


def test_classes_are_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(80):
            noise_image(index + 100 * (name == "dog")).save(tmp_path / name / f"{index}.png")
    data = Data.load(config("--data", str(tmp_path), "--conditional"))
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels.bincount().tolist() == [66, 66]


def test_frames_of_an_environment() -> None:
    words = ("--data", "frames:zerokara/Catch-v0", "--frames", "150")
    one = Data.load(config(*words))
    assert one.train.shape == (1, 84, 84)
    assert Data.load(config(*words, "--image-size", "48")).train.shape == (1, 48, 48)
    four = Data.load(config(*words, "--frame-stack", "4"))
    assert four.train.shape == (4, 84, 84)
    with pytest.raises(UserError, match="remove --image-size"):
        Data.load(config(*words, "--frame-stack", "4", "--image-size", "48"))


def test_held_out_frames_are_of_separate_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[int, int]] = []

    def recorded(id: str, number: int, *, seed: int, **options: Any) -> np.ndarray:
        played.append((seed, number))
        return record(id, number, seed=seed, **options)

    monkeypatch.setattr(gan_data, "record", recorded)
    words = ("--data", "frames:zerokara/Catch-v0", "--frames", "240", "--batch-size", "16")
    one = Data.load(config(*words))
    assert (len(one.train), len(one.held_out)) == (220, 20)
    load_split(config(*words), "test")
    Data.load(config(*words, "--seed", "2"))
    assert [number for _, number in played] == [240, 20, 100, 240, 20]
    assert len({seed for seed, _ in played}) == 5, "splits must not share episodes"
    assert "held out" in one.held_out.source


def test_a_large_image_is_refused_before_the_rest_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs that are not resized could fill the memory."""
    decoded: list[str] = []
    original = image_files.decode

    def decode(data: bytes, name: str, **options: Any) -> np.ndarray:
        decoded.append(name)
        return original(data, name, **options)

    noise_image(0, (40, 300)).save(folder / "002.png")
    monkeypatch.setattr(gan_data, "decode", decode)
    with pytest.raises(UserError, match=r"002\.png in .* has 300x40 pixels, and sides of 28 to 256 .*--image-size 64"):
        Data.load(config("--data", str(folder)))
    assert decoded == [f"{name} in {folder}" for name in ("001.png", "002.png")]
    assert Data.load(config("--data", str(folder), "--image-size", "32")).train.shape == (1, 32, 32)


def test_an_lsun_database_is_read(tmp_path: Path) -> None:
    database = tmp_path / "tower_train_lmdb"
    with lmdb.open(str(database), map_size=2**24) as env, env.begin(write=True) as transaction:
        for index in range(150):
            buffer = io.BytesIO()
            noise_image(index).save(buffer, "webp", lossless=True)
            transaction.put(f"{index:05}".encode(), b"not an image" if index == 7 else buffer.getvalue())
    data = Data.load(config("--data", str(tmp_path), "--batch-size", "16"))
    assert data.train.classes == ("tower",)
    assert len(data.train) + len(data.held_out) == 134, "every tenth is a test image, and one is unreadable"
    assert any("1 left out" in remark for remark in data.messages)
    assert len(load_split(config("--data", str(tmp_path)), "test")[0]) == 15


def test_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 240, "test": 40})
    data = Data.load(config())
    assert (data.train.shape, len(data.train), len(data.held_out)) == ((1, 28, 28), 220, 20)
    assert Data.load(config("--image-size", "32")).train.shape == (1, 32, 32)


def test_mnist(data_dir: Path) -> None:
    data = Data.load(config("--data", "mnist", "--data-dir", str(data_dir)))
    assert (data.train.shape, len(data.train), len(data.held_out)) == ((1, 28, 28), 55_000, 5_000)


@pytest.mark.parametrize("labeled", [True, False])
def test_the_folders_of_stylegans_dataset_tool_are_not_classes(tmp_path: Path, labeled: bool) -> None:
    names = [f"{index // 50:05}/img{index:08}.png" for index in range(200)]
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (32, 32), index % 3).save(tmp_path / name)
    labels = [[name, index % 3] for index, name in enumerate(names[1:], 1)] if labeled else None
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    images, messages = load_split(config("--data", str(tmp_path)), "train")
    assert images.classes == (("0", "1", "2") if labeled else ("all",))
    if labeled:
        assert images.labels.tolist() == images.images[:, 0, 0, 0].tolist()
        assert any(f"not used: 1 image without a label, such as {names[0]}" in line for line in messages)


def test_labels_of_stylegans_dataset_tool_in_folders_of_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = []
        for index in range(120):
            name = f"{index // 50:05}/img{index:08}.png"
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), index % 3).save(tmp_path / split / name)
            rows.append([name, index % 3])
        (tmp_path / split / "dataset.json").write_text(json.dumps({"labels": rows}))
    loaded = [load_split(config("--data", str(tmp_path)), split)[0] for split in get_args(Split)]
    for images in loaded:
        assert (len(images), images.classes) == (120, ("0", "1", "2"))
        assert images.labels.tolist() == images.images[:, 0, 0, 0].tolist()
        assert "labels of dataset.json" in images.source


def test_emnist_is_found_by_name(tmp_path: Path) -> None:
    def idx(array: np.ndarray) -> bytes:
        return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()

    images = np.zeros((4, 28, 28), np.uint8)
    images[:, 3, 5] = 200  # images are stored transposed
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte").write_bytes(idx(np.arange(1, 5, dtype=np.uint8)))
    loaded, _ = load_split(config("--data", "emnist-letters", "--data-dir", str(tmp_path), "--conditional"), "train")
    assert (loaded.shape, loaded.classes[:2], loaded.labels.tolist()) == ((1, 28, 28), ("A", "B"), [0, 1, 2, 3])
    assert int(loaded.images[0, 0, 5, 3]) == 200
    with pytest.raises(UserError, match=f"give --data emnist-letters --data-dir {tmp_path}"):
        load_split(config("--data", str(tmp_path)), "train")
