"""Tests of scripts/add_to_zoo.py and zoo_candidates.py: rounding, evaluation, size limit and metadata of each kind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts import add_to_zoo, zoo_candidates
from tests.agents.small_runs import CATCH
from tests.classifiers import DIGITS
from tests.generative.finished_run import FEW, make_run
from zerokara.agents import dqn, evaluate
from zerokara.agents.qlearning.agent_file import AgentMetadata
from zerokara.agents.viewing.loading import load_agent
from zerokara.core.config import UserError, to_dict
from zerokara.core.data import glyphs
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.model_file import run_origin
from zerokara.core.zoo import registry as zoo
from zerokara.generative import metrics
from zerokara.generative.gan.sampler import GeneratorMetadata, Sampler
from zerokara.vision.classification.config import Config

CLASSIFIERS = zoo.FOLDER / "classifiers"  # the tests replace zoo.FOLDER
METADATA = dataclasses.replace(
    DIGITS,
    command="python -m vision.classify --width-multiplier 0.25",
    data="glyphs, files in /home/somebody",
    figures={"validation_error": 0.9, "test_error": 0.91},
)


def save_run(folder: Path, metadata: ClassifierMetadata = METADATA) -> Path:
    folder.mkdir()
    config = to_dict(Config(validation_images=100, width_multiplier=0.25))
    (folder / "config.json").write_text(json.dumps({"kind": "classify", "config": config, "extra": {}}))
    metadata.save(folder / "model.safetensors", metadata.build().state_dict())
    return folder


def test_a_run_is_added_to_the_zoo(tmp_path: Path, empty_zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_run(tmp_path / "run")
    add_to_zoo.main([str(run), "small-digits", "--threads", "1"])
    assert "command: python -m vision.classify --width-multiplier 0.25" in capsys.readouterr().out
    classifier, metadata = zoo.load("small-digits")
    original, _ = ClassifierMetadata.load(run / "model.safetensors")
    for rounded, exact in zip(classifier.parameters(), original.parameters(), strict=True):
        assert torch.equal(rounded, exact.half().float())
    assert metadata.data == "glyphs"
    assert set(metadata.figures) == {"validation_error", "test_error", "validation_error_float16"}
    assert 0.5 < metadata.figures["validation_error_float16"] <= 1, "an untrained network has a high error"
    with pytest.raises(UserError, match="already has small-digits"):
        add_to_zoo.main([str(run), "small-digits"])
    assert list(empty_zoo.rglob("*.safetensors")) == [empty_zoo / "classifiers" / "small-digits.safetensors"]


def test_error_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run")
    for words, message in (
        ([str(run)], "a name for the zoo"),
        ([str(run), "Digits!"], "cannot be 'Digits!'"),
        ([str(tmp_path / "none"), "digits"], "There is no run"),
        ([str(run), "digits", "--folder", str(tmp_path / "nowhere")], "There is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            add_to_zoo.main([*words, "--folder", str(tmp_path)] if "--folder" not in words else words)
    unfinished = save_run(tmp_path / "unfinished", dataclasses.replace(METADATA, figures={}))
    with pytest.raises(UserError, match="is not finished"):
        add_to_zoo.main([str(unfinished), "digits", "--folder", str(tmp_path)])
    monkeypatch.setattr(zoo, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"limit of the zoo is 0\.001 MB"):
        add_to_zoo.main([str(run), "digits", "--folder", str(tmp_path)])
    assert not list(tmp_path.glob("classifiers/*"))


def test_a_network_that_is_worse_in_float16_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run")
    before_and_after = iter([SimpleNamespace(error=error) for error in (0.01, 0.03, 0.01, 0.02)])
    monkeypatch.setattr(zoo_candidates, "score", lambda *args, **options: next(before_and_after))
    with pytest.raises(UserError, match="Rounded to float16"):
        add_to_zoo.main([str(run), "digits", "--folder", str(tmp_path)])
    assert not list(tmp_path.glob("classifiers/*"))
    add_to_zoo.main([str(run), "digits", "--folder", str(tmp_path)])  # an increase by one image is allowed
    assert list(tmp_path.glob("classifiers/*"))


@pytest.fixture
def zoo_folder(empty_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty zoo; evaluations are short."""
    monkeypatch.setattr(zoo_candidates, "EPISODES", 2)
    monkeypatch.setattr(zoo_candidates, "IMAGES", 100)
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    return empty_zoo


def make_agent() -> Path:
    """Train a small agent for some steps."""
    dqn.main([*CATCH, "--name", "ball", "--total-steps", "200", "--eval-every-steps", "0"])
    return Path("runs/ball")


def test_an_agent_is_added_with_its_returns_before_and_after_rounding(
    zoo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_agent()
    add_to_zoo.main([str(run), "ball", "--threads", "1"])
    assert "return float16" in capsys.readouterr().out
    path = zoo_folder / "agents" / "ball.safetensors"
    weights = AgentMetadata.read(path)[1]
    exact = load_agent(run, threads=1).policy.network.state_dict()
    assert all(torch.equal(weights[name], tensor.half()) for name, tensor in exact.items())
    agent, metadata = load_agent("ball", threads=1), AgentMetadata.read_metadata(path)
    assert metadata is not None
    assert (agent.source, agent.step, metadata.step) == (path, 200, 200)
    assert set(metadata.figures) == {"return", "standard_error", "return_float16", "standard_error_float16"}
    assert -5 <= metadata.figures["return_float16"] <= 5
    assert metadata.protocol["seed"] == zoo_candidates.EVALUATION_SEED
    assert (metadata.protocol["episodes"], metadata.protocol["epsilon"]) == (2, 0.001)
    assert metadata.environment == json.loads((run / "config.json").read_text())["extra"]["environment"]
    assert list(metadata.origin) == run_origin(run)
    assert metadata.data.startswith("zerokara/Catch-v0, played by the agent itself (zerokara 0.")


def test_an_agent_that_is_worse_in_float16_is_rejected(zoo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_agent()
    results = iter([(4.0, 0.1), (3.0, 0.1), (4.0, 0.1), (3.8, 0.1), (20.2, 0.0), (20.0, 0.0)])

    def evaluated(*_: object) -> dict[str, object]:
        mean, standard_error = next(results)
        return {"mean": mean, "standard_error": standard_error, "protocol": {}, "games": 2, "cut": 0}

    monkeypatch.setattr(evaluate, "evaluate_agent", evaluated)
    with pytest.raises(UserError, match="has a mean return of 3 instead of 4: choose another run"):
        add_to_zoo.main([str(run), "ball", "--threads", "1"])
    assert not list(zoo_folder.rglob("*.safetensors"))
    add_to_zoo.main([str(run), "ball", "--threads", "1"])  # within two standard errors of the difference
    add_to_zoo.main([str(run), "ball", "--threads", "1", "--replace"])  # episodes without spread: within 2%


def test_a_generator_is_added_with_its_distances_before_and_after_rounding(zoo_folder: Path) -> None:
    shutil.copytree(CLASSIFIERS, zoo_folder / "classifiers")
    zoo.files.cache_clear()
    run = make_run(Path.cwd(), "numbers", "--conditional")
    words = [str(run), "numbers", "--threads", "1", "--data", "digits drawn by zerokara (MIT)"]
    add_to_zoo.main(words)
    path = zoo_folder / "generators" / "numbers.safetensors"
    assert list(zoo.files("generators")) == ["numbers"]
    sampler, exact = Sampler.load("numbers", threads=1), Sampler.load(run, threads=1)
    for rounded, original in zip(sampler.generator.parameters(), exact.generator.parameters(), strict=True):
        assert torch.equal(rounded, original.half().float())
    metadata = GeneratorMetadata.read_metadata(path)
    assert metadata is not None
    assert metadata.data == "digits drawn by zerokara (MIT)"
    assert metadata.command == json.loads((run / "config.json").read_text())["command"]
    assert list(metadata.origin) == run_origin(run)
    assert metadata.figures["fcd"] == pytest.approx(metadata.figures["fcd_float16"], rel=0.05)
    assert {"accuracy_float16", "confident_float16"} <= set(metadata.figures)
    assert metadata.protocol["painted_images"] == 100
    assert metadata.protocol["floor"]["fcd"] < metadata.figures["fcd"]
    with pytest.raises(UserError, match="already has numbers"):
        add_to_zoo.main(words)


def test_a_generator_of_frames_is_added_with_the_distance_of_a_random_network(zoo_folder: Path) -> None:
    run = make_run(Path.cwd(), "frames", "--data", "frames:zerokara/Catch-v0", "--frames", "300")
    add_to_zoo.main([str(run), "catch-frames", "--threads", "1"])
    metadata = GeneratorMetadata.read_metadata(zoo_folder / "generators" / "catch-frames.safetensors")
    assert metadata is not None
    assert (metadata.data, metadata.config["data"]) == ("Catch-v0", "frames:zerokara/Catch-v0")
    assert metadata.figures["random_fd"] == pytest.approx(metadata.figures["random_fd_float16"], rel=0.05)
    assert "fcd" not in metadata.figures
    assert (metadata.protocol["classifier"], metadata.protocol["real_images"]) == (None, 100)
    assert metadata.protocol["real"] == "100 images of Catch-v0, test split"
    assert Sampler.load("catch-frames", threads=1).sample(2).shape == (2, 84, 84, 1)


PROTOCOL = {"real": "100 of files in /home/somebody, test split", "real_images": 100, "split": "test"}


def reports(*scores: dict[str, float]) -> Callable[..., dict[str, Any]]:
    """Return a replacement of metrics.report with these scores in turn."""
    results = iter(scores)
    return lambda *_: {"scores": {"painted": next(results), "floor": {}}, "protocol": PROTOCOL}


@pytest.mark.parametrize(
    ("after", "message"),
    [({"fcd": 11.0, "accuracy": 0.9}, "distance of 11 instead of 10"), ({"fcd": 9, "accuracy": 0.8}, "of 80.00% inst")],
)
def test_a_generator_that_is_worse_in_float16_is_rejected(
    after: dict[str, float], message: str, zoo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(Path.cwd(), "numbers")
    monkeypatch.setattr(metrics, "report", reports({"fcd": 10.0, "accuracy": 0.9}, after))
    with pytest.raises(UserError, match=message):
        add_to_zoo.main([str(run), "numbers", "--threads", "1"])
    assert not list(zoo_folder.rglob("*.safetensors"))


def test_private_paths_are_not_in_the_file(zoo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Path.cwd(), "numbers")
    content = json.loads((run / "config.json").read_text())
    (tmp_path / "secret" / "photos").mkdir(parents=True)
    content["config"] |= {"data": str(tmp_path / "secret" / "photos"), "data_dir": str(tmp_path / "secret")}
    (run / "config.json").write_text(json.dumps(content))
    monkeypatch.setattr(metrics, "report", reports({"fcd": 1.0}, {"fcd": 1.0}))
    add_to_zoo.main([str(run), "numbers", "--threads", "1"])
    metadata = GeneratorMetadata.read_metadata(zoo_folder / "generators" / "numbers.safetensors")
    assert metadata is not None
    assert (metadata.config["data"], metadata.config["data_dir"], metadata.data) == ("photos", "", "photos")
    assert metadata.protocol["real"] == "100 images of photos, test split"


def test_a_run_of_another_program_is_refused(zoo_folder: Path) -> None:
    run = Path("runs/boxes")
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"kind": "detect", "config": {}, "extra": {}}))
    with pytest.raises(UserError, match=r"holds a run of detect: the zoo takes those of .*, stream and dcgan"):
        add_to_zoo.main([str(run), "boxes"])
    assert list(zoo_folder.iterdir()) == []
