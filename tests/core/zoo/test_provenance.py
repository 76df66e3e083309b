"""Tests of the provenance of weights: detected after copies, moves and further training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zerokara.core import checkpoint
from zerokara.core.config import UserError
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.model_file import UNKNOWN
from zerokara.core.run import Run
from zerokara.core.zoo import provenance
from zerokara.core.zoo.provenance import initial_provenance, trace, unknown_ancestors

METADATA = ClassifierMetadata(
    backbone="deep_cnn",
    head="paper",
    classes=("no", "yes"),
    channels=1,
    image_size=(28, 28),
    mean=(0.5,),
    std=(0.5,),
    options={"width": 0.1},
)


@dataclass(frozen=True)
class Config:
    preset: str = ""
    name: str = ""
    pretrained_backbone: str = ""


def weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return METADATA.build().state_dict()


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(name: str, seed: int, start: str = "", later: int | None = None) -> Path:
    """Create a run with weights of `seed`, an optional checkpoint of seed `later`, and an optional backbone `start`."""
    config = Config(name=name, pretrained_backbone=start)
    with Run(config, kind="classify", name=name, resume=False, quiet=True) as run:
        provenance.record(run, config.pretrained_backbone)
        METADATA.save(run.path("model.safetensors"), weights(seed))
        if later is not None:
            run.save(run.path("checkpoint-0.pt"), {"network": weights(later), "rng": checkpoint.rng_state()})
    return run.folder


def derived(classifier: Path, network: Path) -> bool:
    """Return True if the network, or one that it was initialized from, is the classifier."""
    return trace(classifier)[0] in trace(network)


def saved_by_older_release(path: Path, command: str = "", half: bool = False) -> Path:
    """Save a model file outside of a run folder, as older releases did: without a mark."""
    dataclasses.replace(METADATA, command=command).save(path, weights(0), half=half)
    return path


def test_copies_have_the_mark_of_their_run_also_if_rounded() -> None:
    run = train("run", seed=0)
    classifier, metadata = ClassifierMetadata.load(run)
    assert list(metadata.origin) == trace(run)
    metadata.save(Path("rounded.safetensors"), classifier.state_dict(), half=True)
    shutil.copy(run / "model.safetensors", "copied.safetensors")
    assert trace(Path("rounded.safetensors")) == trace(Path("copied.safetensors")) == trace(run)
    assert len(trace(run)) == 1
    assert not derived(run, train("other", seed=0))


def test_files_without_a_mark_are_identified_by_their_command_or_content() -> None:
    first = saved_by_older_release(Path("first.safetensors"), "python -m vision.classify --seed 1")
    rounded = saved_by_older_release(Path("rounded.safetensors"), "python -m vision.classify --seed 1", half=True)
    other = saved_by_older_release(Path("other.safetensors"), "python -m vision.classify --seed 2")
    assert derived(first, rounded)
    assert not derived(first, other)
    torch.save(weights(0), "published.pth")
    shutil.copy("published.pth", "copied.pth")
    assert trace(Path("published.pth")) == trace(Path("copied.pth"))
    torch.save(weights(1), "copied.pth")
    assert trace(Path("published.pth")) != trace(Path("copied.pth"))


def test_copies_of_model_files_of_older_runs_are_detected() -> None:
    run, command = train("run", seed=0), "python -m vision.classify --seed 1"
    copy = saved_by_older_release(Path("model.safetensors"), command)
    shutil.copy(copy, run / "model.safetensors")
    assert derived(copy, run)
    assert derived(copy, train("generator", seed=1, start=str(run)))


def test_run_is_detected_after_moving_and_further_training() -> None:
    classifier_run = train("classifier", seed=0)
    generator_run = train("generator", seed=1, start=str(classifier_run))
    METADATA.save(classifier_run / "model.safetensors", weights(2))  # the run was trained further
    classifier_run.rename("moved")
    assert derived(Path("moved"), generator_run)
    assert not derived(train("other", seed=3), generator_run)


def test_indirect_ancestors_are_detected() -> None:
    """Classifier, agent, discriminator: the agent was trained further, and the classifier is a file without a run."""
    classifier_run = train("classifier", seed=0)
    shutil.copy(classifier_run / "model.safetensors", "alone.safetensors")
    agent = train("agent", seed=1, start=str(classifier_run))
    generator_run = train("generator", seed=2, start=str(agent / "model.safetensors"))
    shutil.copy(generator_run / "model.safetensors", "generator.safetensors")
    expected = [trace(path)[0] for path in (generator_run, agent, classifier_run)]
    for folder in (classifier_run, agent):
        shutil.rmtree(folder)
    assert trace(generator_run) == trace(Path("generator.safetensors")) == expected
    origin = initial_provenance(Run.read_config(generator_run)["extra"], str(agent))
    assert origin == expected[1:]
    assert not unknown_ancestors(origin)
    assert trace(Path("alone.safetensors")) == expected[2:]


def test_checkpoint_belongs_to_its_run() -> None:
    classifier_run = train("classifier", seed=0, later=1)
    shutil.copy(classifier_run / "model.safetensors", "alone.safetensors")
    generator_run = train("generator", seed=2, start=str(classifier_run / "checkpoint-0.pt"))
    shutil.rmtree(classifier_run)
    assert derived(Path("alone.safetensors"), generator_run)


def test_runs_without_saved_provenance_are_traced_and_missing_ones_are_listed() -> None:
    classifier_run = train("classifier", seed=0)
    generator_run = train("generator", seed=1, start=str(classifier_run))
    content = json.loads((generator_run / "config.json").read_text())
    del content["extra"]["origin"]
    (generator_run / "config.json").write_text(json.dumps(content))
    assert derived(classifier_run, generator_run)
    shutil.rmtree(classifier_run)
    assert unknown_ancestors(trace(generator_run)) == [str(classifier_run)]
    METADATA.save(generator_run / "model.safetensors", weights(1))  # resumed by this release
    assert unknown_ancestors(trace(generator_run / "model.safetensors")) == [str(classifier_run)]
    assert initial_provenance({}, "") == []
    next_run = train("next", seed=2, start=str(generator_run))
    assert unknown_ancestors(trace(next_run)) == [str(classifier_run)], "unknown ancestors are passed on"


def test_hashes_that_older_releases_saved() -> None:
    """They hold the mark of the run, so a moved run is detected, and the path, from which a file is traced."""
    run = train("run", seed=0)
    file = saved_by_older_release(Path("file.safetensors"), "python -m vision.classify --seed 1")
    eye = {"source": "moved away", "own": f"abc {trace(run)[0]}", "ancestors": "def", "unknown": ["gone"]}
    assert initial_provenance({"eye": eye}, "") == ["abc", trace(run)[0], "def", f"{UNKNOWN}gone"]
    eye = {"source": str(file), "own": "abc", "ancestors": "", "unknown": []}
    assert initial_provenance({"eye": eye}, "") == ["abc", *trace(file)]


def test_files_outside_of_run_folders() -> None:
    classifier_run = train("classifier", seed=0, later=1)
    shutil.copy(classifier_run / "checkpoint-0.pt", "copied.pt")
    assert unknown_ancestors(trace(Path("copied.pt"))) == ["the run of the checkpoint copied.pt"]
    for flag in ("--pretrained-backbone=", "--pretrained-backbone ", "--init-backbone="):  # the last one is older
        path = saved_by_older_release(Path("a.safetensors"), f"python -m vision.classify {flag}runs/removed --seed 1")
        assert unknown_ancestors(trace(path)) == ["runs/removed"]


def test_missing_and_damaged_files_are_errors() -> None:
    Path("damaged.pt").write_bytes(b"damaged")
    for name in ("missing.pt", "damaged.pt"):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            trace(Path(name))
