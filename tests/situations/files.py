"""Rows of the table of situations with files (issue 21), and the files that their commands read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Files = Mapping[str, bytes | str]


@dataclass(frozen=True)
class Situation:
    """Situation with files."""

    name: str
    command: str
    """Arguments of `python -m`."""
    before: str
    """Answer at 682d9ba; "wrong" and "silent" are no words of the program."""
    now: tuple[str, ...]
    """Parts of today's answer."""
    files: Callable[[], Files] = dict
    """Files of the folder in which the command is typed; link:x is a symbolic link to the folder x."""
    test: str = ""
    """Test that shows the answer in place of the command."""


def png(array: np.ndarray | int = 128, kind: str = "PNG", side: tuple[int, int] = (28, 28), **options: Any) -> bytes:
    """Return an image file of an array, or of one gray level and a side (H, W)."""
    out = io.BytesIO()
    values = np.full((*side, 3), array, np.uint8) if isinstance(array, int) else array
    Image.fromarray(values).save(out, kind, **options)
    return out.getvalue()


def halves(low: float, high: float, kind: str = "PNG", dtype: Any = np.uint8) -> bytes:
    """Return a mask of 28 x 28 pixels: the upper half has one value, the lower half another."""
    mask = np.full((28, 28), low, dtype)
    mask[14:] = high
    return png(mask, kind)


def masked(mask: bytes, suffix: str = "png", train: str = "", test: str = "") -> dict[str, bytes | str]:
    """Return 12 images with masks, in folders of two splits if these are named."""
    splits = [train] * 8 + [test] * 4
    images: dict[str, bytes | str] = {f"set/images/{split}/{k}.png": png() for k, split in enumerate(splits)}
    return images | {f"set/masks/{split}/{k}.{suffix}": mask for k, split in enumerate(splits)}


def classes(*folders: str, number: int = 8) -> dict[str, bytes | str]:
    """Return images of two classes in each of these folders, which contain {label}."""
    return {
        f"set/{folder.format(label=label)}/{k}.png": png(k)
        for folder in folders
        for label in ("cat", "dog")
        for k in range(number)
    }


def yolo(labels: Files, folder: str = "set") -> dict[str, bytes | str]:
    """Return 12 images of 40 x 20 pixels, the first three with a box, and further files."""
    images: dict[str, bytes | str] = {f"{folder}/{name}.png": png(side=(20, 40)) for name in "abcdefghijkl"}
    return images | {f"{folder}/{name}.txt": "0 .5 .5 .5 .5\n" for name in "abc"} | dict(labels)


def voc_file(name: str, size: tuple[int, int] = (40, 20)) -> str:
    """Return an XML file with one box, from pixel 1 to 20 and 1 to 10."""
    corners = "".join(f"<{end}>{value}</{end}>" for end, value in zip(CORNERS, (1, 1, 20, 10), strict=True))
    return (
        f"<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    )


CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc(changes: Files) -> dict[str, bytes | str]:
    """Return 12 images of 40 x 20 pixels with XML files, and other files for some of them."""
    files: dict[str, bytes | str] = {f"set/{name}.png": png(side=(20, 40)) for name in "abcdefghijkl"}
    return files | {f"set/{name}.xml": voc_file(f"{name}.png") for name in "abcdefghijkl"} | dict(changes)


def coco_file(names: str, **changes: Any) -> str:
    """Return a JSON file with one box in each image of these names."""
    content = {
        "images": [{"id": k, "file_name": f"{name}.png", "width": 40, "height": 20} for k, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [0, 0, 20, 10]} for k, _ in enumerate(names)
        ],
    }
    return json.dumps(content | changes)


def coco_folder() -> Files:
    """Return COCO's own folders, with a file of instances, keypoints, captions and panoptic masks for each split."""
    files: dict[str, bytes | str] = {}
    for split, names in (("train", "abcdefgh"), ("val", "ijkl")):
        files |= {f"set/{split}2017/{name}.png": png(side=(20, 40)) for name in names}
        for kind in ("instances", "person_keypoints", "captions", "panoptic"):
            files[f"set/annotations/{kind}_{split}2017.json"] = coco_file(names)
    return files


def captions(text: str | bytes, name: str = "captions.txt", images: tuple[str, ...] = ()) -> dict[str, bytes | str]:
    """Return images with a file of captions."""
    return {f"set/{image}": png() for image in images or tuple(f"{k}.png" for k in range(6))} | {f"set/{name}": text}


CAPTIONS = "".join(f"{k}.png,A dog {k}\n" for k in range(6))


def scattered(images: Mapping[str, bytes], number: int = 135) -> dict[str, bytes | str]:
    """Return gray images for a GAN, and others."""
    files: dict[str, bytes | str] = {f"set/{k}.png": png(k) for k in range(number)}
    return files | {f"set/{name}": each for name, each in images.items()}


def with_transparency() -> bytes:
    """Return white ink on transparency."""
    colors = np.full((28, 28, 4), 255, np.uint8)
    colors[:, 10:, 3] = 0
    return png(colors)


def turned() -> bytes:
    """Return an image of 40 x 20 pixels that its EXIF orientation turns by 180 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return png(side=(20, 40), exif=exif)


def animation() -> bytes:
    """Return a GIF of three frames."""
    frames = [Image.new("L", (28, 28), level) for level in (0, 100, 200)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


DCGAN, CLASSIFY = "generative.dcgan --data ./set", "vision.classify --data ./set"
SEGMENT, DETECT = "vision.segment --data ./set", "vision.detect --data ./set"
CAPTION = "vision.caption --data ./set --batch-size 2 --validation-images 1 --test-images 1"
