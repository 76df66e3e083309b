"""Trained networks from Python: every form of an image gives the result of the programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zerokara
from zerokara.core.choices import Background
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data.image_files import read_image
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.learner import make_generator
from zerokara.generative.gan.sampler import Sampler
from zerokara.predictors import read
from zerokara.vision import predict
from zerokara.vision.captioning.network import CaptionerMetadata, extract_features, generate_captions
from zerokara.vision.classification.inputs import prepare
from zerokara.vision.detect_predict import detect_in_picture
from zerokara.vision.detection.detector import DetectorMetadata
from zerokara.vision.detection.selective_search import SearchSettings
from zerokara.vision.segment_predict import segment_image
from zerokara.vision.segmentation.networks import SegmenterMetadata

CPU = Compute(threads=1)
NORMAL: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.2,) * 3}


def drawing(height: int = 40, width: int = 50, channels: int = 3) -> np.ndarray:
    """Return an image (H, W, C) with a bright rectangle."""
    image = np.random.default_rng(0).integers(60, size=(height, width, channels), dtype=np.uint8)
    image[8:30, 10:35] += 150
    return image


def save(metadata: Any, path: Path) -> Any:
    """Write a randomly initialized network; return it in evaluation mode."""
    torch.manual_seed(0)
    network = metadata.build().eval()
    metadata.save(path, network.state_dict())
    return network


@pytest.mark.parametrize("shape", [(40, 50, 3), (40, 50, 1), (40, 50), (40, 50, 4)], ids=str)
def test_an_array_a_picture_and_a_file_are_the_same_image(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    picture = Image.fromarray(array[..., 0] if shape[2:] == (1,) else array)
    path = tmp_path / "image.png"
    picture.save(path)
    assert read(path).shape == (40, 50, 1 if shape[2:] in ((), (1,)) else 3)
    backgrounds: tuple[Background, ...] = ("auto", "white", "black")
    for background in backgrounds:
        expected = read_image(path, background=background)
        for image in (array, picture, str(path)):
            np.testing.assert_array_equal(read(image, background), expected)


def test_a_picture_is_turned_by_its_exif_orientation_as_its_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(5, 12)).save(tmp_path / "a.jpg", exif=exif)
    expected = read(tmp_path / "a.jpg")
    assert expected.shape == (12, 5, 1)
    with Image.open(tmp_path / "a.jpg") as picture:
        np.testing.assert_array_equal(read(picture), expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_picture_of_32_bits_is_refused(mode: str) -> None:
    with pytest.raises(zerokara.UserError, match=r"has 32-bit pixels .*: convert it to L or RGB"):
        read(Image.new(mode, (4, 4)))


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:400])
    with Image.open(tmp_path / "a.png") as picture, pytest.raises(zerokara.UserError, match="cannot be read"):
        read(picture)


def test_pictures_that_png_does_not_have_are_converted() -> None:
    picture = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    assert read(picture).tolist() == np.full((3, 4, 3), (255, 0, 0)).tolist()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 40, 50), np.uint8), r"got uint8 of shape \(3, 40, 50\): .*channels first by x\.transpose"),
        (np.zeros((40, 50, 3), np.float32), r"got float32 of shape \(40, 50, 3\): values from 0 to 1 are converted"),
        (np.zeros(4, np.uint8), r"got uint8 of shape \(4,\)"),
        ("nowhere.png", r"nowhere\.png cannot be read"),
    ],
)
def test_mistakes_get_one_sentence(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(image)


def test_a_classifier_of_the_zoo() -> None:
    classifier = zerokara.load_classifier("digits", threads=1)
    assert classifier.classes == tuple("0123456789")
    images = [drawing(28, 28, 1), drawing(60, 40, 3)]
    predictions = classifier.predict_batch(images)
    (member,) = predict.load_classifiers(["digits"])
    prepared = [prepare(image, member[1]) for image in images]
    expected_NK = predict.predict([member], [prepared], CPU, 1)
    for prediction, probability_K in zip(predictions, expected_NK, strict=True):
        top = predict.top_predictions(probability_K, classifier.classes, 10)
        assert list(prediction.probabilities.items()) == top
        assert (prediction.name, prediction.probability) == top[0]
    assert classifier.predict(images[0]).name == predictions[0].name
    assert classifier.predict_batch([]) == []
    with pytest.raises(UserError, match=r"Several images are expected, got 'photo.png': for one image, call predict"):
        classifier.predict_batch("photo.png")
    with pytest.raises(UserError, match="There is no digit"):
        zerokara.load_classifier("digit")


def test_a_classifier_places_transparent_images_on_the_background_of_its_training(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    metadata = ClassifierMetadata(
        backbone="deep_cnn",
        head="pooled",
        classes=("a", "b"),
        channels=3,
        image_size=(40, 50),
        options={"width": 0.1},
        background="black",
        **NORMAL,
    )
    save(metadata, file)
    classifier = zerokara.load_classifier(file, threads=1)
    transparent = np.concatenate([drawing(), drawing()[..., :1]], axis=2)
    black = read(transparent, "black")
    assert classifier.predict(transparent) == classifier.predict(black)
    assert classifier.predict(transparent) != classifier.predict(read(transparent, "white"))


def test_a_segmenter(tmp_path: Path) -> None:
    metadata = SegmenterMetadata(
        network="fcn4s", backbone="resnet20", classes=("road", "sky"), channels=3, image_size=(32, 32),
        background="black", **NORMAL,
    )  # fmt: skip
    network = save(metadata, tmp_path / "model.safetensors")
    segmenter = zerokara.load_segmenter(tmp_path, threads=1)
    assert segmenter.background == "black"
    mask = segmenter.predict(drawing())
    assert (segmenter.classes, mask.shape, mask.dtype.name) == (("road", "sky"), (40, 50), "uint8")
    np.testing.assert_array_equal(mask, segment_image(network, metadata, CPU, drawing()))
    assert [each.shape for each in segmenter.predict_batch([drawing(), drawing(20, 30)])] == [(40, 50), (20, 30)]


def test_a_detector(tmp_path: Path) -> None:
    metadata = DetectorMetadata(
        method="fast-rcnn", backbone="resnet20", classes=("disc", "square"), image_side=96, stride=4, bins=3, units=16,
        dropout=0.5, crop_side=32, crop_context=2, proposals=50, search=SearchSettings(colours=("rgb",)),
        background="black", **NORMAL,
    )  # fmt: skip
    network = save(metadata, tmp_path / "model.safetensors")
    detector = zerokara.load_detector(str(tmp_path), confidence=0.1, threads=1)
    assert detector.background == "black"
    found = detector.predict(drawing())
    expected = detect_in_picture(network, drawing(), CPU, 0.1).found
    assert len(found) == len(expected.scores) > 0
    assert [each.confidence for each in found] == expected.scores.tolist()
    assert [list(each.box) for each in found] == expected.boxes.tolist()
    assert {each.name for each in found} <= {"disc", "square"}
    assert zerokara.load_detector(tmp_path, confidence=1.0, threads=1).predict(drawing()) == []


def test_a_captioner(tmp_path: Path) -> None:
    words = ("<pad>", "<start>", "<end>", "<unknown>", "red", "blue", "house")
    metadata = CaptionerMetadata(
        backbone="resnet20", words=words, image_size=32, embedding=3, hidden=4, dropout=0.0, longest=4,
        background="black", **NORMAL,
    )  # fmt: skip
    network = save(metadata, tmp_path / "model.safetensors")
    image = drawing(32, 32)
    features = extract_features(network, CPU, torch.from_numpy(image).permute(2, 0, 1)[None])
    captioner = zerokara.load_captioner(tmp_path / "model.safetensors", threads=1)
    assert captioner.background == "black"
    assert captioner.predict(image) == generate_captions(network, features)[0]
    assert len(captioner.predict_batch([image, drawing(50, 70, 1)])) == 2


def sampler(*names: str) -> Sampler:
    config = Config(conditional=bool(names), generator_width=0.05, latent_dim=4)
    torch.manual_seed(0)
    network = make_generator(config, (3, 28, 28), len(names)).eval()
    return Sampler(network, config, (3, 28, 28), names, CPU, update=7)


def test_a_generator() -> None:
    generator = sampler()
    images = generator.sample(5, seed=2)
    assert (images.shape, images.dtype.name) == ((5, 28, 28, 3), "uint8")
    expected_NCHW = generator.generate(generator.latents(5, 2))
    np.testing.assert_array_equal(images, expected_NCHW.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(generator.sample(3, seed=2), images[:3])
    assert not np.array_equal(generator.sample(5), images)
    with pytest.raises(UserError, match="trained without classes: remove labels"):
        generator.sample(2, labels=1)


def test_a_class_conditional_generator() -> None:
    generator = sampler("cat", "dog", "cow")
    cats = generator.sample(4, labels="cat")
    np.testing.assert_array_equal(cats, generator.sample(4, labels=0))
    np.testing.assert_array_equal(generator.sample(4), generator.sample(4, labels=[0, 1, 2, 0]))
    np.testing.assert_array_equal(generator.sample(4)[0], cats[0])
    mixed = generator.sample(2, labels=["cow", 0])
    np.testing.assert_array_equal(mixed[0], generator.sample(1, labels="cow")[0])
    for labels, message in (
        ("dgo", r"There is no class 'dgo' \(did you mean dog\?\): give a number from 0 to 2, or a name from cat, dog"),
        (3, "There is no class 3"),
        ([0, 1], "4 images need 4 labels, got 2"),
    ):
        with pytest.raises(UserError, match=message):
            generator.sample(4, labels=labels)


def test_a_generator_of_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no"):
        zerokara.load_generator(tmp_path / "gan")
