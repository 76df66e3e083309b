"""Tests of a session: order of the images, checkpoints, rollback, metrics and the training video."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.programs import metrics
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.stopwatch import LogInterval
from zerokara.generative.dcgan import make_learner, update
from zerokara.generative.gan import session as session_module
from zerokara.generative.gan.config import KIND, PRESETS, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.pictures import VIDEO_FPS, image_grid
from zerokara.generative.gan.sampler import BEST, Sampler
from zerokara.generative.gan.session import Session, preview_latents

SMALL = ("--generator-width", "0.05", "--discriminator-width", "0.05", "--latent-dim", "4", "--batch-size", "4")
IMAGES = 14  # three batches of 4, and 2 images that an epoch leaves out


def encoded_images(number: int) -> ImageSet:
    """Images with the value of their index in every pixel, and labels that follow from it."""
    index_N = torch.arange(number)
    pixels = index_N.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    return ImageSet(pixels, index_N % 3, ("a", "b", "c"), "encoded images")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Session of encoded images."""
    monkeypatch.chdir(tmp_path)
    images = encoded_images(IMAGES)
    config = parse(Config, PRESETS, [*SMALL, "--name", "run"], "")
    learner = make_learner(config, images.shape, 3, Compute(device="cpu", threads=1), World())
    with Run(config, kind=KIND, name="run", resume=False, quiet=True, world=World()) as run:
        return Session(run, Data(images, images, ()), learner)


def epoch(session: Session, number: int) -> list[int]:
    """Return the indices of an epoch's images, after a check of their labels."""
    indices = []
    for batch in range(3):
        session.learner.updates = 3 * number + batch
        pixels_BCHW, label_B = session.next_batch()
        index_B = pixels_BCHW[:, 0, 0, 0].long()
        assert torch.equal(label_B, index_B % 3)
        indices += index_B.tolist()
    return indices


def test_an_epoch_has_each_image_once_in_another_order_than_the_last(session: Session) -> None:
    first, second = epoch(session, 0), epoch(session, 1)
    assert len(set(first)) == len(set(second)) == 12
    assert first != second
    assert first != sorted(first)
    assert epoch(session, 0) == first, "the order is a function of seed and epoch, so that a resumed run repeats it"
    session.rollbacks = 1
    assert epoch(session, 0) != first


def test_processes_share_a_batch_without_overlap(session: Session) -> None:
    whole = epoch(session, 0)
    shards = []
    for rank in range(2):
        session.world = World(rank=rank, size=2)
        shards.append(epoch(session, 0))
    assert [len(shard) for shard in shards] == [6, 6]
    assert sorted(shards[0] + shards[1]) == sorted(whole)


def test_is_due_at_multiples(session: Session) -> None:
    session.learner.updates = 30
    assert [session.is_due(every) for every in (1, 15, 30, 20, 60, 0)] == [True, True, True, False, False, False]


# ---- checkpoints, rollback, metrics, video


class Runs:
    """Creates sessions of the run "run", one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack, self.monkeypatch = contextlib.ExitStack(), monkeypatch
        self.printed: list[str] = []
        self.warnings: list[str] = []

    def session(self, *words: str, resume: bool = False, world: World = World()) -> Session:  # noqa: B008  (frozen)
        """Open the run and create its session."""
        self.stack.close()
        data = encoded_images(IMAGES)
        config = parse(Config, PRESETS, [*SMALL, "--name", "run", "--preview-images", "4", *words], "")
        learner = make_learner(config, data.shape, 3, Compute(device="cpu", threads=1), World())
        run = Run(config, kind=KIND, name="run", resume=resume, quiet=True, world=World())
        self.monkeypatch.setattr(run, "print", self.printed.append)
        self.monkeypatch.setattr(run, "warn", self.warnings.append)
        learner.world = world
        return Session(self.stack.enter_context(run), Data(data, data, ()), learner)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """Return the creator of sessions, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    made = Runs(monkeypatch)
    with made.stack:
        yield made


def train(session: Session, updates: int) -> None:
    """Do updates of both networks."""
    for _ in range(updates):
        update(session.learner, *session.next_batch())


def saved() -> dict[str, Any]:
    """Read the last checkpoint."""
    return checkpoint.load(Path("runs/run/checkpoint-0.pt"), KIND)


def write_frames(*updates: int) -> None:
    Path("runs/run/film").mkdir(exist_ok=True)
    for at in updates:
        Path(f"runs/run/film/{at:08}.png").touch()


def frames() -> list[int]:
    return sorted(int(path.stem) for path in Path("runs/run/film").iterdir())


def test_the_order_of_an_epoch_follows_from_seed_rollbacks_and_epoch(runs: Runs) -> None:
    session = runs.session("--seed", "5")
    for rollbacks in (0, 2):
        session.rollbacks = rollbacks
        session.learner.updates = 2 * 3 + 1  # the second batch of the third epoch
        random = torch.Generator().manual_seed(5 * 7_919 + rollbacks * 104_729 + 2)
        expected = torch.randperm(IMAGES, generator=random)[4:8]
        assert torch.equal(session.next_batch()[0][:, 0, 0, 0].long(), expected)


def test_a_new_run_saves_real_images_and_its_first_checkpoint(runs: Runs) -> None:
    session = runs.session()
    session.start()
    assert saved()["learner"]["updates"] == 0
    with Image.open("runs/run/media/real-0.png") as opened:
        # 4 of the 14 images, because those of a folder are in the order of their names
        assert np.array_equal(np.asarray(opened), image_grid(session.data.train.images[[0, 4, 9, 13]]).squeeze())
    assert session.interval.count == 0


def test_a_resumed_run_continues_from_its_checkpoint(runs: Runs) -> None:
    first = runs.session()
    first.start()
    train(first, 5)
    first.best, first.scores, first.rollbacks = {"update": 3, "score": 1.5}, {"fcd": 2.5}, 1
    first.collapse_monitor.discriminator(1.0, 1.0, 5)
    watched = first.collapse_monitor.state_dict()
    first.save()
    write_frames(4, 5, 6)
    expected = torch.rand(3)
    Path("runs/run/media/real-0.png").unlink()
    second = runs.session(resume=True)
    second.start()
    assert torch.equal(torch.rand(3), expected), "the global random state is part of a checkpoint"
    assert (second.update, second.best, second.scores, second.rollbacks) == (5, first.best, first.scores, 1)
    assert second.collapse_monitor.state_dict() == watched
    assert second.clock.hours > 0
    for ours, theirs in zip(second.learner.generator.parameters(), first.learner.generator.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert frames() == [4, 5], "later frames will be repeated"
    assert not Path("runs/run/media/real-0.png").exists()
    assert second.interval.count == 5
    assert "rolled back" not in " ".join(runs.printed)


def test_a_killed_run_without_a_checkpoint_starts_again(runs: Runs) -> None:
    runs.session()
    session = runs.session(resume=True)
    session.start()
    assert saved()["learner"]["updates"] == 0


def test_a_rollback_restores_the_best_checkpoint_and_changes_the_random_numbers(runs: Runs) -> None:
    first = runs.session("--seed", "5")
    first.start()
    train(first, 2)
    first.run.save(first.run.folder / BEST, first.state_dict())
    best = [parameter.detach().clone() for parameter in first.learner.generator.parameters()]
    train(first, 1)
    first.rollbacks = 3  # of the last checkpoint; the best one is older than these rollbacks
    first.save()
    write_frames(2, 3)
    second = runs.session("--seed", "5", "--rollback", resume=True)
    second.start()
    assert (second.update, second.rollbacks) == (2, 4)
    assert runs.printed == ["rolled back to update 2"]
    assert frames() == [2]
    for ours, theirs in zip(second.learner.generator.parameters(), best, strict=True):
        assert torch.equal(ours, theirs)
    expected = torch.Generator().manual_seed(5 * 1_000_003 + 4 * 15_485_863 + 2)
    assert torch.equal(second.learner.random.get_state(), expected.get_state())
    assert (saved()["learner"]["updates"], saved()["rollbacks"]) == (2, 4), "saved at once"
    third = runs.session("--seed", "5", resume=True)
    third.start()
    assert (third.update, third.rollbacks) == (2, 4)


def test_a_rollback_counts_those_of_the_best_checkpoint_if_the_last_one_is_damaged(runs: Runs) -> None:
    first = runs.session()
    first.start()
    first.rollbacks = 6
    first.run.save(first.run.folder / BEST, first.state_dict())
    first.latest.write_bytes(b"damaged")
    second = runs.session("--rollback", resume=True)
    second.start()
    assert second.rollbacks == 7
    assert saved()["rollbacks"] == 7


def test_a_rollback_needs_both_checkpoints(runs: Runs) -> None:
    runs.session().start()
    with pytest.raises(UserError, match="has no best checkpoint yet: remove --rollback"):
        runs.session("--rollback", resume=True).start()
    session = runs.session(resume=True)
    session.start()
    session.run.save(session.run.folder / BEST, session.state_dict())
    session.latest.unlink()
    with pytest.raises(UserError, match="has no best checkpoint yet: remove --rollback"):
        runs.session("--rollback", resume=True).start()


@pytest.mark.parametrize("resume", [False, True])
def test_a_pretrained_backbone_initializes_only_a_new_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    calls: list[tuple[Any, ...]] = []

    def load(*arguments: Any) -> str:
        calls.append(arguments)
        return "loaded"

    monkeypatch.setattr("zerokara.core.zoo.registry.find_weights", lambda name: f"file of {name}")
    monkeypatch.setattr("zerokara.core.zoo.provenance.record", lambda run, name: calls.append((run, name)))
    monkeypatch.setattr(session_module, "load_pretrained_backbone", load)
    if resume:
        runs.session().start()
        calls.clear()
    session = runs.session("--pretrained-backbone", "zoo", resume=resume)
    session.start()
    backbone = session.learner.discriminator.backbone
    assert calls == ([] if resume else [(session.run, "zoo"), (backbone, "file of zoo")])
    assert runs.printed == ([] if resume else ["loaded"])


def test_non_finite_weights_are_not_saved(runs: Runs) -> None:
    session = runs.session()
    session.start()
    with torch.no_grad():
        next(session.learner.discriminator.parameters()).fill_(float("nan"))
    session.learner.updates = 3
    with pytest.raises(UserError, match=r"diverged at update 3: the weights contain NaN or Inf"):
        session.save()
    assert saved()["learner"]["updates"] == 0


def logged_values(session: Session, **changes: float) -> None:
    """Make the session log given metrics."""
    values = {"d_loss": 0.5, "g_loss": 0.25, "d_accuracy_real": 0.75, "d_accuracy_fake": 0.625} | changes
    metrics_of_learner = {f"train/{name}": torch.tensor(value) for name, value in values.items()}
    session.learner.read_metrics = lambda: metrics_of_learner  # type: ignore[method-assign]
    session.log_metrics()


def test_metrics_are_logged_and_shown(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    session = runs.session()
    session.start()
    shown: list[tuple[int, int, dict[str, Any]]] = []
    monkeypatch.setattr(session.run, "progress", lambda *arguments: shown.append(arguments))
    session.learner.updates = 7
    logged_values(session)
    assert metrics(Path("runs/run"))[-1] == {
        "step": 7,
        "train/d_loss": 0.5,
        "train/g_loss": 0.25,
        "train/d_accuracy_real": 0.75,
        "train/d_accuracy_fake": 0.625,
    }
    assert shown[0][:2] == (7, session.config.updates)
    assert (shown[0][2]["D loss"], shown[0][2]["G loss"], shown[0][2]["fake"]) == (0.5, 0.25, 0.625)
    assert session.interval.count == 7
    session.scores = {"fcd": 3.0, "random_fd": 4.0}
    session.learner.updates = 14
    logged_values(session)
    assert shown[1][2]["FCD"] == 3.0
    session.scores = {"random_fd": 4.0}
    logged_values(session)
    assert shown[2][2]["distance"] == 4.0


def test_the_duration_is_estimated_once_after_the_second_interval(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogInterval, "per_second", lambda _, count: count / 100)

    def lines(session: Session, *updates: int) -> list[int]:
        """Return the number of lines that are printed after each of these updates."""
        session.start()
        runs.printed.clear()
        numbers = []
        for at in updates:
            session.learner.updates = at
            logged_values(session)
            numbers.append(len(runs.printed))
        return numbers

    assert lines(runs.session(), 200, 400, 600) == [0, 1, 1]
    (line,) = runs.printed
    assert line.startswith("5,600 updates remain, which take about 23:20 without evaluations; 3,600 take 15 minutes.")
    assert lines(runs.session(resume=True), 5_000, 6_000) == [0, 0], "none remain"
    assert lines(runs.session("--minutes", "15", resume=True), 200, 400) == [0, 1], "its number is not to be changed"
    assert runs.printed == ["5,600 updates remain, which take about 23:20 without evaluations."]
    assert runs.warnings == []


@pytest.mark.parametrize("name", ["d_loss", "g_loss"])
def test_a_non_finite_loss_ends_the_run_after_it_is_logged(runs: Runs, name: str) -> None:
    session = runs.session()
    session.start()
    session.learner.updates = 9
    with pytest.raises(UserError, match="diverged at update 9: a loss is NaN or Inf"):
        logged_values(session, **{name: float("inf")})
    assert metrics(Path("runs/run"))[-1]["step"] == 9


def test_a_perfect_discriminator_is_warned_of(runs: Runs) -> None:
    session = runs.session()
    session.start()
    for session.learner.updates in range(50, 3_000, 50):
        logged_values(session, d_accuracy_real=1.0, d_accuracy_fake=1.0)
    (warning,) = runs.warnings
    assert "the discriminator classifies nearly all images correctly" in warning


@pytest.mark.parametrize("words", [(), ("--ema-half-life-updates", "0"), ("--conditional",)])
def test_a_frame_of_the_video_shows_the_preview_images(runs: Runs, words: tuple[str, ...]) -> None:
    session = runs.session(*words)
    session.start()
    train(session, 2)
    learner = session.learner
    generator = learner.generator if learner.ema is None else learner.ema.module
    generator.train()
    session.save_video_frame()
    assert generator.training, "the mode is restored"
    label_N = torch.arange(4) % 3 if "--conditional" in words else None
    pixels = Sampler(
        generator.eval(), session.config, (1, 28, 28), ("a", "b", "c") * (label_N is not None), session.compute, 2
    ).generate(preview_latents(session.config), label_N)
    with Image.open("runs/run/film/00000002.png") as opened:
        assert np.array_equal(np.asarray(opened), image_grid(pixels).squeeze())
    assert session.sampler().class_names == (("a", "b", "c") if "--conditional" in words else ())
    session.scores = {"fcd": 1.5}
    assert (session.sampler().update, session.sampler().scores) == (2, {"fcd": 1.5})


def test_preview_latents_follow_from_the_seed() -> None:
    configs = [
        parse(Config, PRESETS, [*SMALL, "--preview-images", "3", "--seed", seed], "") for seed in ("1", "1", "2")
    ]
    first, same, other = map(preview_latents, configs)
    assert first.shape == (3, 4)
    assert torch.equal(first, same)
    assert torch.equal(first, torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, other)


def test_the_video_needs_two_frames_and_the_hyperparameters_a_score(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = runs.session()
    session.start()
    written: list[Any] = []
    monkeypatch.setattr(session.run, "video", lambda tag, step, frames, fps: written.append((tag, step, fps)))
    monkeypatch.setattr(session.run, "hparams", lambda config, names: written.append((config["latent_dim"], names)))
    train(session, 1)
    session.save_video_frame()
    session.finish()
    assert written == []
    train(session, 1)
    session.save_video_frame()
    session.scores = {"fcd": 2.0}
    session.finish()
    assert written == [("film", 2, VIDEO_FPS), (4, ["eval/fcd"])]
