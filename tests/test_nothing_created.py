"""A mistake that can be found before a run starts leaves no folder behind, and no time is spent on measurements."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from zerokara.core.compute import Compute
from zerokara.core.config import UserError

CASES = [
    ("agents.dqn", "--env ALE/Pnog-v5", "did you mean ALE/Pong-v5"),
    ("agents.dqn", "--env CartPole-v1 --repeat-action-probability .1", "setting of Atari games only"),
    ("agents.dqn", "--env zerokara/Catch-v0 --image-size 32", "always 84 and cannot be 32"),
    ("agents.dqn", "--env zerokara/Catch-v0 --max-episode-frames 1000000", "cannot be 1000000"),
    ("agents.dqn", "--max-episode-frames 3", "at least frame_skip"),
    ("agents.dqn", "--env CartPole-v1 --obs-range 0 0", "two increasing numbers"),
    ("agents.dqn", "--env CartPole-v1 --env-kwargs sutton", "write name=value"),
    ("agents.dqn", "--env my_env.py:MyEnv", "There is no file my_env.py"),
    ("agents.dqn", "--env zerokara/Catch-v0 --backbone natur", "it must be one of nature, nips, der"),
    ("agents.dqn", "--env zerokara/Catch-v0 --backbone my_net.py:MyNet", "There is no file my_net.py"),
    ("agents.dqn", "--image-size 20 --backbone nature", "Images of 20x20 pixels are too small"),
    ("agents.dqn", "--env zerokara/Catch-v0 --backbone torch.nn:Linear --width-multiplier 2", "no option --width"),
    (
        "agents.dqn",
        "--env zerokara/Catch-v0 --backbone torch.nn:Linear",
        r"Linear failed on 2 images|cannot be created",
    ),
    ("agents.dqn", "--env zerokara/Catch-v0 --pretrained-backbone nope.pth", "There is no nope.pth"),
    ("agents.pqn", "--env zerokara/Catch-v0 --backbone math:prod", "math:prod.* cannot be created"),
    ("agents.pqn", "--env ALE/Pnog-v5", "did you mean ALE/Pong-v5"),
    ("agents.pqn", "--env zerokara/Snake-v0 --image-size 32", "always 84 and cannot be 32"),
    ("generative.dcgan", "--data mnits", "mnits"),
    ("generative.dcgan", "--pretrained-backbone nope.pth", "There is no nope.pth"),
    ("generative.dcgan", "--backbone natur", "no backbone .natur."),
    ("generative.dcgan", "--backbone my_net.py:MyNet", "There is no file my_net.py"),
    ("generative.dcgan", "--loss my_loss.py:MyLoss", "There is no file my_loss.py"),
    ("generative.dcgan", "--loss torch.nn:MSELoss", "MSELoss has no method discriminator"),
    ("generative.dcgan", "--loss hing", "it must be one of bce"),
    ("generative.dcgan", "--r1 1", "BatchNorm mixes the images"),
    ("generative.dcgan", "--eval-images 50", "--eval-images must be at least 100, or 0"),
    ("generative.dcgan", "--backbone airbench", "would be random and frozen"),
    ("generative.fast_style", "--style none.png", "none.png"),
    ("generative.style_transfer", "none.png other.png", "none.png"),
    ("vision.classify", "--data mnits", "mnits"),
    ("vision.classify", "--backbone resnet999", "resnet999"),
    ("vision.classify", "--backbone my_net.py:MyNet", "There is no file my_net.py"),
    ("vision.classify", "--backbone torch.nn:Tanh", "Tanh.* cannot be created"),
    ("vision.classify", "--batch-size 1 --backbone resnet18", "BatchNorm one value per channel"),
    ("vision.classify", "--batch-size 8 --accumulation-steps 8 --backbone resnet18", "BatchNorm one value per channel"),
    ("vision.binary", "--batch-size 1", "BatchNorm one value per channel"),
    ("vision.binary", "--data mnits", "mnits"),
    ("vision.binary", "--loss my_loss.py:focal", "There is no file my_loss.py"),
    ("vision.binary", "--loss torch.nn.functional:one_hot", "one_hot failed on tensors"),
    ("vision.segment", "--data camvit", "camvit"),
    ("vision.detect", "--data bcdc", "bcdc"),
    ("vision.caption", "--data flickr9k", "flickr9k"),
]


@pytest.mark.parametrize(("module", "words", "message"), CASES, ids=[f"{module} {words}" for module, words, _ in CASES])
def test_a_mistake_creates_nothing(
    module: str, words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZEROKARA_DATA", str(tmp_path))
    monkeypatch.setattr(Compute, "choose", lambda **options: pytest.fail("the hardware was measured"))
    with pytest.raises(UserError, match=message) as error:
        importlib.import_module(f"zerokara.{module}").main(words.split())
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


TRAINING = (
    *("agents.dqn", "agents.pqn", "agents.stream", "generative.dcgan", "generative.style_transfer"),
    *("generative.fast_style", "vision.classify", "vision.binary", "vision.segment", "vision.detect", "vision.caption"),
)


@pytest.mark.parametrize("service", ["mlflow", "wandb"])
@pytest.mark.parametrize("module", TRAINING)
def test_a_missing_client_of_a_tracking_service_creates_nothing(
    module: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, service, None)
    with pytest.raises(UserError, match=f"--track {service} needs the package {service}.*type pip install {service}"):
        importlib.import_module(f"zerokara.{module}").main(["--track", service])
    assert list(tmp_path.iterdir()) == []
