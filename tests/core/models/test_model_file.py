"""Tests of model files: exact round trip, float16, metadata, and errors for damaged or other files."""

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

METADATA = ClassifierMetadata(
    backbone="resnet8",
    head="pooled",
    classes=("cat", "dog", "naïve 犬"),
    channels=3,
    image_size=(32, 24),
    mean=(0.25, 0.5, 0.125),
    std=(0.5, 0.25, 0.125),
    options={"width": 0.25},
    dropout=0.5,
    data="pets, hand-drawn",
    command="python -m vision.classify --data 'my pets'",
    figures={"test_error": 0.125},
)


@pytest.fixture
def classifier() -> Classifier:
    """Return a classifier whose BatchNorm statistics and batch counter differ from their initial values."""
    network = METADATA.build()
    network(torch.rand(4, 3, 32, 24))
    return network


@pytest.fixture
def file(classifier: Classifier, tmp_path: Path) -> Path:
    model_file.save(tmp_path / "model.safetensors", classifier.state_dict(), METADATA)
    return tmp_path / "model.safetensors"


def test_save_and_load_is_bit_exact(file: Path, classifier: Classifier) -> None:
    loaded, metadata = model_file.load(file)
    assert metadata == METADATA
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == classifier.state_dict().keys()
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype
    x = torch.rand(2, 3, 32, 24)
    assert torch.equal(loaded(x), classifier.eval()(x))


def test_channels_last_weights_are_saved_correctly(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    last = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model_file.save(tmp_path / "last.safetensors", last.state_dict(), METADATA)
    actual, expected = model_file.load(tmp_path / "last.safetensors")[0], model_file.load(file)[0]
    for parameter, expected_parameter in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, expected_parameter)


def test_float16_halves_the_size(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    model_file.save(path, classifier.state_dict(), METADATA, half=True)
    numbers = sum(t.numel() for t in classifier.state_dict().values() if t.is_floating_point())
    assert file.stat().st_size - path.stat().st_size == pytest.approx(2 * numbers, abs=64)  # the header is padded
    loaded, metadata = model_file.load(path)
    assert metadata == METADATA
    for name, tensor in classifier.state_dict().items():
        actual = loaded.state_dict()[name]
        assert actual.dtype == tensor.dtype
        assert torch.equal(actual, tensor.half().float() if tensor.is_floating_point() else tensor)


def test_file_is_readable_with_safetensors(file: Path) -> None:
    """Read the file with the safetensors library: names as in the state dict, and the metadata as JSON."""
    with safe_open(file, "pt") as reader:
        metadata = reader.metadata()
        assert "backbone.conv1.weight" in reader.keys()  # noqa: SIM118  (not a dict)
    assert metadata["format"] == FORMAT
    metadata = json.loads(metadata["card"])
    assert metadata["classes"] == ["cat", "dog", "naïve 犬"]
    assert metadata["command"] == "python -m vision.classify --data 'my pets'"


def test_normalize_by_hand() -> None:
    x = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    expected = torch.tensor([0.5, -1.0, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(METADATA.normalize(x), expected)
    assert METADATA.normalize(x.bfloat16()).dtype is torch.bfloat16


def test_metadata_builds_the_network() -> None:
    classifier = METADATA.build()
    assert classifier(torch.rand(2, 3, 32, 24)).shape == (2, 3)
    assert classifier.backbone.out_channels == 16
    assert isinstance(classifier.head, PooledHead)
    assert classifier.head.dropout == 0.5
    assert dataclasses.replace(METADATA, options={}).build().backbone.out_channels == 64


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_raises_an_error(fraction: float, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as safetensors .* damaged"):
        model_file.load(file)


def test_other_files_raise_an_error(file: Path, classifier: Classifier, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("metadata", [None, "{", "[]", '{"backbone": "resnet8"}', "unknown"])
def test_invalid_metadata_raises_an_error(metadata: str | None, file: Path, classifier: Classifier) -> None:
    if metadata == "unknown":
        metadata = json.dumps({**dataclasses.asdict(METADATA), "unknown": 1})
    header = {"format": FORMAT} if metadata is None else {"format": FORMAT, "card": metadata}
    save_file({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, file, header)
    with pytest.raises(UserError, match=r"The metadata of .*model\.safetensors is invalid"):
        model_file.load(file)


def test_weights_of_another_network_raise_an_error(file: Path, classifier: Classifier) -> None:
    model_file.save(file, classifier.state_dict(), dataclasses.replace(METADATA, options={"width": 0.5}))
    with pytest.raises(UserError, match=r"do not fit the network of its metadata.*create the file again") as error:
        model_file.load(file)
    assert "\n" not in str(error.value)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Limit the size of files that this process can write. Use it for one write only, because pytest writes a log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_old_file_unchanged(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    before = file.read_bytes()
    message = r"model\.safetensors could not be written \(the disk is full\)"
    with full_disk(), pytest.raises(UserError, match=message):
        model_file.save(file, classifier.state_dict(), dataclasses.replace(METADATA, data="other"))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_fingerprint_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, lambda file: file.write(b"zerokara"))
    assert model_file.fingerprint(path) == hashlib.sha256(b"zerokara").hexdigest()[:16]
