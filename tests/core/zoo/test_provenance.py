"""Where an eye comes from: known after copies, moves and further training, and owned to where it is not."""

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
from zerokara.core.models import model_file
from zerokara.core.models.model_file import ClassifierMetadata
from zerokara.core.run import Run
from zerokara.core.zoo import provenance
from zerokara.core.zoo.provenance import Provenance, begun_with, trace

CARD = ClassifierMetadata(
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
    return CARD.build().state_dict()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(name: str, seed: int, start: str = "", later: int | None = None) -> Path:
    """A run with weights of this seed, and others of `later` in its checkpoint, that may have begun from an eye."""
    config = Config(name=name, pretrained_backbone=start)
    with Run(config, kind="classify", name=name, resume=False, quiet=True) as run:
        provenance.record(run, config.pretrained_backbone)
        model_file.save(run.path("model.safetensors"), weights(seed), CARD)
        if later is not None:
            run.save(run.path("checkpoint-0.pt"), {"network": weights(later), "rng": checkpoint.rng_state()})
    return run.folder


def related(one: Path, other: Path) -> bool:
    return bool(trace(one).own & trace(other).all)


def test_copies_are_known_by_their_matrices_also_rounded() -> None:
    model_file.save(Path("whole.safetensors"), weights(0), CARD)
    model_file.save(Path("rounded.safetensors"), weights(0), CARD, half=True)
    torch.save({f"trunk.{name}": tensor for name, tensor in weights(0).items()}, "renamed.pt")
    model_file.save(Path("other.safetensors"), weights(1), CARD)
    whole = trace(Path("whole.safetensors"))
    assert whole.own == trace(Path("rounded.safetensors")).own == trace(Path("renamed.pt")).own
    assert len(whole.own) == sum(tensor.ndim > 1 for tensor in weights(0).values())
    assert not related(Path("whole.safetensors"), Path("other.safetensors"))


def test_what_is_alike_because_it_is_fresh_is_no_mark() -> None:
    kept = torch.randn(3, 3)
    torch.save({"bias": torch.zeros(9), "last": torch.zeros(2, 3), "optimizer.0": kept, "step": kept.long()}, "a.pt")
    assert not trace(Path("a.pt")).own


def test_a_run_is_known_wherever_it_lies_and_however_its_weights_move() -> None:
    judge = train("judge", seed=0)
    painter = train("painter", seed=1, start=str(judge))
    model_file.save(judge / "model.safetensors", weights(2), CARD)  # it went on, so no matrix is as it was
    judge.rename("moved")
    assert related(Path("moved"), painter)
    assert not related(train("other", seed=3), painter)


def test_a_classifier_is_known_through_those_between() -> None:
    """Classifier, agent, discriminator: the agent's weights have moved, and the classifier is a file by itself."""
    judge = train("judge", seed=0)
    shutil.copy(judge / "model.safetensors", "alone.safetensors")
    agent = train("agent", seed=1, start=str(judge))
    painter = train("painter", seed=2, start=str(agent / "model.safetensors"))
    for folder in (judge, agent):
        shutil.rmtree(folder)
    assert related(Path("alone.safetensors"), painter)
    extra = Run.read_config(painter)["extra"]
    began = begun_with(extra, str(agent))
    assert began is not None
    assert not began.unknown
    assert trace(Path("alone.safetensors")).own <= began.ancestors
    assert not trace(Path("alone.safetensors")).own & began.own


def test_a_checkpoint_is_the_run_that_keeps_it() -> None:
    """Its weights are later than those that the run shows."""
    judge = train("judge", seed=0, later=1)
    shutil.copy(judge / "model.safetensors", "alone.safetensors")
    painter = train("painter", seed=2, start=str(judge / "checkpoint-0.pt"))
    shutil.rmtree(judge)
    assert related(Path("alone.safetensors"), painter)


def test_runs_from_before_are_looked_up_and_what_is_gone_is_named() -> None:
    judge = train("judge", seed=0)
    painter = train("painter", seed=1, start=str(judge))
    content = json.loads((painter / "config.json").read_text())
    del content["extra"]["eye"]
    (painter / "config.json").write_text(json.dumps(content))
    assert related(judge, painter)
    shutil.rmtree(judge)
    assert trace(painter).unknown == (str(judge),)
    assert begun_with({}, "") is None
    next_one = train("next", seed=2, start=str(painter))
    assert trace(next_one).unknown == (str(judge),), "it is not forgotten on the way"


def test_files_out_of_their_folders_say_what_they_know() -> None:
    judge = train("judge", seed=0, later=1)
    shutil.copy(judge / "checkpoint-0.pt", "taken.pt")
    assert trace(Path("taken.pt")).unknown == ("the run that taken.pt is a checkpoint of",)
    told = ClassifierMetadata(
        **{**vars(CARD), "command": "python -m vision.classify --pretrained-backbone=runs/gone --seed 1"}
    )
    model_file.save(Path("told.safetensors"), weights(0), told)
    assert trace(Path("told.safetensors")).unknown == ("runs/gone",)


def test_damage_is_told_where_it_is_the_eye_and_passed_over_beside_it() -> None:
    judge = train("judge", seed=0, later=1)
    (judge / "checkpoint-0.pt").write_bytes(b"half of it")
    assert trace(judge).own
    assert trace(judge / "model.safetensors").own
    with pytest.raises(UserError, match=r"checkpoint-0\.pt"):
        trace(judge / "checkpoint-0.pt")
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        trace(Path("nowhere.pt"))


def test_plain_values_come_back() -> None:
    whole = Provenance("a", frozenset({"1", "2"}), frozenset({"3"}), ("gone",))
    assert Provenance.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    assert Provenance.from_dict(Provenance("a").to_dict()) == Provenance("a")
