"""Export a trained classifier to safetensors and ONNX, and check the files.

    python -m vision.export runs/classify-mnist-deep_cnn-fast-1
    python -m vision.export digits --out deployed --half --no-onnx

Two files are written. <name>.safetensors has the weights and, as metadata, the architecture, the classes and the
normalization. <name>.onnx has the input `pixels` (N, C, H, W) float32 from 0 to 1, for any N, and the output
`probabilities` (N, K); it includes the normalization, and the classes are in its metadata. Both files are run on images
and compared with the original network before they are moved to the output folder.

ONNX needs three further packages: pip install onnx onnxscript onnxruntime.

Shapes: N images, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, format_count, run_main
from zerokara.core.programs import program_command
from zerokara.core.zoo import registry as zoo

MAX_DIFFERENCE = 1e-4  # of a probability, in float32
MAX_DIFFERENCE_HALF = 0.02  # with weights rounded to float16


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.export."""

    model: Annotated[str, Positional("classifier")] = ""
    """Run folder, file *.safetensors, or name of the zoo."""
    out: str = ""
    """Output folder; empty: export/ in the run folder, or the current folder."""
    onnx: bool = True
    """Write an ONNX file as well."""
    half: bool = False
    """Save the weights of the safetensors file as float16, which halves its size."""
    data: str = ""
    """Images for the check; empty: the data set of the run, or synthetic digits if it is unknown."""
    data_dir: str = ""
    """Folder in which named data sets are found; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    images: Annotated[int, Range(1)] = 256
    """Number of images for the check."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.core import data
from zerokara.core.data import ImageSet
from zerokara.core.models import onnx_file
from zerokara.core.models.classifier import Classifier, ClassifierMetadata
from zerokara.core.models.exporting import compare, put_in_place
from zerokara.core.run import Run


class DeployedClassifier(nn.Module):
    """Classifier from pixels (N, C, H, W) in [0, 1] to probabilities (N, K), including the normalization."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier, metadata: ClassifierMetadata) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", torch.tensor(metadata.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(metadata.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return probabilities (N, K)."""
        logits: Tensor = self.classifier((pixels - self.mean) / self.std)
        return logits.softmax(1)


def load_check_images(options: Options, metadata: ClassifierMetadata) -> ImageSet:
    """Load images for the check, evenly spaced over a training set, in the shape of the network's input.

    Raises:
        UserError: the data are missing or have another shape.
    """
    name, folder = options.data, Path(options.model)
    if not name and (folder / "config.json").is_file():
        name = str(Run.read_config(folder)["config"].get("data", ""))
    height, width = metadata.image_size
    all_images = data.load(
        name or "glyphs",
        "train",
        data_dir=Path(options.data_dir) if options.data_dir else None,
        image_size=height if height == width else None,
        grayscale=metadata.channels == 1,
    )
    if all_images.shape != (metadata.channels, height, width):
        raise UserError(
            f"The images of {name} are {all_images.shape}, but the network takes {(metadata.channels, height, width)}: "
            f"give other images with --data."
        )
    number = min(options.images, len(all_images))
    return all_images.take(torch.linspace(0, len(all_images) - 1, number).long())


def to_onnx(deployed: DeployedClassifier, metadata: ClassifierMetadata, example: Tensor, path: Path) -> None:
    """Write an ONNX file with a variable batch size."""
    texts = {"classes": json.dumps(metadata.classes), "card": json.dumps(dataclasses.asdict(metadata))}
    onnx_file.write(deployed, {"pixels": example[:2]}, "probabilities", path, texts)


def run_safetensors(path: Path) -> Callable[[Tensor], np.ndarray]:
    """Return the network of a safetensors file as a function."""
    deployed = DeployedClassifier(*ClassifierMetadata.load(path)).eval()
    return torch.no_grad()(lambda pixels: deployed(pixels).numpy())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: load network and images, write the files, check them, move them to the output folder."""
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.model:
        raise UserError(
            f"No classifier was given: type a run folder, as in {program_command('vision.export')} runs/<name>, "
            "a model file, or a name of the zoo."
        )
    if options.onnx:
        onnx_file.check_packages()
    source = zoo.find_file(options.model)
    classifier, metadata = ClassifierMetadata.load(source)
    folder = Path(options.model)
    name = folder.resolve().name if folder.is_dir() else source.stem
    out = Path(options.out) if options.out else (folder / "export" if folder.is_dir() else Path())
    images = load_check_images(options, metadata)
    pixels_NCHW = images.images.float() / 255
    deployed = DeployedClassifier(classifier, metadata).eval()

    @torch.no_grad()
    def original(x: Tensor) -> np.ndarray:
        return np.asarray(deployed(x).numpy())

    checked_on = f"checked on {format_count(len(images), 'image')} of {images.source}"
    print(f"{source}: {metadata.backbone}, {len(metadata.classes)} classes; {checked_on}")
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / f"{name}.safetensors"
        metadata.save(written, classifier.state_dict(), half=options.half)
        max_difference = MAX_DIFFERENCE_HALF if options.half else MAX_DIFFERENCE
        checked = [(written, compare(run_safetensors(written), original, pixels_NCHW, max_difference, "probability"))]
        if options.onnx:
            written = Path(scratch) / f"{name}.onnx"
            to_onnx(deployed, metadata, pixels_NCHW, written)
            compared = compare(onnx_file.load(written), original, pixels_NCHW, MAX_DIFFERENCE, "probability")
            checked.append((written, compared))
        for written, (largest, changed) in checked:
            path = out / written.name
            if path.resolve() == source.resolve():
                raise UserError(f"{path} is the file to be exported: give another folder with --out.")
            put_in_place(written, path)
            print(
                f"{path}: {path.stat().st_size / 1e3:,.0f} kB, largest difference of a probability {largest:.1e}, "
                f"{changed} of {len(images):,} predictions differ"
            )


if __name__ == "__main__":
    run_main(main)
