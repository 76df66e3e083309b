"""Tests of the provenance of weights: detected after copies, moves and further training."""

from __future__ import annotations

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
from zerokara.core.run import Run
from zerokara.core.zoo import provenance
from zerokara.core.zoo.provenance import Provenance, initial_provenance, trace

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


def shares_weights(one: Path, other: Path) -> bool:
    return bool(trace(one).own & trace(other).all)


def test_copies_are_detected_by_their_matrices_also_if_rounded() -> None:
    METADATA.save(Path("original.safetensors"), weights(0))
    METADATA.save(Path("rounded.safetensors"), weights(0), half=True)
    torch.save({f"prefix.{name}": tensor for name, tensor in weights(0).items()}, "renamed.pt")
    METADATA.save(Path("other.safetensors"), weights(1))
    original = trace(Path("original.safetensors"))
    assert original.own == trace(Path("rounded.safetensors")).own == trace(Path("renamed.pt")).own
    assert len(original.own) == sum(tensor.ndim > 1 for tensor in weights(0).values())
    assert not shares_weights(Path("original.safetensors"), Path("other.safetensors"))


def test_initial_constants_and_optimizer_states_are_not_hashed() -> None:
    matrix = torch.randn(3, 3)
    torch.save(
        {"bias": torch.zeros(9), "last": torch.zeros(2, 3), "optimizer.0": matrix, "step": matrix.long()}, "a.pt"
    )
    assert not trace(Path("a.pt")).own


def test_run_is_detected_after_moving_and_further_training() -> None:
    classifier_run = train("classifier", seed=0)
    generator_run = train("generator", seed=1, start=str(classifier_run))
    # The run was trained further, so all matrices have changed.
    METADATA.save(classifier_run / "model.safetensors", weights(2))
    classifier_run.rename("moved")
    assert shares_weights(Path("moved"), generator_run)
    assert not shares_weights(train("other", seed=3), generator_run)


def test_indirect_ancestors_are_detected() -> None:
    """Classifier, agent, discriminator: the agent was trained further, and the classifier is a file without a run."""
    classifier_run = train("classifier", seed=0)
    shutil.copy(classifier_run / "model.safetensors", "alone.safetensors")
    agent = train("agent", seed=1, start=str(classifier_run))
    generator_run = train("generator", seed=2, start=str(agent / "model.safetensors"))
    for folder in (classifier_run, agent):
        shutil.rmtree(folder)
    assert shares_weights(Path("alone.safetensors"), generator_run)
    extra = Run.read_config(generator_run)["extra"]
    origin = initial_provenance(extra, str(agent))
    assert origin is not None
    assert not origin.unknown
    assert trace(Path("alone.safetensors")).own <= origin.ancestors
    assert not trace(Path("alone.safetensors")).own & origin.own


def test_checkpoint_belongs_to_its_run() -> None:
    """The checkpoint has other weights than the run's model.safetensors."""
    classifier_run = train("classifier", seed=0, later=1)
    shutil.copy(classifier_run / "model.safetensors", "alone.safetensors")
    generator_run = train("generator", seed=2, start=str(classifier_run / "checkpoint-0.pt"))
    shutil.rmtree(classifier_run)
    assert shares_weights(Path("alone.safetensors"), generator_run)


def test_runs_without_saved_provenance_are_traced_and_missing_ones_are_listed() -> None:
    classifier_run = train("classifier", seed=0)
    generator_run = train("generator", seed=1, start=str(classifier_run))
    content = json.loads((generator_run / "config.json").read_text())
    del content["extra"]["eye"]
    (generator_run / "config.json").write_text(json.dumps(content))
    assert shares_weights(classifier_run, generator_run)
    shutil.rmtree(classifier_run)
    assert trace(generator_run).unknown == (str(classifier_run),)
    assert initial_provenance({}, "") is None
    next_run = train("next", seed=2, start=str(generator_run))
    assert trace(next_run).unknown == (str(classifier_run),), "unknown ancestors are passed on"


def test_files_outside_of_run_folders() -> None:
    classifier_run = train("classifier", seed=0, later=1)
    shutil.copy(classifier_run / "checkpoint-0.pt", "copied.pt")
    assert trace(Path("copied.pt")).unknown == ("the run of the checkpoint copied.pt",)
    for flag in ("--pretrained-backbone=", "--pretrained-backbone ", "--init-backbone="):  # the last one is older
        command = f"python -m vision.classify {flag}runs/removed --seed 1"
        metadata = ClassifierMetadata(**{**vars(METADATA), "command": command})
        metadata.save(Path("metadata.safetensors"), weights(0))
        assert trace(Path("metadata.safetensors")).unknown == ("runs/removed",)


def test_damage_is_an_error_only_in_the_given_file() -> None:
    classifier_run = train("classifier", seed=0, later=1)
    (classifier_run / "checkpoint-0.pt").write_bytes(b"damaged")
    assert trace(classifier_run).own
    assert trace(classifier_run / "model.safetensors").own
    with pytest.raises(UserError, match=r"checkpoint-0\.pt"):
        trace(classifier_run / "checkpoint-0.pt")
    with pytest.raises(UserError, match=r"missing\.pt"):
        trace(Path("missing.pt"))


def test_round_trip_of_plain_values() -> None:
    original = Provenance("a", frozenset({"1", "2"}), frozenset({"3"}), ("removed",))
    assert Provenance.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    assert Provenance.from_dict(Provenance("a").to_dict()) == Provenance("a")
