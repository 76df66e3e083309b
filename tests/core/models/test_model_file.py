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
from zerokara.core.models.classifier import Classifier, ClassifierMetadata

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
    METADATA.save(tmp_path / "model.safetensors", classifier.state_dict())
    return tmp_path / "model.safetensors"


def test_save_and_load_is_bit_exact(file: Path, classifier: Classifier) -> None:
    loaded, metadata = ClassifierMetadata.load(file)
    assert metadata == METADATA
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == classifier.state_dict().keys()
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype
    x = torch.rand(2, 3, 32, 24)
    assert torch.equal(loaded(x), classifier.eval()(x))


def test_the_same_weights_give_the_same_file(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    metadata, _ = ClassifierMetadata.read(file)
    for i in range(8):
        metadata.save(tmp_path / f"{i}.safetensors", classifier.state_dict())
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1


def test_channels_last_weights_are_saved_correctly(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    last = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    METADATA.save(tmp_path / "last.safetensors", last.state_dict())
    actual, expected = ClassifierMetadata.load(tmp_path / "last.safetensors")[0], ClassifierMetadata.load(file)[0]
    for parameter, expected_parameter in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, expected_parameter)


def test_float16_halves_the_size(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    METADATA.save(path, classifier.state_dict(), half=True)
    numbers = sum(t.numel() for t in classifier.state_dict().values() if t.is_floating_point())
    assert file.stat().st_size - path.stat().st_size == pytest.approx(2 * numbers, abs=64)  # the header is padded
    loaded, metadata = ClassifierMetadata.load(path)
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
    assert metadata["format"] == ClassifierMetadata.FORMAT
    metadata = json.loads(metadata["card"])
    assert metadata["classes"] == ["cat", "dog", "naïve 犬"]
    assert metadata["command"] == "python -m vision.classify --data 'my pets'"


def test_files_of_older_releases_get_the_defaults_of_new_fields(file: Path, classifier: Classifier) -> None:
    fields = dataclasses.asdict(METADATA)
    for name in ("figures", "dropout", "data"):
        del fields[name]
    header = {"format": ClassifierMetadata.FORMAT, "card": json.dumps(fields)}
    save_file({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, file, header)
    loaded, metadata = ClassifierMetadata.load(file)
    assert metadata == dataclasses.replace(METADATA, figures={}, dropout=None, data="")
    assert torch.equal(loaded.state_dict()["head.fc.bias"], classifier.state_dict()["head.fc.bias"])


def test_metadata_is_read_alone_and_from_a_folder(file: Path, tmp_path: Path) -> None:
    assert ClassifierMetadata.read_metadata(file) == ClassifierMetadata.read_metadata(tmp_path) == METADATA
    assert ClassifierMetadata.load(tmp_path)[1] == METADATA
    (tmp_path / "damaged.safetensors").write_bytes(file.read_bytes()[:100])
    assert ClassifierMetadata.read_metadata(tmp_path / "damaged.safetensors") is None
    assert ClassifierMetadata.read_metadata(tmp_path / "missing.pt") is None


def test_normalize_by_hand() -> None:
    x = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    expected = torch.tensor([0.5, -1.0, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(METADATA.normalize(x), expected)
    assert METADATA.normalize(x.bfloat16()).dtype is torch.bfloat16
    pixels = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert METADATA.normalize_uint8(pixels).flatten().tolist() == pytest.approx([-0.1, -0.4, 7.0])
    assert torch.equal(METADATA.to_uint8(METADATA.normalize_uint8(pixels)), pixels)
    assert METADATA.to_uint8(torch.tensor([-9.0, 9.0, 0.0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 255, 32]


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
        ClassifierMetadata.load(file)


def test_other_files_raise_an_error(file: Path, classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no .*nothing\.safetensors"):
        ClassifierMetadata.load(tmp_path / "nothing.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no model\.safetensors yet: .* vision\.classify"):
        ClassifierMetadata.load(tmp_path / "empty")
    (tmp_path / "torch.safetensors").write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        ClassifierMetadata.load(tmp_path / "torch.safetensors")
    weights = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    for metadata in (None, {"format": "pt"}, {"format": "zerokara-classifier-0"}):
        save_file(weights, file, metadata)
        with pytest.raises(UserError, match=r"is not a classifier of this version .*--weights"):
            ClassifierMetadata.load(file)
    save_file(weights, file, {"format": "[" * 200_000})
    with pytest.raises(UserError, match="its format is ") as error:
        ClassifierMetadata.load(file)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("metadata", [None, "{", "[]", '{"backbone": "resnet8"}', "unknown"])
def test_invalid_metadata_raises_an_error(metadata: str | None, file: Path, classifier: Classifier) -> None:
    if metadata == "unknown":
        metadata = json.dumps({**dataclasses.asdict(METADATA), "unknown": 1})
    header = {"format": ClassifierMetadata.FORMAT} | ({} if metadata is None else {"card": metadata})
    save_file({name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}, file, header)
    with pytest.raises(UserError, match=r"The metadata of .*model\.safetensors is invalid"):
        ClassifierMetadata.load(file)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("mean", "junk", "its mean is 'junk', and not several of a number"),
        ("head", "junk", "its head is 'junk', and not one of paper, pooled"),
        ("options", "junk", "its options is 'junk', and not a mapping"),
        ("image_size", [32], r"its image_size is \(32,\)"),
        ("std", [0.5, 0, 0.125], ".*std greater than 0"),
        ("mean", [0.5, 0.5], ".*one for each channel"),
        ("mean", [float("nan")] * 3, ".*not finite numbers"),
    ],
)
def test_a_field_of_the_metadata_with_another_type_or_value_is_named(
    field: str, value: object, said: str, file: Path, classifier: Classifier
) -> None:
    fields = {**dataclasses.asdict(METADATA), field: value}
    model_file.write(file, classifier.state_dict(), fields, ClassifierMetadata.FORMAT)
    for read in (ClassifierMetadata.load, ClassifierMetadata.read_metadata):
        with pytest.raises(UserError, match=rf"The metadata of .*model\.safetensors is invalid \({said}"):
            read(file)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nonfinite_weights_raise_an_error(value: float, file: Path, classifier: Classifier) -> None:
    name = list(classifier.state_dict())[-1]
    weights = {**classifier.state_dict(), name: torch.full_like(classifier.state_dict()[name], value)}
    METADATA.save(file, weights)
    message = rf"model\.safetensors has non-finite weights \(NaN or Inf\) in {name}:"
    with pytest.raises(UserError, match=message):
        ClassifierMetadata.load(file)
    with pytest.raises(UserError, match=message):  # as pretrained weights
        METADATA.build().load_published(file)


def test_weights_of_another_network_raise_an_error(file: Path, classifier: Classifier) -> None:
    dataclasses.replace(METADATA, options={"width": 0.5}).save(file, classifier.state_dict())
    with pytest.raises(UserError, match=r"do not fit the network of its metadata.*create the file again") as error:
        ClassifierMetadata.load(file)
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
        dataclasses.replace(METADATA, data="other").save(file, classifier.state_dict())
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_fingerprint_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, lambda file: file.write(b"zerokara"))
    assert model_file.fingerprint(path) == hashlib.sha256(b"zerokara").hexdigest()[:16]
