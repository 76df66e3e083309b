"""Export: a trained classifier for programs that are not ours, checked by running it.

    python -m vision.export runs/classify-mnist-deep_cnn-fast-1
    python -m vision.export digits --out deployed --half --no-onnx

Two files: <name>.safetensors, weights with the card that says how to feed them, and <name>.onnx, which takes `pixels`
(N, C, H, W) float32 from 0 to 1, for any N, and gives `probabilities` (N, K); normalisation is inside, the classes are
in its metadata. Both are run on real images and compared with the original before they are put in place.

ONNX needs three packages more: pip install onnx onnxscript onnxruntime.

Shapes: N images, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.core import data
from zerokara.core.checkpoint import write_atomically
from zerokara.core.command_line import parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.data import ImageSet
from zerokara.core.models import model_file, onnx_file
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.zoo import registry as zoo

MOST_DIFFERENCE = 1e-4  # of a probability, in float32
MOST_DIFFERENCE_HALF = 0.02  # with weights rounded to float16


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to export, and where to."""

    model: Annotated[str, Positional("classifier")] = ""
    """A run's folder, a file *.safetensors, or a name of the zoo."""
    out: str = ""
    """Folder of the files; empty: export/ in the run's folder, or here."""
    onnx: bool = True
    """Write ONNX too."""
    half: bool = False
    """Keep the weights of the safetensors file as float16, half the size."""
    data: str = ""
    """Images on which the files are checked; empty: those that the run learnt from, else drawn digits."""
    data_dir: str = ""
    """Where named data lie; empty: $ZEROKARA_DATA, else ~/.cache/zerokara."""
    images: Annotated[int, Range(1)] = 256
    """How many images the files are checked on."""


class Deployed(nn.Module):
    """From pixels (N, C, H, W) of 0 to 1 to probabilities (N, K), normalisation included."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier, metadata: ClassifierMetadata) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", torch.tensor(metadata.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(metadata.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities (N, K)."""
        logits: Tensor = self.classifier((pixels - self.mean) / self.std)
        return logits.softmax(1)


def images_for(options: Options, metadata: ClassifierMetadata) -> ImageSet:
    """Images to check on, spread over a training set, in the network's shape.

    Raises:
        UserError: no such data, or another shape.
    """
    name, folder = options.data, Path(options.model)
    if not name and (folder / "config.json").is_file():
        name = str(Run.read_config(folder)["config"].get("data", ""))
    height, width = metadata.image_size
    everything = data.load(
        name or "glyphs",
        "train",
        data_dir=Path(options.data_dir) if options.data_dir else None,
        image_size=height if height == width else None,
        grayscale=metadata.channels == 1,
    )
    if everything.shape != (metadata.channels, height, width):
        raise UserError(
            f"The images of {name} are {everything.shape}, and the network takes {(metadata.channels, height, width)}: "
            f"name others with --data."
        )
    number = min(options.images, len(everything))
    return everything.take(torch.linspace(0, len(everything) - 1, number).long())


def to_onnx(deployed: Deployed, metadata: ClassifierMetadata, example: Tensor, path: Path) -> None:
    """Write ONNX with a batch of any size."""
    texts = {"classes": json.dumps(metadata.classes), "card": json.dumps(dataclasses.asdict(metadata))}
    onnx_file.write(deployed, {"pixels": example[:2]}, "probabilities", path, texts)


def run_safetensors(path: Path) -> Callable[[Tensor], np.ndarray]:
    """The file as a function."""
    deployed = Deployed(*model_file.load(path)).eval()
    return lambda pixels: deployed(pixels).numpy()


@torch.no_grad()
def compare(
    found: Callable[[Tensor], np.ndarray], expected: Callable[[Tensor], np.ndarray], pixels_NCHW: Tensor, most: float
) -> str:
    """Run both on the same images, all together and one alone; what differs, in words.

    Raises:
        UserError: a probability differs by more than `most`.
    """
    worst, changed = 0.0, 0
    for part_NCHW in (pixels_NCHW, pixels_NCHW[:1]):
        mine, theirs = expected(part_NCHW), found(part_NCHW)
        worst = float(np.maximum(worst, np.abs(mine - theirs).max()))  # which lets NaN through, and max does not
        changed = max(changed, int((mine.argmax(1) != theirs.argmax(1)).sum()))
    if not worst <= most:
        raise UserError(
            f"A probability of the exported network differs by {worst:.2g} from the original's, and {most:g} is "
            f"allowed: nothing was written; please report it with the run's config.json."
        )
    return f"largest difference of a probability {worst:.1e}, {changed} of {len(pixels_NCHW):,} guesses differ"


def main(argv: Sequence[str] | None = None) -> None:
    """The program: the network, images, files that are checked and then put in place."""
    options = parse(Options, {}, argv, __doc__ or "")
    if not options.model:
        raise UserError(
            f"No classifier was named: type a run's folder, as in {program_command('vision.export')} runs/<name>, "
            "a file, or a name of the zoo."
        )
    if options.onnx:
        onnx_file.check_packages()
    source = zoo.find_file(options.model)
    classifier, metadata = model_file.load(source)
    folder = Path(options.model)
    name = folder.resolve().name if folder.is_dir() else source.stem
    out = Path(options.out) if options.out else (folder / "export" if folder.is_dir() else Path())
    images = images_for(options, metadata)
    pixels_NCHW = images.images.float() / 255
    deployed = Deployed(classifier, metadata).eval()

    def original(x: Tensor) -> np.ndarray:
        return deployed(x).numpy()  # type: ignore[no-any-return]

    print(
        f"{source}: {metadata.backbone}, {len(metadata.classes)} classes; checked on {len(images):,} images of {images.source}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / f"{name}.safetensors"
        model_file.save(written, classifier.state_dict(), metadata, half=options.half)
        most = MOST_DIFFERENCE_HALF if options.half else MOST_DIFFERENCE
        checked = [(written, compare(run_safetensors(written), original, pixels_NCHW, most))]
        if options.onnx:
            written = Path(scratch) / f"{name}.onnx"
            to_onnx(deployed, metadata, pixels_NCHW, written)
            checked.append((written, compare(onnx_file.load(written), original, pixels_NCHW, MOST_DIFFERENCE)))
        out.mkdir(parents=True, exist_ok=True)
        for written, words in checked:
            place = out / written.name
            if place.resolve() == source.resolve():
                raise UserError(f"{place} is the file that is exported: name another folder with --out.")
            with written.open("rb") as content:
                write_atomically(place, lambda file, content=content: shutil.copyfileobj(content, file))  # type: ignore[misc]
            print(f"{place}: {place.stat().st_size / 1e3:,.0f} kB, {words}")


if __name__ == "__main__":
    run_main(main)
