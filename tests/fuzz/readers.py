"""All readers of files, each with valid files that the fuzzer damages."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from zerokara.agents.configs import dqn
from zerokara.agents.qlearning.agent_file import AgentMetadata, make_agent_network
from zerokara.core import checkpoint
from zerokara.core.config import to_saved
from zerokara.core.data.boxes import load_boxes
from zerokara.core.data.captions import load_captions
from zerokara.core.data.cifar import LAYOUTS, load_cifar
from zerokara.core.data.idx import load_idx
from zerokara.core.data.image_files import read_image
from zerokara.core.data.masks import load_masks
from zerokara.core.data.sources import load
from zerokara.core.metrics import read_metrics
from zerokara.core.models import model_file
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.normalization import decide_normalization
from zerokara.core.models.weights import read_tensors
from zerokara.core.run_folder import read_config
from zerokara.generative.gan.config import Config as GanConfig
from zerokara.generative.gan.learner import make_generator
from zerokara.generative.gan.sampler import GeneratorMetadata, Sampler
from zerokara.vision.classification.config import Config as ClassifyConfig
from zerokara.vision.detection import proposals

Files = Mapping[str, bytes]
IMAGES = (
    *(("png", "RGBA"), ("png", "P"), ("jpeg", "CMYK"), ("gif", "P"), ("webp", "RGBA")),
    *(("tiff", "RGB"), ("bmp", "RGB"), ("ppm", "L"), ("avif", "RGB")),
)
"""Formats and modes of Pillow."""


@dataclass(frozen=True)
class Reader:
    """A reader, the valid files of a folder that it reads, and the names of those that are damaged."""

    files: Files
    damaged: tuple[str, ...]
    read: Callable[[Path], object]


def _image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    colors = np.random.default_rng(0).integers(256, size=(12, 9, 3), dtype=np.uint8)
    Image.fromarray(colors).convert(mode).save(out, kind, **options)
    return out.getvalue()


def _mask() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(12, 9) % 3).save(out, "PNG")
    return out.getvalue()


def _colored_mask() -> bytes:
    out = io.BytesIO()
    numbers = np.arange(108).reshape(12, 9) % 2
    Image.fromarray(np.array([(0, 0, 0), (128, 64, 0)], np.uint8)[numbers]).save(out, "PNG")
    return out.getvalue()


def _zip(files: Files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _cifar() -> bytes:
    out = io.BytesIO()
    row = bytes([1]) + bytes(3072)
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        names = "\n".join(f"class {number}" for number in range(10)).encode()
        parts = {f"data_batch_{k}.bin": row * 2 for k in range(1, 6)} | {
            "test_batch.bin": row,
            "batches.meta.txt": names,
        }
        for name, content in parts.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _file_content(write: Callable[[Path], object], folder: Path, name: str) -> bytes:
    write(folder / name)
    return (folder / name).read_bytes()


def _classifier(path: Path) -> None:
    metadata = ClassifierMetadata(
        backbone="resnet8",
        head="pooled",
        classes=("a", "b"),
        channels=1,
        image_size=(16, 16),
        mean=(0.1,),
        std=(0.3,),
        options={"width": 0.125},
    )
    metadata.save(path, metadata.build().state_dict())


def _agent(path: Path) -> None:
    config = dqn.Config(preset="fast", backbone="der", width_multiplier=0.125, hidden_units=4, frame_stack=1)
    metadata = AgentMetadata(algorithm="dqn", config=to_saved(config), num_actions=3, step=1)
    metadata.save(path, make_agent_network("dqn", config, 3).state_dict())


def _generator(path: Path) -> None:
    config = GanConfig(generator_width=0.05, latent_dim=2)
    weights = make_generator(config, (1, 28, 28), 1).state_dict()
    fields = {"config": to_saved(config), "shape": [1, 28, 28], "class_names": ["0"], "update": 1, "scores": {}}
    model_file.write(path, weights, fields, GeneratorMetadata.FORMAT)


def _proposals(path: Path) -> None:
    proposals.write(path, np.arange(40, dtype=np.int32).reshape(10, 4), 1.0)


def one(name: str, content: bytes, read: Callable[[Path], object]) -> Reader:
    """Return a reader of a single file."""
    return Reader({name: content}, (name,), read)


def image_reader(kind: str, mode: str) -> Reader:
    """Return a reader of an image of a format and a mode of Pillow."""
    return one(f"a.{kind}", _image(kind, mode), lambda path: read_image(path / f"a.{kind}"))


def boxes(folder: Path) -> object:
    """Read box annotations."""
    return load_boxes(str(folder), image_side=16)


def mnist(folder: Path) -> object:
    """Read files in MNIST's format."""
    return load_idx(folder, "train", tuple("0123456789"), "MNIST")


def make_readers(folder: Path) -> dict[str, Reader]:
    """Create all readers. Their valid files are made in a folder, which is only used for that."""
    png, jpeg = _image("PNG"), _image("JPEG")
    pictures = {f"{name}.png": png for name in "abcdefghijkl"}
    coco = {
        "images": [{"id": k, "file_name": f"{name}.png", "width": 9, "height": 12} for k, name in enumerate("abc")],
        "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
        "annotations": [{"id": k, "image_id": k % 3, "category_id": 1 + k % 2, "bbox": [1, 2, 5, 6]} for k in range(5)],
    }
    captions = {
        "images": [{"id": k, "file_name": f"{name}.png"} for k, name in enumerate("abc")],
        "annotations": [{"image_id": k % 3, "caption": f"A dog {k}."} for k in range(5)],
    }
    voc = "<annotation><filename>a.png</filename><size><width>9</width><height>12</height></size>" + "".join(
        f"<object><name>cat</name><bndbox><xmin>{k}</xmin><ymin>1</ymin><xmax>7</xmax><ymax>9</ymax></bndbox></object>"
        for k in (1, 2)
    )
    labels = [[f"00000/{name}", k % 2] for k, name in enumerate(pictures)]
    images_idx = _idx(np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28))
    class_folders = {f"{split}/{label}/{k}.png": png for split in ("train", "test") for label in "ab" for k in range(2)}
    config = json.dumps({"kind": "dqn", "config": {"seed": 1}, "extra": {}}).encode()
    metrics = b'{"step": 1, "train/loss": 0.5}\n{"step": 2, "eval/return": -21.0}\n'
    saved = {"step": 3, "weights": {"w": torch.zeros(4)}, "text": "x"}
    model = _file_content(_classifier, folder, "model.safetensors")
    moments = {"mean": [0.5, 0.4, 0.3], "std": [1, 1, 1]}
    weights = _file_content(lambda path: save_file({"conv1.weight": torch.ones(3)}, path), folder, "w.safetensors")
    torch_file = _file_content(lambda path: torch.save({"a.weight": torch.ones(3)}, path), folder, "w.pth")
    state_file = _file_content(lambda path: checkpoint.save(path, saved, "dqn"), folder, "c.pt")
    return {
        **{f"image {kind} {mode}": image_reader(kind, mode) for kind, mode in IMAGES},
        "class folders": Reader(
            class_folders, ("train/a/0.png", "test/b/1.png"), lambda path: load(str(path), "train")
        ),
        "zip": one("set.zip", _zip(class_folders), lambda path: load(str(path / "set.zip"), "train")),
        "idx": Reader(
            {"train-images-idx3-ubyte": images_idx, "train-labels-idx1-ubyte": _idx(np.array([1, 2], np.uint8))},
            ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            mnist,
        ),
        "idx.gz": Reader(
            {
                "train-images-idx3-ubyte.gz": gzip.compress(images_idx),
                "train-labels-idx1-ubyte": _idx(np.array([1, 2], np.uint8)),
            },
            ("train-images-idx3-ubyte.gz",),
            mnist,
        ),
        "cifar": one(
            "cifar-10-binary.tar.gz",
            _cifar(),
            lambda path: load_cifar(LAYOUTS["cifar10"][0], path / "cifar-10-binary.tar.gz", "train"),
        ),
        "masks": Reader(
            {f"images/{name}": png for name in pictures} | {f"masks/{name}": _mask() for name in pictures},
            ("masks/b.png", "images/c.png"),
            lambda path: load_masks(str(path), "train"),
        ),
        "masks VOC": Reader(
            {f"JPEGImages/{name.replace('png', 'jpg')}": jpeg for name in pictures}
            | {f"SegmentationClass/{name}": _mask() for name in pictures}
            | {f"ImageSets/Segmentation/{split}.txt": b"a\nb\nc\nd\n" for split in ("train", "val")},
            ("ImageSets/Segmentation/train.txt", "SegmentationClass/b.png"),
            lambda path: load_masks(str(path), "train"),
        ),
        "masks CVAT": Reader(
            {f"JPEGImages/{name}": png for name in pictures}
            | {f"SegmentationClass/{name}": _colored_mask() for name in pictures}
            | {"labelmap.txt": b"# label:color_rgb:parts:actions\na:0,0,0::\nb:128,64,0::\n"},
            ("labelmap.txt", "SegmentationClass/b.png"),
            lambda path: load_masks(str(path), "train"),
        ),
        "labels StyleGAN": Reader(
            {**{f"00000/{name}": png for name in pictures}, "dataset.json": json.dumps({"labels": labels}).encode()},
            ("dataset.json",),
            lambda path: load(str(path), "train", image_size=8),
        ),
        "boxes VOC": Reader({"a.png": png, "a.xml": f"{voc}</annotation>".encode()}, ("a.xml",), boxes),
        "boxes COCO": Reader({**pictures, "x.json": json.dumps(coco).encode()}, ("x.json",), boxes),
        "boxes YOLO": Reader(
            {
                **pictures,
                "a.txt": b"0 .5 .5 .2 .2\n1 .1 .2 .3 .3 .5 .1 .2 .2\n",
                "data.yaml": b"names:\n  0: a\n  1: 'b'\n",
            },
            ("a.txt", "data.yaml"),
            boxes,
        ),
        "captions CSV": Reader(
            {**pictures, "captions.txt": b'image,caption\na.png,A dog.\nb.png,"A, cat"\n'},
            ("captions.txt",),
            lambda path: load_captions(str(path), image_size=8),
        ),
        "captions tokens": Reader(
            {**pictures, "x.token.txt": b"a.png#0\tA dog.\nb.png#1\tA cat.\n"},
            ("x.token.txt",),
            lambda path: load_captions(str(path), image_size=8),
        ),
        "captions COCO": Reader(
            {**pictures, "captions_x.json": json.dumps(captions).encode()},
            ("captions_x.json",),
            lambda path: load_captions(str(path), image_size=8),
        ),
        "classifier": one("model.safetensors", model, lambda path: ClassifierMetadata.load(path / "model.safetensors")),
        "agent": one(
            "x.safetensors",
            _file_content(_agent, folder, "agent.safetensors"),
            lambda path: AgentMetadata.load(path / "x.safetensors"),
        ),
        "generator": one(
            "x.safetensors",
            _file_content(_generator, folder, "generator.safetensors"),
            lambda path: Sampler.read(path / "x.safetensors", threads=1),
        ),
        "weights safetensors": one("w.safetensors", model, lambda path: read_tensors(path / "w.safetensors")),
        "weights torch": one("w.pth", torch_file, lambda path: read_tensors(path / "w.pth")),
        "normalization": Reader(
            {"model.safetensors": weights, "config.json": json.dumps({"pretrained_cfg": moments}).encode()},
            ("config.json",),
            lambda path: decide_normalization(ClassifyConfig(weights=str(path / "model.safetensors")), 3),
        ),
        "checkpoint": one("c.pt", state_file, lambda path: checkpoint.load(path / "c.pt", "dqn")),
        "config": one("config.json", config, read_config),
        "metrics": one("metrics.jsonl", metrics, lambda path: read_metrics(path / "metrics.jsonl")),
        "proposals": one(
            "p.npz", _file_content(_proposals, folder, "p.npz"), lambda path: proposals.read(path / "p.npz", (40, 40))
        ),
        "jpeg in a folder": Reader({"a.jpg": jpeg}, ("a.jpg",), lambda path: read_image(path / "a.jpg")),
    }
