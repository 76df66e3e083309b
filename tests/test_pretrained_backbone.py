"""Every program refuses a --pretrained-backbone that it cannot load before it creates the run folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.vision import drawn_boxes, shapes
from zerokara.core.backbones.registry import BackboneName, make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data import glyphs


def write_captions() -> None:
    """Write a folder with twelve gray images, each with a caption."""
    Path("captioned/images").mkdir(parents=True)
    lines = ["image,caption"]
    for index in range(12):
        Image.new("RGB", (32, 32), (20 * index,) * 3).save(f"captioned/images/{index}.png")
        lines.append(f"{index}.png,brightness number {index}")
    Path("captioned/captions.txt").write_text("\n".join(lines))


def write_pictures() -> None:
    """Write the images of style transfer, and a folder of training images."""
    Path("photos").mkdir()
    for path in ("content.png", "style.png", *(f"photos/{index}.png" for index in range(8))):
        Image.effect_noise((64, 64), 50).convert("RGB").save(path)


RESNET = "--backbone resnet20 --width-multiplier 0.25 "
VGG = "--backbone vgg11 --width-multiplier 0.125 "
# Program -> arguments, function that writes its data, and name, channels, side and width of the backbone.
PROGRAMS: dict[str, tuple[str, Callable[[], object], tuple[BackboneName, int, int, float]]] = {
    "agents.dqn": ("--env zerokara/Catch-v0 --backbone nature", lambda: None, ("nature", 4, 84, 1)),
    "generative.dcgan": ("--data glyphs --backbone dcgan --discriminator-width 1", lambda: None, ("dcgan", 1, 32, 1)),
    "generative.fast_style": (
        VGG + "--data photos --style style.png --held-out-images 2 --batch-size 2 --image-size 64",
        write_pictures,
        ("vgg11", 3, 64, 0.125),
    ),
    "generative.style_transfer": (VGG + "content.png style.png", write_pictures, ("vgg11", 3, 64, 0.125)),
    "vision.caption": (
        RESNET + "--data captioned --validation-images 2 --test-images 2 --batch-size 4",
        write_captions,
        ("resnet20", 3, 32, 0.25),
    ),
    "vision.classify": (RESNET + "--data glyphs --validation-images 20", lambda: None, ("resnet20", 1, 32, 0.25)),
    "vision.detect": (
        RESNET + "--data shapes --data-dir .",
        lambda: drawn_boxes.write(Path("shapes"), 10),
        ("resnet20", 3, 96, 0.25),
    ),
    "vision.segment": (
        RESNET + "--data shapes --data-dir .",
        lambda: shapes.write_shapes(Path()),
        ("resnet20", 3, 32, 0.25),
    ),
}


def _with_nan(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    return {**tensors, name: torch.full_like(tensors[name], torch.nan)}


def _with_other_shapes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[None] for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_nan, r"^weights\.pt has non-finite weights \(NaN or Inf\) in \S+: give a file that was saved before"),
        (_with_other_shapes, r"^Nothing in weights\.pt fits this network .*: give weights of the same backbone"),
    ],
    ids=["nan", "other shapes"],
)
@pytest.mark.parametrize("module", PROGRAMS)
def test_a_backbone_that_cannot_be_loaded_creates_nothing(
    module: str,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, write_data, (name, channels, side, width) = PROGRAMS[module]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 200, "test": 40})  # generating thousands takes seconds
    monkeypatch.setattr(Compute, "choose", lambda **options: pytest.fail("the hardware was measured"))
    write_data()
    torch.save(change(make_backbone(name, channels, side, width=width).state_dict()), "weights.pt")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        importlib.import_module(f"zerokara.{module}").main([*words.split(), "--pretrained-backbone", "weights.pt"])
    assert "\n" not in str(error.value)
    assert set(tmp_path.rglob("*")) == before
