"""Neighbours: painted images beside the training images that are nearest to them, to see what was copied.

    python -m generative.neighbours runs/dcgan-mnist-fast-1

Rows of threes: a painted image, the training image nearest in the classifier's features, the one nearest in pixels.

Shapes: N images, n painted ones, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from zerokara.core.config import Range, parse, run_main
from zerokara.core.media import write_png
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.generative.gan import finished
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.pictures import picture
from zerokara.generative.scoring.distances import nearest
from zerokara.generative.scoring.feature_extractor import FeatureExtractor

CHUNK = 5_000  # training images that are in memory as float64 at once


@dataclass(frozen=True, kw_only=True)
class Options(finished.Options):
    """How many to show, and where."""

    number: Annotated[int, Range(1, 400)] = 30
    """Painted images."""
    columns: Annotated[int, Range(1, 50)] = 5
    """Threes in a row."""
    out: str = ""
    """The picture, a .png; empty: media/neighbours-<which>-<seed>.png in the run's folder."""


def nearest_in_pixels(painted_nCHW: Tensor, train_NCHW: Tensor) -> Tensor:
    """Place (n,) of the training image nearest to each painted one, by the Euclidean distance of their pixels."""
    places, distances = [], []
    for start in range(0, len(train_NCHW), CHUNK):
        place_n, distance_n = nearest(painted_nCHW.flatten(1), train_NCHW[start : start + CHUNK].flatten(1))
        places.append(place_n + start)
        distances.append(distance_n)
    best_n = torch.stack(distances).argmin(0)
    return torch.stack(places).gather(0, best_n[None])[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Paint, search, draw, and say where it is."""
    options = parse(Options, {}, argv, __doc__ or "")
    sampler = finished.load_sampler(options, program_command("generative.neighbours"))
    where = finished.output_path(options, options.out, f"neighbours-{options.which}-{options.seed}.png")
    train = Data.load(sampler.config).train.images
    extractor = FeatureExtractor.choose(sampler.config, sampler.shape, Run.read_config(Path(options.run))["extra"])
    painted = sampler.paint(sampler.latents(options.number, options.seed), sampler.labels(options.number))
    place_n, _ = nearest(extractor.look(painted).features_NF, extractor.look(train).features_NF)
    threes = torch.stack([painted, train[place_n], train[nearest_in_pixels(painted, train)]], 1)
    write_png(where, picture(threes.flatten(0, 1), 3 * options.columns))
    print(f"{where}: {options.number} images, nearest of {len(train):,} training images; {extractor.protocol}")


if __name__ == "__main__":
    run_main(main)
