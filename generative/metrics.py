"""Evaluate a trained generator: metrics of its images, and how they were computed.

    python -m generative.metrics runs/dcgan-mnist-fast-1
    python -m generative.metrics runs/dcgan-mnist-fast-1 --json
    python -m generative.metrics runs/dcgan-mnist-fast-1 --inception inception.pt      # FID, with a file of yours
    python -m generative.metrics runs/dcgan-mnist-fast-1 --lite0     # FD-Lite0, in ImageNet's features

Generated images are compared with real ones in the features of a classifier: Fréchet classifier distance (FCD), kernel
distance (KID), density and coverage, precision and recall. Each metric is printed with its floor, its value for
training images in place of generated ones, and the Fréchet distance also in the features of a random network, as a
control. Copies of training images would show in the distance to the nearest training image, of generated and of real
images.

All distances are computed in float64. They decrease with the number of images, so compare only metrics of the same
number of images.

Shapes: N real images, M generated images, C channels, H, W pixels, F features.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Range, UserError, error_summary, run_main
from zerokara.core.programs import program_command
from zerokara.generative.gan.options import Options as GeneratorOptions

FID_BATCH = 50
SEARCHED_IMAGES = 1_000  # images whose nearest training image is searched
ORDER_SEED = 0  # selects the same real images in every call
FIRST_ROWS = ("fid", "fd_lite0", "fcd", "random_fd")  # of the table


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.metrics."""

    images: Annotated[int, Range(100, 100_000)] = 10_000
    """Number of generated images, and of real ones (or all, if there are fewer)."""
    split: Literal["test", "held-out", "train"] = "test"
    """Real images: the test set, the held-out images that selected the best checkpoint, or the training set."""
    classifier: str = ""
    """Classifier whose features are compared: a run's folder, a file *.safetensors, or a network of the zoo. Empty:
    that of the run."""
    inception: str = ""
    """TorchScript of Inception, run as code, for FID. The network maps uint8 RGB images to features.
    TorchScript is a program that is run: give only files from sources that you trust. Empty: no FID."""
    lite0: bool = False
    """Also FD-Lite0 and other distances in the features of EfficientNet-Lite0; needs the extra scores."""
    json: bool = False
    """Print JSON instead of a table."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from zerokara.core.data import ImageSet
from zerokara.core.models import model_file
from zerokara.core.progress import Progress
from zerokara.core.report import table_console, to_json
from zerokara.generative.gan import finished
from zerokara.generative.gan.data import Data, load_split
from zerokara.generative.gan.pictures import displayable
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.distances import frechet_distance, nearest
from zerokara.generative.scoring.feature_extractor import FeatureExtractor, label_accuracy
from zerokara.generative.scoring.lite0 import Lite0, refuse_biased


@dataclass(frozen=True)
class ComparedImages:
    """Real and generated images to compare, uint8 on the CPU."""

    real: ImageSet
    floor: ImageSet  # training images in place of generated ones; disjoint from `real`
    train: ImageSet
    split: str  # of the real images
    generated: Tensor  # (M, C, H, W)
    label_M: Tensor | None  # of a class-conditional generator


def load_images(options: Options, sampler: Sampler, progress: Progress) -> ComparedImages:
    """Load the real images and generate the others.

    Raises:
        UserError: data that no longer exist, too few images, or images of another shape than the generator's.
    """
    data = Data.load(sampler.config, progress.show_loading)
    train, number = data.train, options.images
    # Shuffled, since a data set may be sorted by class.
    order_N = torch.randperm(len(train), generator=torch.Generator().manual_seed(ORDER_SEED))
    floor = train.take(order_N[:number])
    if options.split == "train":
        if len(train) < 2 * number:
            raise UserError(
                f"--split train needs {2 * number:,} training images, half of them as floor, and there are "
                f"{len(train):,}: type --images {len(train) // 2}, or less."
            )
        real = train.take(order_N[number : 2 * number])
    else:
        real = load_split(sampler.config, "test")[0] if options.split == "test" else data.held_out
        order_N = torch.randperm(len(real), generator=torch.Generator().manual_seed(ORDER_SEED))
        real = real.take(order_N[:number])
    for images in (real, train):
        if images.shape != sampler.shape:
            raise UserError(
                f"{images.source} has images of {images.shape}, and the generator was trained on {sampler.shape}: "
                f"provide the data that it was trained on."
            )
    z_MZ, label_M = sampler.latents(number, options.seed), sampler.labels(number)
    progress.print(f"generating {number:,} images")
    return ComparedImages(real, floor, train, options.split, sampler.generate(z_MZ, label_M), label_M)


def measure(
    compared: ComparedImages, extractor: FeatureExtractor, class_names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Compute metrics by name, of generated images ("painted") and of training images in their place ("floor").

    The floor of the accuracy is the classifier's accuracy on the real images.
    """
    real, generated, floor = (
        extractor.extract(images) for images in (compared.real.images, compared.generated, compared.floor.images)
    )
    scores = {"painted": extractor.compare(real, generated), "floor": extractor.compare(real, floor)}
    if extractor.metadata is not None:
        control = FeatureExtractor.random(compared.train.shape)
        control_real = control.extract(compared.real.images)
        for key, images in (("painted", compared.generated), ("floor", compared.floor.images)):
            scores[key][control.name] = frechet_distance(control_real, control.extract(images))
        if compared.label_M is not None and extractor.metadata.classes == class_names:
            scores["painted"]["accuracy"] = label_accuracy(generated, compared.label_M)
            if compared.real.classes == class_names:  # a folder of test images may lack a class
                scores["floor"]["accuracy"] = label_accuracy(real, compared.real.labels)
    # Copies are much nearer to training images than real images are. Training images would find themselves.
    train_NF = extractor.extract(compared.train.images).features_NF
    for key, features in (("painted", generated), ("floor", real))[: 1 if compared.split == "train" else 2]:
        distance_n = nearest(features.features_NF[:SEARCHED_IMAGES], train_NF)[1]
        scores[key]["nearest_training_image"] = float(distance_n.median())
    return scores


class Inception(nn.Module):
    """TorchScript network for torchmetrics: from uint8 images, RGB or grayscale, to features (N, F) float64."""

    def __init__(self, path: Path) -> None:
        """Load the file.

        Raises:
            UserError: no such file, or not TorchScript.
        """
        super().__init__()
        if not path.is_file():
            raise UserError(f"There is no file {path}: give the TorchScript of Inception with --inception.")
        try:
            with warnings.catch_warnings():
                # torch deprecates TorchScript, but published Inception networks use it.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.network = torch.jit.load(path, map_location="cpu").eval()
        except Exception as error:  # noqa: BLE001  (torch raises many types on invalid bytes)
            raise UserError(
                f"{path} is not a TorchScript file ({error_summary(error)}): give a file of torch.jit.save, not a file "
                f"of weights."
            ) from None
        # NVIDIA's conversion of the original network returns class scores by default.
        arguments = {argument.name for argument in self.network.forward.schema.arguments}
        self._options = {"return_features": True} if "return_features" in arguments else {}

    @torch.no_grad()
    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Extract features (N, F)."""
        images_NCHW = displayable(images_NCHW)
        if images_NCHW.shape[1] == 1:
            images_NCHW = images_NCHW.expand(-1, 3, -1, -1)
        features: Tensor = self.network(images_NCHW, **self._options)
        return features.flatten(1).double()


def inception_distance(
    network: nn.Module, real_NCHW: Tensor, generated_MCHW: Tensor, batch_size: int = FID_BATCH
) -> float:
    """Compute FID with torchmetrics (Heusel et al. 2017), with this network's features.

    Raises:
        UserError: the network does not accept such images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        # Without num_features, torchmetrics would call the network with a random image to find out.
        network.num_features = network(real_NCHW[:2]).shape[1]
        metric = FrechetInceptionDistance(feature=network)
        for images, real in ((real_NCHW, True), (generated_MCHW, False)):
            for chunk in images.split(batch_size):
                metric.update(chunk, real=real)
        return float(metric.compute())
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"The network of --inception does not accept uint8 images {tuple(real_NCHW.shape[1:])} "
            f"({error_summary(error)}): give one that resizes and scales images itself."
        ) from None


def choose_extractor(options: Options, sampler: Sampler) -> FeatureExtractor:
    """Choose the feature extractor: the classifier of --classifier, else that of the run.

    Raises:
        UserError: no such classifier, or the discriminator's backbone was initialized from it.
    """
    config = replace(sampler.config, classifier=options.classifier or sampler.config.classifier)
    return FeatureExtractor.choose(config, sampler.shape, finished.run_extra(sampler))


def load_lite0(sampler: Sampler) -> Lite0:
    """Load the network of FD-Lite0.

    Raises:
        UserError: its package is not installed, images are neither RGB nor grayscale, or the discriminator's backbone
            was initialized from its weights.
    """
    lite0 = Lite0("--lite0", sampler.shape[0])
    refuse_biased(finished.run_extra(sampler), sampler.config.pretrained_backbone)
    return lite0


def report(options: Options, sampler: Sampler, progress: Progress) -> dict[str, Any]:
    """Compute all metrics. Returns them and their protocol as plain values."""
    extractor = choose_extractor(options, sampler)
    if extractor.bias_warning:
        progress.warn(extractor.bias_warning)
    network = Inception(Path(options.inception)) if options.inception else None
    lite0 = load_lite0(sampler) if options.lite0 else None
    compared = load_images(options, sampler, progress)
    progress.print("computing metrics")
    scores = measure(compared, extractor, sampler.class_names)
    metadata = extractor.metadata
    protocol: dict[str, Any] = {
        "features": extractor.protocol,
        "classifier": None if metadata is None else extractor.fingerprint,
        "classifier_figures": {} if metadata is None else dict(metadata.figures),
        "real": f"{len(compared.real):,} of {compared.real.source}, {options.split} split",
        "real_images": len(compared.real),
        "painted_images": len(compared.generated),
        "floor_images": len(compared.floor),
        "training_images": len(compared.train),
        "searched_images": min(SEARCHED_IMAGES, len(compared.generated)),
        "split": options.split,
        "seed": options.seed,
        "which": options.which,
        "update": sampler.update,
        "arithmetic": "float64",
    }
    if extractor.bias_warning:
        protocol["doubt"] = extractor.bias_warning
    if network is not None:
        scores["painted"]["fid"] = inception_distance(network, compared.real.images, compared.generated)
        scores["floor"]["fid"] = inception_distance(network, compared.real.images, compared.floor.images)
        protocol["inception"] = model_file.fingerprint(Path(options.inception))
    if lite0 is not None:
        progress.print("computing FD-Lite0")
        lite0_real = lite0.extract(compared.real.images)
        for key, images in (("painted", compared.generated), ("floor", compared.floor.images)):
            scores[key] |= lite0.compare(lite0_real, lite0.extract(images))
        protocol["lite0"] = lite0.protocol
    return {"run": sampler.name, "scores": scores, "protocol": protocol}


def make_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """Make a table with a row for each metric, of generated images and of training images in their place."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("metric", "generated", "floor"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in sorted(scores["painted"], key=lambda name: name not in FIRST_ROWS):
        values = (scores[key].get(name) for key in ("painted", "floor"))
        table.add_row(name.replace("_", " "), *("" if value is None else f"{value:.4g}" for value in values))
    return table


def protocol_lines(protocol: Mapping[str, Any]) -> list[str]:
    """Format the protocol as lines of text."""
    counts = f"{protocol['painted_images']:,} generated images ({protocol['which']}, update {protocol['update']:,}"
    lines = [
        f"protocol: {protocol['features']}",
        f"{counts}, seed {protocol['seed']}) against {protocol['real']}; {protocol['arithmetic']}",
        f"floor: {protocol['floor_images']:,} training images in place of generated ones; for accuracy, real images",
        f"nearest training image: median of {protocol['searched_images']:,} images in {protocol['training_images']:,}",
    ]
    if "inception" in protocol:
        lines.append(f"FID: torchmetrics, features of the TorchScript {protocol['inception']}, the same images")
    if "lite0" in protocol:
        lite0 = protocol["lite0"]
        lines.append(f"FD-Lite0 (not FID) and lite0: {lite0['package']} {lite0['weights']}, {lite0['features']};")
        lines.append(f"  the same images, resized: {lite0['resize']}; {lite0['normalization']}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Generate images, compute metrics, and print them."""
    options = parse(Options, {}, argv, __doc__ or "")
    sampler = finished.load_sampler(options, program_command("generative.metrics"))
    progress = Progress(silent=options.json)
    try:
        result = report(options, sampler, progress)
    finally:
        progress.close()
    if options.json:
        print(to_json(result, indent=2))
        return
    table_console().print(make_table(result["scores"]))
    for line in protocol_lines(result["protocol"]):
        print(line)


if __name__ == "__main__":
    run_main(main)
