"""Trained classifiers as files: read back to the bit, half the size as float16, and never what they are not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from zerokara.core.backbones.heads import PooledHead
from zerokara.core.checkpoint import write_atomically
from zerokara.core.config import UserError
from zerokara.core.models import model_file
from zerokara.core.models.classifier import Classifier
from zerokara.core.models.model_file import FORMAT, ClassifierMetadata

CARD = ClassifierMetadata(
    backbone="resnet8",
    head="pooled",
    classes=("cat", "dog", "naïve 犬"),
    channels=3,
    image_size=(32, 24),
    mean=(0.25, 0.5, 0.125),
    std=(0.5, 0.25, 0.125),
    options={"width": 0.25},
    dropout=0.5,
    data="pets, drawn by hand",
    command="python -m vision.classify --data 'my pets'",
    figures={"test_error": 0.125},
)


@pytest.fixture
def classifier() -> Classifier:
    """With statistics and a counter of batches that are not those of a fresh one."""
    network = CARD.build()
    network(torch.rand(4, 3, 32, 24))
    return network


@pytest.fixture
def file(classifier: Classifier, tmp_path: Path) -> Path:
    model_file.save(tmp_path / "model.safetensors", classifier.state_dict(), CARD)
    return tmp_path / "model.safetensors"


def test_a_network_comes_back_to_the_bit(file: Path, classifier: Classifier) -> None:
    back, metadata = model_file.load(file)
    assert metadata == CARD
    assert not back.training
    state = back.state_dict()
    assert state.keys() == classifier.state_dict().keys()
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype
    x = torch.rand(2, 3, 32, 24)
    assert torch.equal(back(x), classifier.eval()(x))


def test_the_layout_in_memory_does_not_matter(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    last = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model_file.save(tmp_path / "last.safetensors", last.state_dict(), CARD)
    found, expected = model_file.load(tmp_path / "last.safetensors")[0], model_file.load(file)[0]
    for mine, its in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_half_the_size(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    model_file.save(path, classifier.state_dict(), CARD, half=True)
    numbers = sum(t.numel() for t in classifier.state_dict().values() if t.is_floating_point())
    assert file.stat().st_size - path.stat().st_size == pytest.approx(2 * numbers, abs=64)  # the header is padded
    back, metadata = model_file.load(path)
    assert metadata == CARD
    for name, tensor in classifier.state_dict().items():
        found = back.state_dict()[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor.half().float() if tensor.is_floating_point() else tensor)


def test_what_others_see(file: Path) -> None:
    """The library's own reader, without ours: names as in the state dict, and the card as JSON."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        assert "backbone.conv1.weight" in opened.keys()  # noqa: SIM118  (it is no dict)
    assert metadata["format"] == FORMAT
    metadata = json.loads(metadata["card"])
    assert metadata["classes"] == ["cat", "dog", "naïve 犬"]
    assert metadata["command"] == "python -m vision.classify --data 'my pets'"


def test_normalisation_by_hand() -> None:
    x = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    expected = torch.tensor([0.5, -1.0, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(CARD.normalize(x), expected)
    assert CARD.normalize(x.bfloat16()).dtype is torch.bfloat16


def test_a_card_builds_what_it_says() -> None:
    classifier = CARD.build()
    assert classifier(torch.rand(2, 3, 32, 24)).shape == (2, 3)
    assert classifier.backbone.out_channels == 16
    assert isinstance(classifier.head, PooledHead)
    assert classifier.head.dropout == 0.5
    assert dataclasses.replace(CARD, options={}).build().backbone.out_channels == 64


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(part: float, file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as safetensors .* damaged"):
        model_file.load(file)


def test_foreign_files_are_refused(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no .*nothing\.safetensors"):
        model_file.load(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="There is no"):
        model_file.load(tmp_path)
    (tmp_path / "torch.safetensors").write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        model_file.load(tmp_path / "torch.safetensors")
    weights = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    for metadata in (None, {"format": "pt"}, {"format": "zerokara-classifier-0"}):
        save_file(weights, file, metadata)
        with pytest.raises(UserError, match=r"is not a classifier of this version .*--weights"):
            model_file.load(file)


@pytest.mark.parametrize("metadata", [None, "{", "[]", '{"backbone": "resnet8"}', "surplus"])
def test_a_card_that_makes_no_sense_is_named(metadata: str | None, file: Path, classifier: Classifier) -> None:
    if metadata == "surplus":
        metadata = json.dumps({**dataclasses.asdict(CARD), "surplus": 1})
    header = {"format": FORMAT} if metadata is None else {"format": FORMAT, "card": metadata}
    save_file({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, file, header)
    with pytest.raises(UserError, match=r"The card of .*model\.safetensors"):
        model_file.load(file)


def test_weights_of_another_network_are_refused(file: Path, classifier: Classifier) -> None:
    model_file.save(file, classifier.state_dict(), dataclasses.replace(CARD, options={"width": 0.5}))
    with pytest.raises(UserError, match=r"do not fit the network on its card.*make it again") as mistake:
        model_file.load(file)
    assert "\n" not in str(mistake.value)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """A real limit on the size of this process's files, so not for longer than a write: pytest writes a log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    before = file.read_bytes()
    sentence = r"model\.safetensors could not be written \(the disk is full\)"
    with full_disk(), pytest.raises(UserError, match=sentence):
        model_file.save(file, classifier.state_dict(), dataclasses.replace(CARD, data="other"))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_fingerprint_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, lambda file: file.write(b"zerokara"))
    assert model_file.fingerprint(path) == hashlib.sha256(b"zerokara").hexdigest()[:16]
