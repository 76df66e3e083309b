"""Show generated images beside their nearest training images, to see whether any were copied.

    python -m generative.neighbours runs/dcgan-mnist-fast-1

Each group of three shows a generated image, its nearest training image by the classifier's features, and its nearest
training image by pixels.

Shapes: N training images, n generated images, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Range, run_main
from zerokara.core.programs import program_command
from zerokara.generative.gan.options import Options as GeneratorOptions

CHUNK = 5_000  # training images in memory as float64 at once


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.neighbours."""

    number: Annotated[int, Range(1, 400)] = 30
    """Number of generated images."""
    columns: Annotated[int, Range(1, 50)] = 5
    """Groups of three images per row."""
    out: str = ""
    """PNG file to write. Empty: media/neighbours-<which>-<seed>.png in the run's folder."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from torch import Tensor

from zerokara.core.media import write_png
from zerokara.generative.gan import finished
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.pictures import image_grid
from zerokara.generative.scoring.distances import nearest
from zerokara.generative.scoring.feature_extractor import FeatureExtractor


def nearest_in_pixels(generated_nCHW: Tensor, train_NCHW: Tensor) -> Tensor:
    """Return the index (n,) of the nearest training image by Euclidean distance of the pixels."""
    indices, distances = [], []
    for start in range(0, len(train_NCHW), CHUNK):
        index_n, distance_n = nearest(generated_nCHW.flatten(1), train_NCHW[start : start + CHUNK].flatten(1))
        indices.append(index_n + start)
        distances.append(distance_n)
    best_n = torch.stack(distances).argmin(0)
    return torch.stack(indices).gather(0, best_n[None])[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Generate images, find their nearest training images, and write the image grid."""
    options = parse(Options, {}, argv, __doc__ or "")
    sampler = finished.load_sampler(options, program_command("generative.neighbours"))
    path = finished.output_path(sampler, options.out, f"neighbours-{options.which}-{options.seed}.png")
    train = Data.load(sampler.config).train.images
    extractor = FeatureExtractor.choose(sampler.config, sampler.shape, finished.run_extra(sampler))
    generated = sampler.generate(sampler.latents(options.number, options.seed), sampler.labels(options.number))
    index_n, _ = nearest(extractor.extract(generated).features_NF, extractor.extract(train).features_NF)
    groups = torch.stack([generated, train[index_n], train[nearest_in_pixels(generated, train)]], 1)
    write_png(path, image_grid(groups.flatten(0, 1), 3 * options.columns))
    print(f"{path}: {options.number} images and the nearest of {len(train):,} training images; {extractor.protocol}")


if __name__ == "__main__":
    run_main(main)
