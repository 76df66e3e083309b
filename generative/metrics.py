"""Metrics: how good a trained generator is, with the protocol that each number was measured by.

    python -m generative.metrics runs/dcgan-mnist-fast-1
    python -m generative.metrics runs/dcgan-mnist-fast-1 --json
    python -m generative.metrics runs/dcgan-mnist-fast-1 --inception inception.pt      # FID, with a file of yours

Painted images are compared with real ones in the features of a classifier of ours: Fréchet classifier distance (FCD),
kernel distance, density and coverage, precision and recall. Beside each stands its floor, which is what training images
get in the place of painted ones, and the same distances in the features of a random network, as a control. Whether
images are copied is told by the distance to the nearest training image, of painted and of real ones.

All distances are computed in float64, from images that do not depend on what is painted with them. They fall as more
images are compared, so two numbers belong together only where their counts do.

Shapes: N real, M painted images, C channels, H, W pixels, F features.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from zerokara.core.config import Range, UserError, error_summary, parse, run_main
from zerokara.core.data import ImageSet
from zerokara.core.models import model_file
from zerokara.core.programs import program_command
from zerokara.core.progress import Progress
from zerokara.core.run import Run
from zerokara.generative.gan import finished
from zerokara.generative.gan.data import Data, load_split
from zerokara.generative.gan.pictures import shown
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.distances import frechet_distance, nearest
from zerokara.generative.scoring.feature_extractor import FeatureExtractor, accuracy

FID_BATCH = 50
COPIES = 1_000  # images whose nearest training image is sought
ORDER_SEED = 0  # the same real images always
FIRST = ("fid", "fcd", "random_fd")  # in the table


@dataclass(frozen=True, kw_only=True)
class Options(finished.Options):
    """What is compared with what, and by whom."""

    images: Annotated[int, Range(100, 100_000)] = 10_000
    """Painted images, and real ones where there are as many."""
    split: Literal["test", "held-out", "train"] = "test"
    """Real images: the test set, those on which the best moment was chosen, or those it learnt from."""
    classifier: str = ""
    """Who scores: a run's folder, a file *.safetensors, or a name of the zoo; empty: as in the run."""
    inception: str = ""
    """TorchScript file of Inception, from uint8 RGB images to features, for FID; empty: no FID."""
    json: bool = False
    """Print JSON in the place of a table."""


@dataclass(frozen=True)
class Material:
    """What is compared: images uint8 on the CPU."""

    real: ImageSet
    floor: ImageSet  # training images in the place of painted ones, none of them among the real ones
    train: ImageSet
    split: str  # where the real ones are from
    painted: Tensor  # (M, C, H, W)
    label_M: Tensor | None  # of a class-conditional generator


def gather(options: Options, sampler: Sampler, progress: Progress) -> Material:
    """Read the real images and paint the others.

    Raises:
        UserError: data that are not there any more, or too few, or of other shapes than the generator learnt.
    """
    data = Data.load(sampler.config, lambda what, done, total: progress.show(done, total, {"": what}))
    train, number = data.train, options.images
    # A set may be sorted by class, and then its first images are not like the rest.
    order_N = torch.randperm(len(train), generator=torch.Generator().manual_seed(ORDER_SEED))
    floor = train.take(order_N[:number])
    if options.split == "train":
        if len(train) < 2 * number:
            raise UserError(
                f"--split train compares training images with others of them, and {2 * number:,} are more than the "
                f"{len(train):,} there are: type --images {len(train) // 2}, or less."
            )
        real = train.take(order_N[number : 2 * number])
    else:
        real = load_split(sampler.config, "test")[0] if options.split == "test" else data.held_out
        order_N = torch.randperm(len(real), generator=torch.Generator().manual_seed(ORDER_SEED))
        real = real.take(order_N[:number])
    for images in (real, train):
        if images.shape != sampler.shape:
            raise UserError(
                f"{images.source} has images of {images.shape} here, and the generator learnt {sampler.shape}: "
                f"put the data there that it learnt from."
            )
    z_MZ, label_M = sampler.latents(number, options.seed), sampler.labels(number)
    progress.print(f"painting {number:,} images")
    return Material(real, floor, train, options.split, sampler.paint(z_MZ, label_M), label_M)


def measure(
    material: Material, extractor: FeatureExtractor, class_names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Scores by name: of painted images ("painted"), and of training images in their place ("floor")."""
    real, painted, floor = (
        extractor.look(images) for images in (material.real.images, material.painted, material.floor.images)
    )
    scores = {"painted": extractor.compare(real, painted), "floor": extractor.compare(real, floor)}
    if extractor.metadata is not None:
        control = FeatureExtractor.random(material.train.shape)
        real_NF = control.look(material.real.images).features_NF
        for who, images in (("painted", material.painted), ("floor", material.floor.images)):
            scores[who][control.name] = frechet_distance(real_NF, control.look(images).features_NF)
        if material.label_M is not None and extractor.metadata.classes == class_names:
            scores["painted"]["accuracy"] = accuracy(painted, material.label_M)
    # Far below the distance of real images stands what was copied; those of the training set would find themselves.
    train_NF = extractor.look(material.train.images).features_NF
    for who, seen in (("painted", painted), ("floor", real))[: 1 if material.split == "train" else 2]:
        distance_n = nearest(seen.features_NF[:COPIES], train_NF)[1]
        scores[who]["nearest_training_image"] = float(distance_n.median())
    return scores


class Inception(nn.Module):
    """A TorchScript network as torchmetrics wants it: features (N, F) float64 of images uint8 of any colours."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            UserError: no such file, or no TorchScript.
        """
        super().__init__()
        if not path.is_file():
            raise UserError(f"There is no file {path}: give the TorchScript of Inception with --inception.")
        try:
            with warnings.catch_warnings():
                # torch would have other formats; this one is what the published networks come in.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.network = torch.jit.load(path, map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{path} is no TorchScript ({error_summary(error)}): give what torch.jit.save wrote, not a file of weights."
            ) from None
        # NVIDIA's conversion of the original network gives class scores unless it is asked for features.
        arguments = {argument.name for argument in self.network.forward.schema.arguments}
        self._asked = {"return_features": True} if "return_features" in arguments else {}

    @torch.no_grad()
    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Features (N, F)."""
        images_NCHW = shown(images_NCHW)
        if images_NCHW.shape[1] == 1:
            images_NCHW = images_NCHW.expand(-1, 3, -1, -1)
        features: Tensor = self.network(images_NCHW, **self._asked)
        return features.flatten(1).double()


def inception_distance(
    network: nn.Module, real_NCHW: Tensor, painted_MCHW: Tensor, batch_size: int = FID_BATCH
) -> float:
    """FID as torchmetrics computes it (Heusel et al. 2017), with this network's features.

    Raises:
        UserError: the network does not take such images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        # Told how many features there are: otherwise it would draw an image at random to find out.
        network.num_features = network(real_NCHW[:2]).shape[1]
        metric = FrechetInceptionDistance(feature=network)
        for images, real in ((real_NCHW, True), (painted_MCHW, False)):
            for chunk in images.split(batch_size):
                metric.update(chunk, real=real)
        return float(metric.compute())
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"The network of --inception does not take images {tuple(real_NCHW.shape[1:])} of uint8 ({error_summary(error)}): "
            f"give one that brings images to its own size and scale."
        ) from None


def choose_extractor(options: Options, sampler: Sampler) -> FeatureExtractor:
    """Who scores: the classifier of --classifier, else the run's own.

    Raises:
        UserError: there is none such, or it is the eye that the discriminator began from.
    """
    config = replace(sampler.config, classifier=options.classifier or sampler.config.classifier)
    return FeatureExtractor.choose(config, sampler.shape, Run.read_config(Path(options.run))["extra"])


def report(options: Options, sampler: Sampler, progress: Progress) -> dict[str, Any]:
    """Everything that was measured, and how, as plain values."""
    extractor = choose_extractor(options, sampler)
    if extractor.doubt:
        progress.warn(extractor.doubt)
    network = Inception(Path(options.inception)) if options.inception else None
    material = gather(options, sampler, progress)
    progress.print("comparing")
    scores = measure(material, extractor, sampler.class_names)
    metadata = extractor.metadata
    protocol: dict[str, Any] = {
        "features": extractor.protocol,
        "classifier": None if metadata is None else extractor.fingerprint,
        "classifier_figures": {} if metadata is None else dict(metadata.figures),
        "real": f"{len(material.real):,} of {material.real.source}, {options.split} split",
        "real_images": len(material.real),
        "painted_images": len(material.painted),
        "floor_images": len(material.floor),
        "training_images": len(material.train),
        "searched_images": min(COPIES, len(material.painted)),
        "split": options.split,
        "seed": options.seed,
        "which": options.which,
        "update": sampler.update,
        "arithmetic": "float64",
    }
    if extractor.doubt:
        protocol["doubt"] = extractor.doubt
    if network is not None:
        scores["painted"]["fid"] = inception_distance(network, material.real.images, material.painted)
        scores["floor"]["fid"] = inception_distance(network, material.real.images, material.floor.images)
        protocol["inception"] = model_file.fingerprint(Path(options.inception))
    return {"run": Path(options.run).resolve().name, "scores": scores, "protocol": protocol}


def table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each score: of painted images, and of training images in their place."""
    found = Table(box=box.SIMPLE_HEAD)
    for column in ("score", "painted", "floor"):
        found.add_column(column, justify="left" if column == "score" else "right")
    for name in sorted(scores["painted"], key=lambda name: name not in FIRST):
        values = (scores[who].get(name) for who in ("painted", "floor"))
        found.add_row(name.replace("_", " "), *("" if value is None else f"{value:.4g}" for value in values))
    return found


def protocol_lines(protocol: Mapping[str, Any]) -> list[str]:
    """The protocol for a person."""
    counts = f"{protocol['painted_images']:,} painted images ({protocol['which']}, update {protocol['update']:,}"
    lines = [
        f"protocol: {protocol['features']}",
        f"{counts}, seed {protocol['seed']}) against {protocol['real']}; {protocol['arithmetic']}",
        f"floor: {protocol['floor_images']:,} training images in the place of painted ones",
        f"nearest training image: {protocol['searched_images']:,} in {protocol['training_images']:,}; floor: of real",
    ]
    if "inception" in protocol:
        lines.append(f"FID: torchmetrics, features of the TorchScript {protocol['inception']}, the same images")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Paint, compare, print."""
    options = parse(Options, {}, argv, __doc__ or "")
    sampler = finished.load_sampler(options, program_command("generative.metrics"))
    progress = Progress(silent=options.json)
    try:
        found = report(options, sampler, progress)
    finally:
        progress.close()
    if options.json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    Console().print(table(found["scores"]))
    for line in protocol_lines(found["protocol"]):
        print(line)


if __name__ == "__main__":
    run_main(main)
