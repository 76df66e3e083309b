"""Tests of the defaults for pictures of one's own: size, background, channels, held-out images and augmentation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zerokara.core.command_line import parse
from zerokara.core.config import UserError, from_dict
from zerokara.core.data import survey
from zerokara.core.data.image_files import read_size
from zerokara.core.training_program import open_run
from zerokara.generative.gan.config import KIND, PRESETS, Config
from zerokara.generative.gan.config import read_config as read_command_line
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.own_defaults import FEW_AUGMENTATION, choose_size, held_out_images

EXIF_TURNED = 6  # the camera was turned: the right half of the file is the lower half of the picture


def config(folder: Path, *words: str) -> Config:
    return parse(Config, PRESETS, ["--data", str(folder), "--batch-size", "16", *words], "")


def write_noise(folder: Path, *sizes: tuple[int, int], number: int = 100, mode: str = "L") -> Path:
    """Write images of noise as PNG files, whose sizes (width, height) are these in turn."""
    rng = np.random.default_rng(0)
    for index in range(number):
        width, height = sizes[index % len(sizes)]
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{index:03}.png")
    return folder


def write_icons(folder: Path, levels: Sequence[int], side: int = 32, number: int = 100) -> Path:
    """Write icons with transparency, squares of these gray levels in turn."""
    for index in range(number):
        icon = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        icon.paste((*[levels[index % len(levels)]] * 3, 255), (side // 4, side // 4, side // 2, side // 2))
        icon.save(folder / f"{index:03}.png")
    return folder


def corner_levels(data: Data) -> set[int]:
    """Return the gray levels of the corners of all images, which are transparent in icons."""
    return {int(level) for level in torch.cat([data.train.images, data.held_out.images])[:, :, 0, 0].unique()}


# ---- size


@pytest.mark.parametrize(
    ("sizes", "chosen", "shape"),
    [
        ([(24, 24)], (32,), (32, 32)),
        ([(28, 28)], (), (28, 28)),
        ([(40, 32)], (), (32, 40)),
        ([(64, 64)], (), (64, 64)),
        ([(65, 64)], (64,), (64, 64)),
        ([(256, 256)], (64,), (64, 64)),
        ([(300, 200)], (64,), (64, 64)),
        ([(64, 20)], (32,), (32, 32)),
        ([(24, 24), (24, 25)], (32,), (32, 32)),
        ([(48, 48), (40, 60)], (32,), (32, 32)),
        ([(48, 48), (200, 300), (48, 50)], (32,), (32, 32)),
        ([(48, 48), (64, 90), (300, 70)], (64,), (64, 64)),
    ],
)
def test_the_size_is_chosen_by_one_rule(
    sizes: list[tuple[int, int]], chosen: tuple[int, ...], shape: tuple[int, int], tmp_path: Path
) -> None:
    asked = config(write_noise(tmp_path, *sizes))
    settings, data = Data.load_with_defaults(asked)
    assert settings.image_size == chosen
    assert data.train.shape == (1, *shape)
    line = data.messages[0]
    assert line.startswith(f"{tmp_path}: all images have" if len(sizes) == 1 else f"{tmp_path}: the images have ")
    assert ("are not resized" if chosen == () else f"are resized to cover {shape[1]}x{shape[0]} pixels") in line
    assert "--image-size" in line
    again = Data.load(settings)
    assert torch.equal(data.train.images, again.train.images), "the saved config gives the same images"


def test_the_size_that_half_of_the_images_have() -> None:
    assert choose_size(Counter({(64, 80): 5, (20, 20): 5})) == (32,)
    assert choose_size(Counter({(64, 80): 6, (20, 20): 5})) == (64,)


def test_a_size_that_was_given_is_kept(tmp_path: Path) -> None:
    settings, data = Data.load_with_defaults(config(write_noise(tmp_path, (256, 256)), "--image-size", "30", "48"))
    assert settings.image_size == (30, 48)
    assert data.train.shape == (1, 30, 48)
    assert not any("--image-size" in message for message in data.messages)


def test_a_resumed_run_keeps_its_size(tmp_path: Path) -> None:
    """A run of an older release had images of one size as they are."""
    write_noise(tmp_path, (96, 96))
    resumed = config(tmp_path, "--resume")
    settings, data = Data.load_with_defaults(resumed)
    assert settings is resumed
    assert data.train.shape == (1, 96, 96)
    write_noise(tmp_path, (90, 90), number=3)
    with pytest.raises(UserError, match=r"2 sizes, most of 96x96 pixels: .*--image-size"):
        Data.load_with_defaults(resumed)


def test_pictures_of_a_phone_are_turned_before_their_sizes_are_compared(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = EXIF_TURNED
    for index in range(100):
        if index % 2:
            Image.new("RGB", (40, 60)).save(tmp_path / f"{index:03}.jpg")
        else:
            Image.new("RGB", (60, 40)).save(tmp_path / f"{index:03}.jpg", exif=exif)
    settings, data = Data.load_with_defaults(config(tmp_path))
    assert settings.image_size == ()
    assert data.train.shape == (1, 60, 40)


def test_images_without_a_size_are_named_when_they_are_read(tmp_path: Path) -> None:
    write_noise(tmp_path, (50, 50))
    (tmp_path / "001.png").write_bytes(b"not an image")
    Image.new("L", (7, 90)).save(tmp_path / "002.png")
    settings, data = Data.load_with_defaults(config(tmp_path))
    assert settings.image_size == ()
    left_out = next(message for message in data.messages if message.startswith("2 left out"))
    assert "001.png" in left_out
    assert "7x90 pixels" in left_out


# ---- background


@pytest.mark.parametrize(
    ("levels", "background"),
    [((128,), "white"), ((128, 255), "black"), ((128, 0), "white"), ((255, 0), "white"), ((255, 0, 255), "black")],
)
def test_all_icons_have_one_background(levels: tuple[int, ...], background: str, tmp_path: Path) -> None:
    settings, data = Data.load_with_defaults(config(write_icons(tmp_path, levels)))
    assert settings.background == background
    assert corner_levels(data) == {255 if background == "white" else 0}
    line = next(message for message in data.messages if "--background" in message)
    assert " cannot be told from white, " in line
    assert f"90 images with transparency, all placed on {background} (" in line
    assert f"converted: 90 with transparency, placed on {background}" in data.messages


@pytest.mark.parametrize("background", ["white", "black"])
def test_a_background_that_was_given_is_kept(background: str, tmp_path: Path) -> None:
    settings, data = Data.load_with_defaults(config(write_icons(tmp_path, (0, 255)), "--background", background))
    assert settings.background == background
    assert corner_levels(data) == {255 if background == "white" else 0}
    assert not any("--background" in message for message in data.messages)


def test_with_a_size_only_files_that_may_have_transparency_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photographs would otherwise be read twice."""
    write_icons(tmp_path, (255,))
    for index in range(20):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{index:03}a.JPG")
    seen: list[str] = []

    def read(data: bytes, name: str) -> tuple[int, int]:
        seen.append(name)
        return read_size(data, name)

    monkeypatch.setattr(survey, "read_size", read)
    settings, data = Data.load_with_defaults(config(tmp_path, "--image-size", "32"))
    assert (settings.background, data.train.shape) == ("black", (1, 32, 32))
    assert {name.partition(" ")[0][-4:] for name in seen} == {".png"}
    seen.clear()
    Data.load_with_defaults(config(tmp_path))
    assert {name.partition(" ")[0][-4:] for name in seen} == {".png", ".JPG"}


def test_without_transparency_no_background_is_chosen(tmp_path: Path) -> None:
    opaque = write_noise(tmp_path, (32, 32), mode="RGBA")
    settings, data = Data.load_with_defaults(config(opaque))
    assert settings.background == "auto"
    assert not any("--background" in message for message in data.messages)


def test_a_resumed_run_keeps_a_background_for_each_image(tmp_path: Path) -> None:
    """Older releases chose it anew for each image."""
    settings, data = Data.load_with_defaults(config(write_icons(tmp_path, (0, 255)), "--resume"))
    assert settings.background == "auto"
    assert corner_levels(data) == {0, 255}


# ---- resumption


def test_a_run_is_resumed_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun does after a failure. A value that asks for the default counts as not given."""
    monkeypatch.chdir(tmp_path)
    icons = tmp_path / "icons"
    icons.mkdir()
    automatic = ["--background", "auto", "--held-out-images", "0", "--image-size"]
    words = ["--data", str(write_icons(icons, (255,))), "--batch-size", "16", "--name", "a", *automatic]
    asked = read_command_line(words)
    settings, _ = Data.load_with_defaults(dataclasses.replace(asked, data=str(icons)))
    settings = dataclasses.replace(settings, image_size=(64,))
    with open_run(settings, KIND):
        pass
    resumed = read_command_line([*words, "--resume"])
    assert (resumed.background, resumed.held_out_images, resumed.image_size) == ("black", 18, (64,))
    for given in (["--background", "white"], ["--held-out-images", "20"], ["--image-size", "32"]):
        with pytest.raises(UserError, match="cannot be resumed with"):
            read_command_line(["--name", "a", "--resume", *given])


# ---- few images


@pytest.mark.parametrize(
    ("number", "held_out"),
    [(79, 15), (90, 18), (250, 50), (270, 50), (600, 50), (612, 51), (6_000, 500), (100_000, 5_000)],
)
def test_the_number_of_held_out_images(number: int, held_out: int) -> None:
    assert held_out_images(number) == held_out


def test_a_hundred_pictures_suffice(tmp_path: Path) -> None:
    settings, data = Data.load_with_defaults(config(write_noise(tmp_path, (28, 28)), "--batch-size", "64"))
    assert (len(data.train), len(data.held_out)) == (72, 18)
    assert settings.held_out_images == 18
    assert any("18 of 90 images are held out" in message for message in data.messages)
    again = Data.load(dataclasses.replace(settings, resume=True))
    assert torch.equal(again.held_out.images, data.held_out.images), "a resumed run has the same split"


def test_the_number_of_files_that_are_needed(tmp_path: Path) -> None:
    write_noise(tmp_path, (28, 28), number=87)
    with pytest.raises(UserError, match=r"78 images, too few .* 79 are needed \(15 are held out\), or 88 in a folder"):
        Data.load_with_defaults(config(tmp_path))
    write_noise(tmp_path, (28, 28), number=88)
    assert len(Data.load_with_defaults(config(tmp_path))[1].train) == 64


def test_a_number_of_held_out_images_that_was_given_is_kept(tmp_path: Path) -> None:
    write_noise(tmp_path, (28, 28))
    settings, data = Data.load_with_defaults(config(tmp_path, "--held-out-images", "10"))
    assert (settings.held_out_images, len(data.held_out)) == (10, 10)
    assert not any("--held-out-images" in message for message in data.messages)


def test_a_resumed_run_of_an_older_release_holds_out_a_twelfth(tmp_path: Path) -> None:
    _, data = Data.load_with_defaults(config(write_noise(tmp_path, (28, 28), number=120), "--resume"))
    assert (len(data.train), len(data.held_out)) == (99, 9)


def test_few_images_are_augmented_and_not_mirrored(tmp_path: Path) -> None:
    settings, data = Data.load_with_defaults(config(write_noise(tmp_path, (28, 28))))
    assert settings.diffaugment == FEW_AUGMENTATION
    assert not settings.flip
    line = data.messages[-1]
    assert "(--diffaugment color translation cutout)" in line
    assert (
        "--no-augment-few-images leaves it out. Images are not mirrored, which letters and digits must not be" in line
    )
    mirrored, data = Data.load_with_defaults(config(tmp_path, "--flip"))
    assert mirrored.flip
    assert data.messages[-1].endswith("--no-augment-few-images leaves it out.")


@pytest.mark.parametrize("preset", ["paper", "r3"])
def test_presets_of_papers_do_not_augment_few_images(preset: str, tmp_path: Path) -> None:
    write_noise(tmp_path, (28, 28))
    settings, _ = Data.load_with_defaults(config(tmp_path, "--preset", preset))
    assert settings.diffaugment == ()
    settings, _ = Data.load_with_defaults(config(tmp_path, "--preset", preset, "--augment-few-images"))
    assert settings.diffaugment == FEW_AUGMENTATION


@pytest.mark.parametrize(
    "words",
    [
        ("--no-augment-few-images",),
        ("--ada", "color"),
        ("--diffaugment", "cutout"),
        ("--diffaugment",),
        ("--resume",),
    ],
)
def test_an_augmentation_that_was_given_is_kept(words: tuple[str, ...], tmp_path: Path) -> None:
    write_noise(tmp_path, (28, 28))
    if words == ("--resume",):
        asked = config(tmp_path, *words)
    else:
        asked = read_command_line(["--data", str(tmp_path), "--batch-size", "16", *words])
    settings, data = Data.load_with_defaults(asked)
    assert (settings.diffaugment, settings.ada) == (asked.diffaugment, asked.ada)
    assert not any("is augmented" in message for message in data.messages)


@pytest.mark.parametrize(
    ("words", "diffaugment", "ada"),
    [
        (("--diffaugment", "cutout"), ("cutout",), ()),
        (("--diffaugment", "cutout", "--augment-few-images"), ("cutout",), ()),
        (("--diffaugment", "cutout", "--no-augment-few-images"), ("cutout",), ()),
        (("--ada", "color", "--augment-few-images"), (), ("color",)),
        (("--ada", "color", "--diffaugment", "--augment-few-images"), (), ("color",)),
        (("--ada", "--augment-few-images"), FEW_AUGMENTATION, ()),
        (("--augment-few-images",), FEW_AUGMENTATION, ()),
        (("--diffaugment",), (), ()),
    ],
)
def test_a_run_is_resumed_by_the_same_command_with_its_augmentation(
    words: tuple[str, ...],
    diffaugment: tuple[str, ...],
    ada: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    write_noise(tmp_path / "noise", (28, 28))
    words = ("--data", "./noise", "--batch-size", "16", "--name", "a", *words)
    settings, _ = Data.load_with_defaults(read_command_line(words))
    assert (settings.diffaugment, settings.ada) == (diffaugment, ada)
    with open_run(settings, KIND):
        pass
    for again in ([*words, "--resume"], ["--name", "a", "--resume"]):
        assert read_command_line(again) == dataclasses.replace(settings, resume=True)


def test_no_augmentation_and_one_of_few_images_are_refused_together() -> None:
    with pytest.raises(UserError, match=r"^--diffaugment without words .*, and --augment-few-images for one: leave"):
        read_command_line(["--diffaugment", "--augment-few-images"])


@pytest.mark.parametrize("options", [{"ada": ("color",)}, {"diffaugment": ("cutout",)}])
def test_an_augmentation_of_a_preset_or_from_python_is_kept(options: dict[str, Any], tmp_path: Path) -> None:
    asked = dataclasses.replace(config(write_noise(tmp_path, (28, 28))), **options)
    settings, _ = Data.load_with_defaults(asked)
    assert (settings.diffaugment, settings.ada) == (asked.diffaugment, asked.ada)


def test_many_images_and_named_data_sets_have_no_such_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerokara.generative.gan.own_defaults.FEW_IMAGES", 72)
    settings, _ = Data.load_with_defaults(config(write_noise(tmp_path, (28, 28))))
    assert settings.diffaugment == ()
    frames = parse(Config, PRESETS, ["--data", "frames:zerokara/Catch-v0", "--frames", "120"], "")
    assert Data.load_with_defaults(frames)[0] is frames


def test_runs_of_older_releases_have_no_augmentation_by_default() -> None:
    assert not from_dict(Config, {"data": "photos"}, "config.json").augment_few_images


def test_few_images_are_announced_with_what_helps(tmp_path: Path) -> None:
    settings = config(write_noise(tmp_path, (28, 28), number=130), "--updates", "1000")
    data = Data.load(settings)
    warning = data.few_images_warning(settings)
    assert warning.startswith("108 training images are few: in 1,000 updates the discriminator sees each of them 148 ")
    assert warning.endswith(
        "Measures to take in a new run: more images, --diffaugment color translation cutout, "
        "--ada blit geometry color, --flip, if mirror images are as good."
    )
    for words in (("--diffaugment", "color", "--flip"), ("--ada", "color", "--flip")):
        assert data.few_images_warning(config(tmp_path, *words)).endswith("in a new run: more images.")
    for name in ("mnist", "frames:zerokara/Catch-v0"):
        assert data.few_images_warning(dataclasses.replace(settings, data=name)) == ""


def test_pictures_of_a_phone_with_transparency_and_of_any_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = EXIF_TURNED
    for index in range(135):
        pixels = np.zeros((300, 400, 3), np.uint8)
        pixels[:, 200:, index % 3] = 255
        picture = Image.fromarray(pixels)
        if index % 3 == 0:
            picture.save(tmp_path / f"{index:03}.jpg", exif=exif)
        else:
            picture.resize((50 + index, 70)).convert("RGBA" if index % 3 == 1 else "P").save(
                tmp_path / f"{index:03}.png"
            )
    _, data = Data.load_with_defaults(config(tmp_path))
    assert data.train.shape == (3, 64, 64)
    everything = torch.cat([data.train.images, data.held_out.images]).float()
    turned = everything[:, 0, -8:].mean((1, 2)) > 200
    assert 0 < turned.sum() < len(everything)
    assert (everything[turned][:, 0, :8] < 40).all(), "the upper half of the turned photographs is black"
    assert any("with a palette" in message for message in data.messages)


# ---- channels


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_black_and_white_pictures_are_trained_in_one_channel(mode: str, tmp_path: Path) -> None:
    """Drawings are often saved in color. Some of these have one channel as a file."""
    for index in range(100):
        gray = Image.fromarray(np.random.default_rng(index).integers(0, 256, (70, 75), np.uint8))
        gray.convert(mode if index % 3 else "L").save(tmp_path / f"{index:03}.png")
    asked = config(tmp_path)
    settings, data = Data.load_with_defaults(asked)
    assert data.train.shape == data.held_out.shape == (1, 64, 64)
    line = "red, green and blue are equal in all images, so they are converted to grayscale; --no-grayscale keeps"
    assert sum(line in message for message in data.messages) == (mode != "L")
    assert settings.grayscale == (None if mode == "L" else True)
    again = Data.load(settings)
    assert torch.equal(again.train.images, data.train.images), "the saved config gives the same images"
    kept, data = Data.load_with_defaults(config(tmp_path, "--no-grayscale"))
    assert (kept.grayscale, data.train.shape) == (False, (3, 64, 64))
    settings, data = Data.load_with_defaults(dataclasses.replace(asked, resume=True))
    assert settings.grayscale is None
    assert data.train.shape[0] == (1 if mode == "L" else 3), "a run of an older release keeps its channels"


@pytest.mark.parametrize("channel", [1, 2])
def test_one_colored_pixel_is_color(channel: int, tmp_path: Path) -> None:
    write_noise(tmp_path, (32, 32))
    pixels = np.full((32, 32, 3), 128, np.uint8)
    pixels[3, 5, channel] = 129
    Image.fromarray(pixels).save(tmp_path / "042.png")
    settings, data = Data.load_with_defaults(config(tmp_path))
    assert (settings.grayscale, data.train.shape) == (None, (3, 32, 32))
    assert not any("--no-grayscale" in message for message in data.messages)
