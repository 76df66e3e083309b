"""Tests of generative.project: recovered latent vectors, pictures as people have them, files, interpolation between."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.generative.finished_run import HERE
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.media import write_png
from zerokara.generative import interpolate, project
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.latent_file import ProjectedPicture, load_latents, save_latents
from zerokara.generative.gan.learner import make_generator
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.project import Difference, Options, longest, read_picture, to_training_range

QUICK = ("--candidates", "16", "--restarts", "2", "--steps", "5")


def make_sampler(classes: tuple[str, ...] = (), channels: int = 1, **options: object) -> Sampler:
    """Return a random generator of 28x28 pixels whose images are diverse."""
    torch.manual_seed(3)
    config = Config(generator_width=0.1, latent_dim=8, generator_norm="none", **options)  # type: ignore[arg-type]
    network = make_generator(config, (channels, 28, 28), len(classes)).eval().requires_grad_(False)
    network.project.weight[:, 8:] *= 4  # images of different classes are different
    return Sampler(network, config, (channels, 28, 28), classes, Compute(threads=1), update=7)


def saved(folder: Path, sampler: Sampler) -> Sampler:
    """Return the sampler as it is loaded from the file gan.safetensors of a folder."""
    sampler.save(folder / "gan.safetensors")
    return Sampler.load(folder / "gan.safetensors", threads=1)


def write_images(sampler: Sampler, *numbers: int) -> list[str]:
    """Write generated images of seed 90 as PNG files and return their names."""
    images = sampler.generate(sampler.latents(10, 90), sampler.labels(10))
    for number in numbers:
        write_png(Path(f"{number}.png"), images[number].numpy())
    return [f"{number}.png" for number in numbers]


# ---- the optimization


def test_difference_by_hand() -> None:
    class Network:
        """Features: the pixels times a scale, and their mean; `balance` is recorded."""

        scale = 1.0

        def balance(self, images: list[Tensor]) -> None:
            (self.balanced,) = images
            self.scale = 3.0

        def __call__(self, images: Tensor) -> dict[str, Tensor]:
            return {"a": images * self.scale, "b": images.mean((2, 3), keepdim=True)}

    picture_CHW = torch.tensor([[[0.0, 0.5], [0.5, 1.0]]])
    images_NCHW = torch.stack([picture_CHW, picture_CHW + torch.tensor([[[0.2, 0.0], [0.0, 0.0]]])])
    pixels = 0.04 / 4
    assert Difference(picture_CHW, None, 5.0)(images_NCHW).tolist() == pytest.approx([0, pixels])
    network = Network()
    difference = Difference(picture_CHW, network, 0.5)  # type: ignore[arg-type]
    assert (network.balanced == picture_CHW[None]).all()
    of_features = (9 * pixels + 0.05**2) / 2
    assert difference(images_NCHW).tolist() == pytest.approx([0, pixels + 0.5 * of_features])


def test_latent_vectors_stay_where_training_draws_them() -> None:
    assert longest(1) == pytest.approx(3.2905, abs=1e-4)  # normal distribution, two-sided
    assert longest(2) == pytest.approx(math.sqrt(-2 * math.log(0.001)), abs=1e-6)
    z_NZ = torch.tensor([[3.0, 4.0], [1.0, -2.0]])
    assert to_training_range(z_NZ, "uniform").tolist() == [[1, 1], [1, -1]]
    normal = to_training_range(z_NZ, "normal")
    torch.testing.assert_close(normal[0], torch.tensor([0.6, 0.8]) * longest(2))
    assert (normal[1] == z_NZ[1]).all()


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_a_generated_image_is_recovered(distribution: str) -> None:
    sampler = make_sampler(latent_distribution=distribution)
    z_1Z = sampler.latents(1, seed=90)
    (picture_CHW,) = sampler.generate(z_1Z)
    options = Options(candidates=64, restarts=4, steps=200)
    steps: list[int] = []
    found = project.project(sampler, picture_CHW, options, on_step=steps.append)
    assert steps == list(range(1, 201))
    assert found.rmse < 3 < 10 < found.nearest_rmse
    assert (found.z_Z - z_1Z[0]).abs().max() < 0.1
    assert 1 <= found.similar_starts <= 4
    assert found.label is None
    assert (sampler.generate(found.z_Z[None])[0] == found.image_CHW).all()
    again = project.project(sampler, picture_CHW, options)
    assert (again.z_Z == found.z_Z).all(), "the same seed"


def test_the_class_is_found_or_given() -> None:
    sampler = make_sampler(classes=("cat", "dog", "eel"))
    (picture_CHW,) = sampler.generate(sampler.latents(1, seed=90), torch.tensor([2]))
    options = Options(candidates=60, restarts=4, steps=60)
    found = project.project(sampler, picture_CHW, options)
    assert found.label == 2
    other = project.project(sampler, picture_CHW, replace(options, label=0))
    assert other.label == 0
    assert other.rmse > found.rmse


def test_only_the_newest_of_stacked_frames_is_compared() -> None:
    sampler = make_sampler(channels=4)
    picture_1HW = sampler.generate(sampler.latents(1, seed=90))[0, -1:]
    found = project.project(sampler, picture_1HW, Options(candidates=64, restarts=4, steps=100))
    assert found.image_CHW.shape == (1, 28, 28)
    assert found.rmse < 5


# ---- pictures


def test_a_picture_is_turned_placed_on_a_background_and_cropped(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the right half is the lower one
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    picture_CHW = read_picture(tmp_path / "phone.png", (3, 28, 28))
    assert picture_CHW.shape == (3, 28, 28)
    assert picture_CHW[:, 0, 14].tolist() == [0, 0, 0]
    assert picture_CHW[:, -1, 14].tolist() == [255, 0, 0]
    gray_CHW = read_picture(tmp_path / "phone.png", (4, 28, 28), invert=True)
    assert gray_CHW.shape == (1, 28, 28)
    assert gray_CHW[0, [0, -1], 14].tolist() == [255, 255 - 76]
    Image.fromarray(np.zeros((30, 30, 4), np.uint8)).save(tmp_path / "clear.png")
    for background, level in (("white", 255), ("black", 0)):
        clear_CHW = read_picture(tmp_path / "clear.png", (1, 28, 28), background=background)  # type: ignore[arg-type]
        assert clear_CHW.unique().tolist() == [level]


@pytest.mark.parametrize(
    ("trained", "words", "level"),
    [
        ({"data": "icons", "background": "black"}, [], 0),
        ({"data": "icons", "background": "white"}, [], 255),
        ({"data": "icons", "background": "auto"}, [], 255),
        ({"data": "icons", "background": "black"}, ["--background", "white"], 255),
        ({"data": "icons", "background": "black"}, ["--background", "auto"], 255),
        ({"data": "mnist", "background": "black"}, [], 255),
    ],
)
def test_a_picture_gets_the_background_of_the_training_images(
    trained: dict[str, object], words: list[str], level: int, tmp_path: Path
) -> None:
    icon = Image.new("LA", (28, 28), (100, 0))
    icon.paste((100, 255), (9, 9, 19, 19))
    icon.save(tmp_path / "icon.png")
    options = parse(Options, {}, ["gan", str(tmp_path / "icon.png"), *words], "")
    pictures, _ = project.read_pictures(options, make_sampler(**trained))  # type: ignore[arg-type]
    (picture_CHW,) = pictures.values()
    assert picture_CHW.unique().tolist() == sorted([100, level])


def test_the_program_writes_images_and_latent_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sampler = saved(tmp_path, make_sampler())
    files = write_images(sampler, 1, 2)
    Path("broken.png").write_text("no image")
    with pytest.raises(UserError, match=r"broken\.png"):  # after the others
        project.main(["gan.safetensors", files[0], "broken.png", files[1], *QUICK, *HERE])
    out = capsys.readouterr().out
    assert "1.png: error" in out
    assert "of 2 starts ended as well" in out
    path = Path("runs/outputs-gan/media/projection-best-0.png")
    z_NZ, label_N = load_latents(path.with_suffix(".json"), sampler)
    assert z_NZ.shape == (2, 8)
    assert label_N is None
    with Image.open(path) as grid:
        pixels = np.asarray(grid)
    assert pixels.shape == (57 * 2 - 1, 57 * 2 - 1)  # pairs; 28 pixels are enlarged to 56
    images = sampler.generate(z_NZ).numpy()[:, 0].repeat(2, 1).repeat(2, 2)
    assert (pixels[:56, 57:] == images[0]).all()
    assert (pixels[57:, 57:] == images[1]).all()
    for file, row in zip(files, (0, 57), strict=True):
        with Image.open(file) as picture:
            assert (pixels[row : row + 56 : 2, :56:2] == np.asarray(picture)).all()


def test_a_negative_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sampler = make_sampler()
    sampler.generator.project.weight.mul_(0.01)  # images with a mean color
    (image_CHW,) = sampler.generate(sampler.latents(1, 90))
    monkeypatch.setattr(Sampler, "generate", lambda *_: torch.full((4, 1, 28, 28), 20, dtype=torch.uint8))
    assert project.is_inverted(sampler, torch.full((1, 28, 28), 200, dtype=torch.uint8), 0)
    assert not project.is_inverted(sampler, torch.full((1, 28, 28), 100, dtype=torch.uint8), 0)
    assert not project.is_inverted(sampler, torch.zeros_like(image_CHW), 0)
    write_png(tmp_path / "paper.png", np.full((28, 28), 200, np.uint8))
    options = Options(run="gan", pictures=("paper.png",))
    project.read_pictures(options, sampler)
    assert "1 of 1 pictures (paper.png) are closer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gan.safetensors"], r"No picture was named: .*generative\.project gan\.safetensors photo\.jpg"),
        (["gan.safetensors", "none.png"], r"none\.png"),
        (["gan.safetensors", "1.png", "--label", "2"], "without classes"),
        (["gan.safetensors", "1.png", "--restarts", "9", "--candidates", "8"], "at least as many candidates"),
        (["gan.safetensors", "1.png", "--out", "a.jpg"], r"ends in \.png"),
        (["gan.safetensors", "1.png", "--out", "./1.png"], "is one of the pictures"),
        (["gan.safetensors", "1.png", "--out", "config.png"], r"config\.json exists already and is not a file of lat"),
        ([], "No run was named"),
    ],
)
def test_mistakes_create_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(saved(tmp_path, make_sampler()), 1)
    Path("config.json").write_text('{"kind": "dcgan"}')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        project.main([*words, *HERE])
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("config.json").read_text() == '{"kind": "dcgan"}'


# ---- files of latent vectors


def test_latent_vectors_are_saved_exactly_and_belong_to_a_generator(tmp_path: Path) -> None:
    sampler = make_sampler(classes=("cat", "dog"))
    z_NZ = sampler.latents(2, seed=1)
    path = tmp_path / "latents.json"
    save_latents(path, sampler, [ProjectedPicture(f"{label}.png", z_NZ[label], label, 12.5) for label in (0, 1)])
    again_NZ, label_N = load_latents(path, sampler)
    assert (again_NZ == z_NZ).all()
    assert label_N is not None
    assert label_N.tolist() == [0, 1]
    for other in (replace(sampler, update=8), replace(sampler, origin=("another run",))):
        with pytest.raises(UserError, match=r"latent vectors of .* at update 7, not of"):
            load_latents(path, other)
    content = json.loads(path.read_text())
    changes: list[dict[str, object]] = [
        {"pictures": []},
        {"pictures": [{"label": 2, "latents": [0.0] * 8}]},
        {"pictures": [{"label": 1, "latents": [0.0] * 7}]},
        {"pictures": [{}]},
        {"pictures": 3},
    ]
    for change in changes:
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match="damaged"):
            load_latents(path, sampler)
    for text in ("", "[1]", "{}"):
        path.write_text(text)
        with pytest.raises(UserError, match="not a file of latent vectors"):
            load_latents(path, sampler)
    with pytest.raises(UserError, match="cannot be read"):
        load_latents(tmp_path / "none.json", sampler)


def test_a_walk_between_two_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sampler = saved(tmp_path, make_sampler(classes=("cat", "dog")))
    z_NZ = sampler.latents(2, seed=1)
    walk = ["gan.safetensors", "--latents", "pair.json", "--steps", "3", *HERE]
    save_latents(Path("pair.json"), sampler, [ProjectedPicture("a.png", z_NZ[i], 1 - i, 0.0) for i in (0, 1)])
    interpolate.main([*walk, "--strip", "5"])
    with av.open("runs/outputs-gan/media/pair-walk.mp4") as video:
        assert len(list(video.decode(video=0))) == 6
    with Image.open("runs/outputs-gan/media/pair-walk.png") as strip:
        pixels = np.asarray(strip)[::2, ::2]
    assert pixels.shape == (28, (5 * 57 - 1 + 1) // 2)
    columns = [pixels[:, (57 * column + 1) // 2 :][:, :28] for column in (0, 2, 4)]
    ends = sampler.generate(z_NZ, torch.tensor([1, 0]))
    half = torch.cat([interpolate.slerp(z_NZ[:1], z_NZ[1:], 0.5), torch.tensor([[0.5, 0.5]])], 1)
    middle = sampler.generate(half)
    for column, expected in zip(columns, (ends[0, 0], middle[0, 0], ends[1, 0]), strict=True):
        assert np.abs(column.astype(int) - expected.int().numpy()).max() <= 1
    interpolate.main([*walk, "--strip", "2"])  # it replaces its own files
    with Image.open("runs/outputs-gan/media/pair-walk.png") as strip:
        assert strip.width < 5 * 57 - 1
    Path("pair.png").write_text("of generative.project")
    for _ in range(2):
        with pytest.raises(UserError, match=r"--strip writes pair\.png, which exists already and is not the strip of"):
            interpolate.main([*walk, "--strip", "5", "--out", "pair.mp4"])
        Path("pair.mp4").touch()
    assert Path("pair.png").read_text() == "of generative.project"
    with pytest.raises(UserError, match="--number has no effect without random latent vectors"):
        interpolate.main([*walk, "--number", "2"])
    save_latents(Path("pair.json"), sampler, [ProjectedPicture("a.png", z_NZ[0], 0, 0.0)])
    with pytest.raises(UserError, match="has one latent vector, and an interpolation needs two"):
        interpolate.main(walk)
