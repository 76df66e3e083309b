"""Project pictures into the latent space of a generator: find the latent vectors whose images are most similar.

    python -m generative.project digits scan.png --invert       # dark ink on paper; these digits are white on black
    python -m generative.project runs/<name> photo.jpg other.jpg
    python -m generative.interpolate runs/<name> --latents runs/<name>/media/projection-best-0.json --strip 9

Zhu et al. 2016, "Generative Visual Manipulation on the Natural Image Manifold", section 3.1: gradient descent on the
latent vector, from several starts, on the difference between generated image and picture in pixels and in the features
of a trained network. Here the optimizer is Adam with a cosine learning rate, the starts are the most similar of many
random images, and the network is `photographs-vgg` of the zoo. After each step, latent vectors are moved back to where
training draws them: numbers are clipped to -1 and 1 if they are uniform (Lipton and Tripathi 2017, "Precise Recovery of
Latent Vectors from Generative Adversarial Networks", section 2), and vectors are shortened to the length that one in a
thousand exceeds if they are normal.

It writes the pictures beside their projections as a PNG file, and the latent vectors with the errors as a JSON file of
the same name. A picture is resized and its center cropped, as the training images are.

Shapes: N latent vectors, Z latent dimension, C channels (of stacked frames: the newest), H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from zerokara.core.choices import Background
from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, error_summary, note, run_main
from zerokara.core.programs import program_command
from zerokara.generative.gan.options import Options as GeneratorOptions

LAYERS = ("relu1_2", "relu2_2", "relu3_1")  # of photographs-vgg, whose features are compared
COMMON_LENGTHS = 0.999  # fraction of normal latent vectors that are not longer than the longest one allowed
CHUNK = 64  # random images in memory at once
SIMILAR = 1.1  # starts that end below this multiple of the smallest difference count as equally good


@dataclass(frozen=True, kw_only=True)
class Options(GeneratorOptions):
    """Options of generative.project."""

    pictures: Annotated[tuple[str, ...], Positional("picture")] = ()
    """Pictures, or folders of pictures."""
    label: int | None = None
    """Number of the class, of a class-conditional generator. None: that of the most similar images."""
    candidates: Annotated[int, Range(1, 100_000)] = 512
    """Number of random images. The optimization starts from the most similar ones."""
    restarts: Annotated[int, Range(1, 256)] = 8
    """Number of starts. The result is the best of their ends."""
    steps: Annotated[int, Range(1, 100_000)] = 300
    """Steps of the optimization from each start."""
    learning_rate: Annotated[float, Range(0, low_open=True)] = 0.1
    """Initial learning rate of Adam, with cosine decay to 0."""
    feature_weight: Annotated[float, Range(0)] = 0.1
    """Weight of the difference in features (0: pixels only)."""
    invert: bool = False
    """Invert the pictures first, for dark ink on paper where generated images are light on dark."""
    background: Background | None = None
    """Color behind transparent pixels (None: that of the generator's training images). auto: white, or black for
    pictures that are almost white; it is the default of generators that were not trained on files."""
    out: str = ""
    """PNG file to write, with a JSON file beside it. Empty: media/projection-<which>-<seed>.png in the run's folder."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import torch
from torch import Tensor

from zerokara.core.data.image_files import convert_channels, list_image_files, read_image, resize_and_crop
from zerokara.core.eager_optim import Adam
from zerokara.core.media import write_png
from zerokara.core.progress import Progress
from zerokara.generative.gan import finished
from zerokara.generative.gan.latent_file import ProjectedPicture, check_replaceable, save_latents
from zerokara.generative.gan.own_defaults import are_files
from zerokara.generative.gan.pictures import displayable, image_grid
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.style.config import BackboneOptions
from zerokara.generative.style.perceptual import LossNetwork, make_loss_network


@dataclass(frozen=True)
class Projection:
    """Result of `project`.

    Attributes:
        z_Z: latent vector (Z,) on the CPU.
        label: number of the class; None for an unconditional generator.
        image_CHW: generated image, uint8.
        rmse: root of the mean squared difference of the pixels, from 0 to 255.
        nearest_rmse: the same of the most similar random image.
        similar_starts: number of starts that ended at about the same difference as the best one.
    """

    z_Z: Tensor
    label: int | None
    image_CHW: Tensor
    rmse: float
    nearest_rmse: float
    similar_starts: int


class Difference:
    """Difference (N,) of images from a picture, from pixels and features.

        mean((x - p)^2) + weight * mean over layers of mean((f(x) - f(p))^2)

    for pixels from 0 to 1 and features f whose mean absolute value at the picture p is 1 in each layer.
    """

    def __init__(self, picture_CHW: Tensor, network: LossNetwork | None, weight: float) -> None:
        """Compute the picture's features.

        Args:
            picture_CHW: pixels from 0 to 1.
            network: network of the features; None: compare pixels only.
            weight: of the difference in features.
        """
        self.picture_1CHW, self.network, self.weight = picture_CHW[None], network, weight
        if network is not None:
            network.balance([self.picture_1CHW])
            with torch.no_grad():
                self.features = network(self.picture_1CHW)

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Compare images (N, C, H, W) from 0 to 1 with the picture."""
        difference_N = (images_NCHW - self.picture_1CHW).square().mean((1, 2, 3))
        if self.network is None:
            return difference_N
        features = self.network(images_NCHW)
        per_layer = [(features[name] - own).square().mean((1, 2, 3)) for name, own in self.features.items()]
        return difference_N + self.weight * torch.stack(per_layer).mean(0)


def longest(latent_dim: int) -> float:
    """Return the length that the fraction COMMON_LENGTHS of normal latent vectors does not exceed."""
    from scipy.special import gammaincinv

    return math.sqrt(2 * float(gammaincinv(latent_dim / 2, COMMON_LENGTHS)))  # quantile of the chi distribution


def to_training_range(z_NZ: Tensor, distribution: str) -> Tensor:
    """Move latent vectors to the nearest ones that training is likely to draw: see the program's description."""
    if distribution == "uniform":
        return z_NZ.clamp(-1, 1)
    limit, length_N1 = longest(z_NZ.shape[1]), z_NZ.norm(dim=1, keepdim=True)
    return torch.where(length_N1 > limit, z_NZ * (limit / length_N1), z_NZ)


def generate(sampler: Sampler, z_NZ: Tensor, label_N: Tensor | None) -> Tensor:
    """Generate images (N, C, H, W) from 0 to 1 on the sampler's device, with gradients."""
    with sampler.compute.autocast():
        images_NCHW: Tensor = sampler.generator(z_NZ, label_N)
    return (displayable(images_NCHW.float()) + 1) / 2


def rmse(image_CHW: Tensor, picture_CHW: Tensor) -> float:
    """Return the root of the mean squared difference of two images, uint8."""
    return float((image_CHW.double() - picture_CHW.double()).square().mean().sqrt())


def project(
    sampler: Sampler,
    picture_CHW: Tensor,
    options: Options,
    network: LossNetwork | None = None,
    *,
    on_step: Callable[[int], object] = lambda _: None,
) -> Projection:
    """Find the latent vector whose image is most similar to a picture.

    Args:
        sampler: the generator.
        picture_CHW: uint8, as `read_picture` returns it.
        options: class, seed and optimization.
        network: network whose features are compared, too; None: pixels only.
        on_step: called after each step with the number of steps so far.

    Raises:
        UserError: a label that does not exist.
    """
    device = sampler.compute.torch_device
    difference = Difference(picture_CHW.to(device).float() / 255, network, options.feature_weight)
    z_NZ = sampler.latents(options.candidates, options.seed)
    label_N = sampler.labels(options.candidates, options.label)
    with torch.no_grad():
        differences = []
        for start in range(0, len(z_NZ), CHUNK):
            rows = slice(start, start + CHUNK)
            labels = None if label_N is None else label_N[rows].to(device)
            differences.append(difference(generate(sampler, z_NZ[rows].to(device), labels)))
    nearest_N = sampler.compute.to_host(torch.cat(differences).argsort(stable=True)[: options.restarts])
    start_NZ, label_N = z_NZ[nearest_N], None if label_N is None else label_N[nearest_N]
    nearest_CHW = displayable(sampler.generate(start_NZ[:1], None if label_N is None else label_N[:1]))[0]

    z_NZ, labels = start_NZ.to(device, copy=True).requires_grad_(), None if label_N is None else label_N.to(device)
    optimizer = Adam([z_NZ], lr=options.learning_rate)
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = options.learning_rate * (1 + math.cos(math.pi * step / options.steps)) / 2
        optimizer.zero_grad()
        difference(generate(sampler, z_NZ, labels)).sum().backward()  # the starts do not affect each other
        optimizer.step()
        with torch.no_grad():
            z_NZ.copy_(to_training_range(z_NZ, sampler.config.latent_distribution))
        on_step(step + 1)

    with torch.no_grad():
        end_N = difference(generate(sampler, z_NZ, labels))
    best = int(end_N.argmin())
    z_1Z, label_1 = (
        sampler.compute.to_host(z_NZ[best : best + 1]),
        None if label_N is None else label_N[best : best + 1],
    )
    image_CHW = displayable(sampler.generate(z_1Z, label_1))[0]
    return Projection(
        z_Z=z_1Z[0],
        label=None if label_1 is None else int(label_1),
        image_CHW=image_CHW,
        rmse=rmse(image_CHW, picture_CHW),
        nearest_rmse=rmse(nearest_CHW, picture_CHW),
        similar_starts=int((end_N <= SIMILAR * end_N[best]).sum()),
    )


def read_picture(
    path: Path, shape: tuple[int, int, int], *, background: Background = "auto", invert: bool = False
) -> Tensor:
    """Read a picture as (C, H, W) uint8, with the size of a generator's images: the center is cropped.

    Args:
        path: of the file.
        shape: (C, H, W) of the generated images.
        background: color behind transparent pixels.
        invert: invert it.

    Raises:
        UserError: it cannot be read.
    """
    image_HWC = resize_and_crop(read_image(path, background=background), shape[1:])
    image_HWC = convert_channels(image_HWC, shape[0] != 3)  # stacked frames are grayscale
    picture_CHW = torch.from_numpy(image_HWC.transpose(2, 0, 1).copy())
    return 255 - picture_CHW if invert else picture_CHW


def is_inverted(sampler: Sampler, picture_CHW: Tensor, seed: int) -> bool:
    """Return True if the negative of a picture is much closer to a random image than the picture is."""
    images = displayable(sampler.generate(sampler.latents(CHUNK, seed), sampler.labels(CHUNK)))
    own, negative = (min(rmse(image, picture) for image in images) for picture in (picture_CHW, 255 - picture_CHW))
    return negative < own / 2


def background_of(sampler: Sampler) -> Background:
    """Return the color behind transparent pixels of the images that a generator was trained on; auto: each its own."""
    return sampler.config.background if are_files(sampler.config) else "auto"


def read_pictures(options: Options, sampler: Sampler) -> tuple[dict[Path, Tensor], list[str]]:
    """Read the pictures, and return them with a message for each one that cannot be read.

    Raises:
        UserError: no picture was named, or none can be read.
    """
    if not options.pictures:
        raise UserError(
            f"No picture was named: type the generator and then pictures, as in "
            f"{program_command('generative.project')} {options.run} photo.jpg."
        )
    pictures, errors = {}, []
    background = options.background or background_of(sampler)
    for path in dict.fromkeys(list_image_files(options.pictures)):
        try:
            pictures[path] = read_picture(path, sampler.shape, background=background, invert=options.invert)
        except UserError as error:
            errors.append(str(error))
    if not pictures:
        raise UserError("\n       ".join(errors))
    inverted = [path for path, picture in pictures.items() if is_inverted(sampler, picture, options.seed)]
    if inverted:
        now = "is given" if options.invert else "is missing"
        note(
            f"{len(inverted)} of {len(pictures)} pictures ({inverted[0]}) are closer to the generator's images as a "
            f"negative: perhaps --invert {now} by mistake."
        )
    return pictures, errors


def main(argv: Sequence[str] | None = None) -> None:
    """Project the pictures, and write the image grid and the latent vectors."""
    options = parse(Options, {}, argv, __doc__ or "")
    if options.restarts > options.candidates:
        raise UserError(
            f"--restarts {options.restarts} starts from as many of the --candidates {options.candidates}: give at "
            f"least as many candidates."
        )
    sampler = finished.load_sampler(options, program_command("generative.project"))
    sampler.labels(1, options.label)  # a wrong label is reported before the pictures are read
    pictures, errors = read_pictures(options, sampler)
    path = finished.output_path(sampler, options.out, f"projection-{options.which}-{options.seed}.png")
    if path.resolve() in {file.resolve() for file in pictures}:
        raise UserError(f"--out {path} is one of the pictures: name another file.")
    latents = path.with_suffix(".json")
    try:
        check_replaceable(latents)
    except OSError as error:
        raise UserError(
            f"{latents} cannot be replaced ({error_summary(error)}): name another file with --out."
        ) from None
    network = None
    if options.feature_weight:
        network = make_loss_network(BackboneOptions(content_layers=LAYERS, style_layers=LAYERS)).on(sampler.compute)
    projections: list[Projection] = []
    progress = Progress(silent=False)

    def show(step: int) -> None:
        progress.show(len(projections) * options.steps + step, len(pictures) * options.steps, {})

    try:
        for picture_CHW in pictures.values():
            found = project(sampler, picture_CHW, options, network, on_step=show)
            projections.append(found)
    finally:
        progress.close()
    pairs = torch.stack([torch.stack([*pictures.values()]), torch.stack([found.image_CHW for found in projections])], 1)
    try:
        write_png(path, image_grid(pairs.flatten(0, 1), 2 * math.ceil(math.sqrt(len(pairs) / 2))))
        save_latents(
            latents,
            sampler,
            [
                ProjectedPicture(str(file), found.z_Z, found.label, found.rmse)
                for file, found in zip(pictures, projections, strict=True)
            ],
        )
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error_summary(error)}): name another file with --out.") from None
    for file, found in zip(pictures, projections, strict=True):
        of_class = f", class {sampler.class_names[found.label]}" if found.label is not None else ""
        print(
            f"{file}: error {found.rmse:.1f} of 255 (the most similar of {options.candidates:,} random images: "
            f"{found.nearest_rmse:.1f}){of_class}; {found.similar_starts} of {options.restarts} starts ended as well"
        )
    print(f"{path}: each picture beside its projection; {latents}: the latent vectors, update {sampler.update:,}")
    if errors:
        raise UserError("\n       ".join(errors))


if __name__ == "__main__":
    run_main(main)
