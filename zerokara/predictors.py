"""Trained networks for images in Python: classifier, segmenter, detector, captioner, and the generator.

    classifier = load_classifier("digits")
    classifier.predict("photo.jpg").name

An image is the path of a file, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8, or a picture of Pillow, of any
size.

Shapes: N images, H, W pixels, C channels, K classes.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

from zerokara.core.choices import Background
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, error_summary
from zerokara.core.data.image_files import convert_channels, decode, read_image, resize_and_crop
from zerokara.core.models.classifier import Classifier as ClassifierNetwork
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.named_object import NamedObject
from zerokara.core.zoo import registry as zoo
from zerokara.generative.gan.sampler import Sampler
from zerokara.vision.captioning.network import Captioner as CaptionerNetwork
from zerokara.vision.captioning.network import CaptionerMetadata, extract_features, generate_captions
from zerokara.vision.classification.inputs import prepare
from zerokara.vision.detect_predict import detect_in_picture
from zerokara.vision.detection.detector import Detector as DetectorNetwork
from zerokara.vision.detection.detector import DetectorMetadata
from zerokara.vision.predict import predict
from zerokara.vision.segment_predict import segment_image
from zerokara.vision.segmentation.networks import Segmenter as SegmenterNetwork
from zerokara.vision.segmentation.networks import SegmenterMetadata

ImageInput = str | Path | np.ndarray | Image.Image
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Prediction:
    """Most probable class of an image."""

    name: str
    probability: float
    probabilities: dict[str, float]
    """Probability of every class, in decreasing order."""


@dataclass(frozen=True)
class Detection:
    """Object in an image."""

    name: str
    confidence: float
    box: tuple[float, float, float, float]
    """Corners (x1, y1, x2, y2) in pixels of the image."""


class Predictor(ABC, Generic[ResultT]):
    """Trained network that maps an image to a result."""

    background: Background
    """Color behind transparent pixels: that of the training images."""

    def predict(self, image: ImageInput) -> ResultT:
        """Return the result for an image.

        Raises:
            UserError: the image cannot be read, or is an array of another shape or type.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Iterable[ImageInput]) -> list[ResultT]:
        """Return the results for several images, which may have different sizes.

        Raises:
            UserError: as in `predict`.
        """
        if isinstance(images, str | Path):
            raise UserError(f"Several images are expected, got {str(images)!r}: for one image, call predict.")
        arrays = [read(image, self.background) for image in images]
        return self._results(arrays) if arrays else []

    @abstractmethod
    def _results(self, images: list[np.ndarray]) -> list[ResultT]:
        """Return the results for at least one image (H, W, C) uint8."""


class Classifier(Predictor[Prediction]):
    """Trained image classifier; `load_classifier` loads one."""

    def __init__(self, network: ClassifierNetwork, metadata: ClassifierMetadata, compute: Compute) -> None:
        self.network, self.metadata, self.compute = compute.module(network), metadata, compute
        self.background = metadata.background

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.metadata.classes

    def _results(self, images: list[np.ndarray]) -> list[Prediction]:
        prepared = [prepare(image_HWC, self.metadata) for image_HWC in images]
        probability_NK = predict([(self.network, self.metadata)], [prepared], self.compute, views=1)
        results = []
        for probability_K in probability_NK.tolist():
            ordered = sorted(zip(self.classes, probability_K, strict=True), key=lambda pair: -pair[1])
            results.append(Prediction(*ordered[0], dict(ordered)))
        return results


class Segmenter(Predictor[np.ndarray]):
    """Trained network for semantic segmentation; the result is the class index of every pixel, (H, W) uint8."""

    def __init__(self, network: SegmenterNetwork, metadata: SegmenterMetadata, compute: Compute) -> None:
        self.network, self.metadata, self.compute = compute.module(network), metadata, compute
        self.background = metadata.background

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by index."""
        return self.metadata.classes

    def _results(self, images: list[np.ndarray]) -> list[np.ndarray]:
        return [segment_image(self.network, self.metadata, self.compute, image_HWC) for image_HWC in images]


class Detector(Predictor[list[Detection]]):
    """Trained object detector; the result is a list of the objects, in decreasing order of confidence.

    `confidence` is the minimum confidence of a detection.
    """

    def __init__(self, network: DetectorNetwork, compute: Compute, confidence: float) -> None:
        self.network, self.compute, self.confidence = compute.module(network), compute, confidence
        self.background = network.metadata.background

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.network.metadata.classes

    def _results(self, images: list[np.ndarray]) -> list[list[Detection]]:
        results = []
        for image_HWC in images:
            found = detect_in_picture(self.network, image_HWC, self.compute, self.confidence).found
            rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
            results.append([Detection(self.classes[label], score, tuple(box)) for label, score, box in rows])
        return results


class Captioner(Predictor[str]):
    """Trained image captioner; the result is a caption."""

    def __init__(self, network: CaptionerNetwork, compute: Compute) -> None:
        self.network, self.compute = compute.module(network), compute
        self.background = network.metadata.background

    def _results(self, images: list[np.ndarray]) -> list[str]:
        size = self.network.metadata.image_size
        cropped = [resize_and_crop(convert_channels(image_HWC, grayscale=False), size) for image_HWC in images]
        images_NCHW = torch.from_numpy(np.stack(cropped)).permute(0, 3, 1, 2)
        return generate_captions(self.network, extract_features(self.network, self.compute, images_NCHW))


def read(image: ImageInput, background: Background = "auto") -> np.ndarray:
    """Read an image as an array (H, W, C) uint8, C = 1 (grayscale) or 3 (RGB).

    Args:
        image: path, array or picture of Pillow.
        background: color behind transparent pixels.

    Raises:
        UserError: the file cannot be read, or the array has another shape or type.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser(), background=background)
    if isinstance(image, Image.Image):
        return _decode(image, background)
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UserError(
            f"An image is an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, the path of a file, or a "
            f"picture of Pillow, got {array.dtype} of shape {array.shape}: values from 0 to 1 are converted by "
            f"(255 * x).round().astype('uint8'), channels first by x.transpose(1, 2, 0)."
        )
    return _decode(Image.fromarray(array), background) if array.shape[2:] == (4,) else np.atleast_3d(array)


def _decode(picture: Image.Image, background: Background) -> np.ndarray:
    """Convert a picture as if it came from a file.

    Raises:
        UserError: it cannot be read, or has 32-bit pixels.
    """
    if picture.mode in ("I", "F"):
        raise UserError(f"A picture of Pillow has 32-bit pixels (mode {picture.mode}): convert it to L or RGB.")
    png = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
            upright = upright.convert("RGBA" if "a" in upright.mode.lower() and upright.mode != "LAB" else "RGB")
        upright.save(png, "PNG")
    except Exception as error:  # noqa: BLE001  (the readers of Pillow raise many types on invalid bytes)
        raise UserError(f"A picture of Pillow cannot be read ({error_summary(error)}): give another one.") from None
    return decode(png.getvalue(), "the image", background=background)


def load_classifier(
    path: str | Path, *, backbone: Callable[..., Any] | None = None, device: str = "cpu", threads: int = 0
) -> Classifier:
    """Load a trained classifier, in float32.

    Args:
        path: run folder, model file, or name in the zoo.
        backbone: class or function of a network of one's own that was trained; None: as it was saved.
        device: auto, cpu, cuda, cuda:<n> or mps.
        threads: CPU threads; 0: one per core.

    Raises:
        UserError: it does not exist, is damaged or of another kind; or the device does not exist.
    """
    file = zoo.find_file(str(path))
    metadata, weights = ClassifierMetadata.read(file)
    if backbone is not None:
        metadata = replace(metadata, backbone=NamedObject.of(backbone))
    return Classifier(metadata.make(weights, file), metadata, _compute(device, threads))


def load_segmenter(path: str | Path, *, device: str = "cpu", threads: int = 0) -> Segmenter:
    """Load a trained segmentation network from a run folder or a model file; see `load_classifier`."""
    return Segmenter(*SegmenterMetadata.load(Path(path).expanduser()), _compute(device, threads))


def load_detector(path: str | Path, *, confidence: float = 0.5, device: str = "cpu", threads: int = 0) -> Detector:
    """Load a trained detector from a run folder or a model file; see `load_classifier`.

    Args:
        path: run folder or model file.
        confidence: minimum confidence of a detection.
        device: as in `load_classifier`.
        threads: as in `load_classifier`.
    """
    return Detector(DetectorMetadata.load(Path(path).expanduser())[0], _compute(device, threads), confidence)


def load_captioner(path: str | Path, *, device: str = "cpu", threads: int = 0) -> Captioner:
    """Load a trained captioner from a run folder or a model file; see `load_classifier`."""
    return Captioner(CaptionerMetadata.load(Path(path).expanduser())[0], _compute(device, threads))


def load_generator(
    path: str | Path, *, which: Literal["best", "last"] = "best", device: str = "cpu", threads: int = 0
) -> Sampler:
    """Load a trained generator, in float32; `sample` generates images.

    Args:
        path: run folder, file of a generator, or name in the zoo.
        which: of a run, the generator with the best score on held-out images, or the last one.
        device: auto, cpu, cuda, cuda:<n> or mps.
        threads: CPU threads; 0: one per core.

    Raises:
        UserError: it does not exist, has no weights yet, or is damaged; or the device does not exist.
    """
    return Sampler.load(str(path), which, device=device, threads=threads)


def _compute(device: str, threads: int) -> Compute:
    return Compute.choose(device=device, precision="float32", compile="off", threads=threads, train_step=None)
