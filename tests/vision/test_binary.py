"""Tests of vision.binary: hand-computed values, packed files, resuming, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.programs import metrics, run_processes
from tests.tensorboard_pages import hparams_metrics
from zerokara.core import data
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.vision import binary
from zerokara.vision.binarization.config import PRESETS, Config
from zerokara.vision.binarization.network import (
    BinaryCnn,
    BinaryMetadata,
    BinaryMlp,
    BinaryNetwork,
    write_packed,
)
from zerokara.vision.binarization.pictures import network_table, sign_inputs
from zerokara.vision.binary import Training, squared_hinge
from zerokara.vision.classification.learner import Data
from zerokara.vision.classification.scoring import Scores

CLASSES = ("a", "b", "c")
MLP = BinaryMetadata(network="mlp", units=5, layers=1, width=1.0, classes=CLASSES, channels=1, image_size=(2, 3))
CNN = BinaryMetadata(network="cnn", units=16, layers=1, width=0.05, classes=CLASSES, channels=3, image_size=(8, 16))
SMALL = ["--hidden-units", "16", "--batch-size", "10", "--validation-images", "20", "--device", "cpu", "--threads", "1"]
SHORT = [*SMALL, "--epochs", "2", "--precision", "float32", "--quiet"]


pytestmark = pytest.mark.usefixtures("few_glyphs")


def trained(metadata: BinaryMetadata) -> BinaryNetwork:
    """Return a network whose BatchNorm statistics and normalization differ from their initial values."""
    network = metadata.build()
    network.mean_C.fill_(0.2)
    network.std_C.fill_(0.5)
    network(torch.rand(8, metadata.channels, *metadata.image_size))
    return network.eval()


def test_squared_hinge_against_hand_computed_values() -> None:
    """Targets 1, -1, -1: (1 - 0.5)^2 + (1 + 2)^2 + 0; targets -1, 1, -1: 0 + 0 + 1."""
    logits = torch.tensor([[0.5, 2.0, -1.5], [-1.0, 3.0, 0.0]])
    assert float(squared_hinge(logits, torch.tensor([0, 1]))) == pytest.approx((0.25 + 9 + 1) / 2)


def test_forward_pass_uses_signs_of_weights_and_activations() -> None:
    """Two pixels are normalized to 1 and -2. BatchNorm with initial statistics is the identity, except for eps."""
    network = BinaryMlp((1, 1, 2), units=2, layers=1, classes=2).eval()
    network.mean_C.fill_(0.5)
    network.std_C.fill_(0.25)
    first, second = network.binary_layers().values()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[0.1, 0.3], [-0.2, 0.0]]))  # 1 - 2 = -1, and -1 - 2 = -3
        second.weight.copy_(torch.tensor([[0.7, 0.1], [-0.01, 1.0]]))  # of -1 and -1: -2 and 0
    logits = network(torch.tensor([[[[0.75, 0.0]]]]))
    assert logits[0].tolist() == pytest.approx([-2, 0], abs=1e-4)
    inputs = sign_inputs(network, torch.tensor([[[[0.75, 0.0]]]]))
    assert inputs["linears.1"].tolist() == pytest.approx([-1, -3], abs=1e-4)
    assert list(inputs) == ["linears.1"]


def test_packed_size_against_hand_computed_values(tmp_path: Path) -> None:
    """6 x 5 weights take 4 bytes, 5 x 3 weights take 2 bytes; as float32 they take 180 bytes."""
    sizes = write_packed(tmp_path / "packed.safetensors", MLP.build(), MLP)
    assert (sizes.float_bytes, sizes.packed_bytes, sizes.ratio) == (180, 6, 30)
    assert sizes.file_bytes == (tmp_path / "packed.safetensors").stat().st_size
    with safe_open(tmp_path / "packed.safetensors", "pt") as file:
        assert file.get_slice("linears.0.weight").get_shape() == [4]
        assert file.get_slice("linears.0.weight").get_dtype() == "U8"


def test_packed_weights_of_the_default_network_are_32_times_smaller(tmp_path: Path) -> None:
    """784 x 1024 + 2 x 1024 x 1024 + 1024 x 10 weights: 11,640,832 bytes are packed into 363,776."""
    metadata = BinaryMetadata(
        network="mlp", units=1024, layers=3, width=1.0, classes=tuple("0123456789"), channels=1, image_size=(28, 28)
    )
    sizes = write_packed(tmp_path / "packed.safetensors", metadata.build(), metadata)
    assert (sizes.float_bytes, sizes.packed_bytes, sizes.ratio) == (11_640_832, 363_776, 32)


@pytest.mark.parametrize("metadata", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_network_that_is_read_back_predicts_the_same_bit_for_bit(metadata: BinaryMetadata, tmp_path: Path) -> None:
    network = trained(metadata)
    write_packed(tmp_path / "packed.safetensors", network, metadata)
    again, read = BinaryMetadata.load(tmp_path / "packed.safetensors")
    assert read == metadata
    assert not again.training
    x = torch.rand(16, metadata.channels, *metadata.image_size)
    assert torch.equal(again(x), network(x))
    assert not torch.equal(trained(metadata)(x), network(x))  # another network predicts something else


def test_convolutional_network_of_the_paper() -> None:
    """Six 3x3 convolutions and three linear layers. For CIFAR-10 the first of these has 512 x 4 x 4 inputs."""
    network = BinaryCnn((3, 32, 32), width=1.0, units=1024, classes=10)
    shapes = [tuple(layer.weight.shape) for layer in network.binary_layers().values()]
    convs = [(128, 3, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3), (512, 512, 3, 3)]
    assert shapes == [*convs, (1024, 8192), (1024, 1024), (10, 1024)]
    assert [layer.binary_input for layer in network.binary_layers().values()] == [False] + [True] * 8
    with pytest.raises(UserError, match="Images of 7x9 pixels are too small for the three pooling layers"):
        BinaryCnn((1, 7, 9), 1.0, 16, 10)


def test_table_of_layers_and_straight_through_estimators() -> None:
    lines = network_table(MLP.build()).splitlines()
    assert "linears.0: 6 -> 5; 30 weights in 4 bytes" in lines[1]
    assert "straight-through estimator, gradients pass where |x| <= 1" in lines[2]
    assert sum("straight-through" in line for line in lines) == 1  # not before the first layer, whose inputs are pixels


def test_an_update_moves_latent_weights_and_clips_them() -> None:
    config = Config(hidden_units=8, num_hidden_layers=2, batch_size=20, validation_images=20, learning_rate=0.9)
    training = Training(config, Data.load(config.for_data()), Compute(), World())
    before = [layer.weight.detach().clone() for layer in training.network.binary_layers().values()]
    for _ in range(3):
        training.update(training.epoch_order()[:20])
    after = [layer.weight.detach() for layer in training.network.binary_layers().values()]
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert max(float(weight.abs().max()) for weight in after) == 1  # three steps of 0.9 exceed 1 without clipping


def test_cosine_schedule() -> None:
    config = Config(hidden_units=8, batch_size=25, validation_images=20, epochs=2, learning_rate=0.4)
    training = Training(config, Data.load(config.for_data()), Compute(), World())
    assert (training.updates_per_epoch, training.total_updates) == (4, 8)
    assert training.learning_rate == 0.4
    training.updates = 4
    assert training.learning_rate == pytest.approx(0.2)


@pytest.mark.usefixtures("blank_figures")
def test_a_killed_run_is_resumed_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    often = [*SHORT, "--checkpoint-every-updates", "3", "--log-every-updates", "2"]
    binary.main([*often, "--name", "whole"])
    update = Training.update

    def update_or_exit(self: Training, index_B: torch.Tensor) -> None:
        if self.updates == 17:  # of 20; the last checkpoint is at 15
            raise SystemExit
        update(self, index_B)

    with monkeypatch.context() as context:
        context.setattr(Training, "update", update_or_exit)
        with pytest.raises(SystemExit):
            binary.main([*often, "--name", "killed"])
    binary.main(["--name", "killed", "--resume", "--quiet"])
    weights = []
    for name in ("whole", "killed"):
        with safe_open(f"runs/{name}/packed.safetensors", "pt") as file:
            weights.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118  (not a dict)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert metrics(Path("runs/killed")) == metrics(Path("runs/whole"))


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    binary.main([*SMALL, "--epochs", "1", "--precision", "float32", "--name", "b"])
    printed = capsys.readouterr().out
    assert "straight-through" in printed
    assert "read back with identical predictions" in printed
    result = json.loads(Path("runs/b/result.json").read_text())
    assert set(result["figures"]) == {"validation_error", "test_error"}
    assert result["protocol"]["train_images"] == 100
    for name in ("straight_through.png", "filters.png"):
        with Image.open(f"runs/b/{name}") as picture:
            assert picture.width > 500
    network, metadata = BinaryMetadata.load(Path("runs/b/packed.safetensors"))
    assert metadata.figures == result["figures"]
    board = EventAccumulator("runs/b", size_guidance={"histograms": 0})
    board.Reload()
    assert set(board.Tags()["histograms"]) == {f"weights/latent/{name}" for name in network.binary_layers()}
    expected = {f"final/{name}": value for name, value in result["figures"].items()}
    assert hparams_metrics(Path("runs"))["b"] == pytest.approx(expected)


@pytest.mark.usefixtures("blank_figures")
def test_the_test_set_is_read_once_and_only_with_test(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []
    load = data.load

    def recording_load(name: str, split: data.Split, **options: object) -> data.ImageSet:
        splits.append(split)
        return load(name, split, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "load", recording_load)
    scored: list[int] = []
    score = Training.score_in_processes

    def recording_score(self: Training, run: Run, images: data.ImageSet) -> Scores:
        scored.append(len(images))
        return score(self, run, images)

    monkeypatch.setattr(Training, "score_in_processes", recording_score)
    binary.main([*SHORT, "--no-test", "--name", "chosen"])
    assert splits == ["train"]
    binary.main([*SHORT, "--name", "tested"])
    assert (splits, scored) == (["train", "train", "test"], [20, 20, 20, 20, 120])
    before = json.loads(Path("runs/tested/result.json").read_text())["figures"]
    binary.main(["--name", "tested", "--resume", "--quiet"])
    assert len(scored) == 5  # nothing was evaluated again
    assert json.loads(Path("runs/tested/result.json").read_text())["figures"] == before


def test_convolutional_preset_from_the_command_line() -> None:
    binary.main([*SHORT, "--preset", "cnn", "--width-multiplier", "0.05", "--epochs", "1", "--name", "c"])
    assert BinaryMetadata.load(Path("runs/c/packed.safetensors"))[1].network == "cnn"
    assert PRESETS["cnn"]["flip"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "There is no .*: give the folder of a run"), (b"no tensors", "cannot be read as safetensors")],
)
def test_a_missing_or_damaged_file_is_rejected(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        BinaryMetadata.load(path)


def test_weights_that_do_not_fit_their_metadata_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    write_packed(path, MLP.build(), CNN)
    with pytest.raises(UserError, match="do not fit the network of its metadata"):
        BinaryMetadata.load(path)


def test_divergence_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binary.LOSSES, "cross_entropy", lambda logits, _: logits.sum() * float("nan"))
    with pytest.raises(UserError, match=r"diverged at update 10: .*NaN or Inf.* lower --learning-rate"):
        binary.main([*SHORT, "--name", "nan"])


@pytest.mark.usefixtures("blank_figures")
def test_a_loss_of_ones_own_gives_the_numbers_of_the_same_built_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_loss.py").write_text(
        "from torch import nn\n\n"
        "class CrossEntropy(nn.Module):\n"
        "    def forward(self, logits, labels):\n"
        "        return nn.functional.cross_entropy(logits, labels)\n"
    )
    for name, loss in (("own", "my_loss.py:CrossEntropy"), ("built-in", "cross_entropy")):
        binary.main([*SHORT, "--no-test", "--name", name, "--loss", loss])
    own, built_in = ([line.get("val/loss") for line in metrics(Path("runs") / n)] for n in ("own", "built-in"))
    assert own == built_in
    assert json.loads(Path("runs/own/config.json").read_text())["config"]["loss"] == "my_loss.py:CrossEntropy"


@pytest.mark.usefixtures("blank_figures")
def test_two_processes_train_and_evaluate_together(tmp_path: Path) -> None:
    program = """
from zerokara.core.config import run_main
from zerokara.core.data import glyphs
from zerokara.vision import binary
glyphs.NUMBER = {"train": 300, "test": 60}
run_main(binary.main)
"""
    run_processes(tmp_path, 2, "-c", program, *SHORT, "--threads", "1", "--name", "two")
    result = json.loads((tmp_path / "runs" / "two" / "result.json").read_text())
    assert 0 <= result["figures"]["test_error"] <= 1
    assert BinaryMetadata.load(tmp_path / "runs" / "two" / "packed.safetensors")[1].figures == result["figures"]
