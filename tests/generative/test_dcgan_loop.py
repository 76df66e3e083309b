"""Tests of what connects the parts of a DCGAN's training: when it logs, evaluates and saves, and how a run ends.

The real loop trains tiny networks on noise. Evaluations, which need a classifier, are recorded instead of done.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.programs import metrics
from zerokara.core import checkpoint
from zerokara.core.command_line import parse
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.generative import dcgan
from zerokara.generative.gan.config import KIND, PRESETS, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import Learner
from zerokara.generative.gan.session import Session

SMALL = (
    *("--generator-width", "0.05", "--discriminator-width", "0.05", "--latent-dim", "4", "--batch-size", "4"),
    *("--log-every-updates", "3", "--video-every-updates", "4", "--eval-every-updates", "5", "--name", "run"),
    *("--checkpoint-every-updates", "6", "--updates", "12", "--preview-images", "4", "--device", "cpu"),
)
CPU = Compute(device="cpu", threads=1)


def images(number: int = 22) -> ImageSet:
    random = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (number, 1, 28, 28), dtype=torch.uint8, generator=random)
    return ImageSet(pixels, torch.arange(number) % 3, ("a", "b", "c"), "noise")


class Recorded:
    """Training with a record of what was done after which update."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, int]] = []
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.printed: list[str] = []
        self.stop_at = -1
        self.patch = patch
        patch.setattr(dcgan, "print_protocol", lambda session, evaluator: self.note("protocol", session))
        patch.setattr(dcgan, "evaluate", lambda session, evaluator: self.note("evaluate", session))
        patch.setattr(dcgan, "closing_message", lambda session, evaluator: f"at {session.update}")
        for name in ("log_metrics", "save_video_frame", "save", "finish", "start_interval"):
            self.record(name)
        update = dcgan.update

        def recorded_update(learner: Learner, pixels_BCHW: Tensor, label_B: Tensor) -> None:
            self.batches.append((pixels_BCHW, label_B))
            update(learner, pixels_BCHW, label_B)
            if learner.updates == self.stop_at:
                self.run.stop_requested = "SIGINT"

        patch.setattr(dcgan, "update", recorded_update)

    def note(self, what: str, session: Session) -> None:
        self.done.append((what, session.update))

    def record(self, name: str) -> None:
        """Record the calls of a method of the session."""
        original = getattr(Session, name)

        def method(session: Session) -> None:
            self.note(name, session)
            original(session)

        self.patch.setattr(Session, name, method)

    def train(self, *words: str, world: World = World(), resume: bool = False) -> str:  # noqa: B008  (frozen)
        """Train from the start or the last checkpoint; return the closing message."""
        config = parse(Config, PRESETS, [*SMALL, *words], "")
        with Run(config, kind=KIND, name="run", resume=resume, quiet=True, world=World()) as self.run:
            self.patch.setattr(self.run, "print", self.printed.append)
            evaluator: Any = "of which nothing is asked"
            return dcgan.train(config, self.run, Data(images(), images(), ()), CPU, world, lambda: evaluator)

    def at(self, what: str) -> list[int]:
        """Return the updates after which something was done."""
        return [update for name, update in self.done if name == what]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Return a recorded training in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Recorded(monkeypatch)


def test_it_logs_evaluates_and_saves_when_due(recorded: Recorded) -> None:
    assert recorded.train("--updates", "13") == "at 13"
    assert recorded.at("protocol") == [0]
    assert recorded.at("log_metrics") == [3, 6, 9, 12]
    assert recorded.at("save_video_frame") == [4, 8, 12]
    assert recorded.at("evaluate") == [5, 10, 13], "and at the end"
    assert recorded.at("save") == [0, 5, 6, 10, 12, 13], "at the start, and after every evaluation"
    assert recorded.at("finish") == [13]
    assert recorded.at("start_interval") == [0, 3, 5, 6, 9, 10, 12, 13], "an evaluation is not part of an interval"
    assert [row["step"] for row in metrics(Path("runs/run"))] == [3, 6, 9, 12]
    assert sorted(path.name for path in Path("runs/run/film").iterdir()) == [f"{at:08}.png" for at in (4, 8, 12)]


def test_an_evaluation_due_at_the_end_is_done_once(recorded: Recorded) -> None:
    recorded.train("--updates", "5", "--checkpoint-every-updates", "5")
    assert recorded.at("evaluate") == [5]
    assert recorded.at("save") == [0, 5]


def test_a_signal_ends_the_run_and_saves_it(recorded: Recorded) -> None:
    recorded.stop_at = 4
    assert recorded.train() == "at 4"
    assert recorded.at("save") == [0, 4]
    assert recorded.at("evaluate") == []
    assert recorded.printed[-1] == "SIGINT: saving"
    recorded.stop_at = -1
    assert recorded.train(resume=True) == "at 12"
    assert recorded.at("save") == [0, 4, 5, 6, 10, 12]
    assert len(recorded.batches) == 12


def test_other_processes_evaluate_their_shard_and_write_nothing(recorded: Recorded) -> None:
    assert recorded.train(world=World(rank=1, size=1)) == ""
    assert recorded.at("evaluate") == [5, 10, 12]
    for name in ("save_video_frame", "finish"):
        assert recorded.at(name) == []
    assert recorded.at("start_interval") == [0, 3, 5, 6, 9, 10, 12, 12]
    assert recorded.at("save") == [0, 5, 6, 10, 12], "all processes save after an evaluation"


def test_training_images_reach_the_update_with_their_labels(recorded: Recorded) -> None:
    recorded.train("--conditional")
    everything = images()
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(everything.images, everything.labels)}  # noqa: B905
    for first in (0, 5):  # an epoch has 5 updates with 4 images each
        rows = [row for batch in recorded.batches[first : first + 5] for row in zip(*batch, strict=True)]
        assert all(label_of[pixels.numpy().tobytes()] == int(label) for pixels, label in rows)
        assert len({pixels.numpy().tobytes() for pixels, _ in rows}) == len(rows) == 20


def test_the_networks_have_the_shape_and_classes_of_the_data(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []
    make_learner = dcgan.make_learner

    def record(*arguments: Any) -> Learner:
        made.append(arguments[1:])
        return make_learner(*arguments)

    monkeypatch.setattr(dcgan, "make_learner", record)
    recorded.train("--updates", "1")
    assert made == [((1, 28, 28), 3, CPU, World())]


Main = Callable[..., list[str]]


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Return a function that runs the program without training, and returns what it did."""
    monkeypatch.chdir(tmp_path)
    done: list[str] = []
    data = Data(images(), images(), ())

    def train(config: Config, run: Run, given: Data, compute: Compute, world: World, *_: Any) -> str:
        assert (given, compute) == (data, CPU)
        done.append(f"train {run.folder} {world.size}")
        return "trained"

    def load(config: Config, progress: Callable[[str, int, int], None]) -> Data:
        progress("reading", 1, 2)
        return data

    def choose_compute(*arguments: Any) -> Compute:
        done.append("choose_compute")
        return CPU

    monkeypatch.setattr(Data, "load", load)
    monkeypatch.setattr(dcgan, "choose_compute", choose_compute)
    monkeypatch.setattr(dcgan, "train", train)
    monkeypatch.setattr(World, "close", lambda world: done.append("close"))

    def run_main(*words: str, world: World = World()) -> list[str]:  # noqa: B008  (frozen)
        def from_env(device: str) -> World:
            done[:] = [device]
            return world

        monkeypatch.setattr(World, "from_env", from_env)
        dcgan.main([*SMALL, *words])
        return done

    return run_main


def test_the_program_opens_the_run_trains_and_closes(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == ["cpu", "choose_compute", f"train {Path('runs/run')} 1", "close"]
    assert capsys.readouterr().out.splitlines()[-1] == "trained"
    assert Run.read_config(Path("runs/run"), KIND)["config"]["latent_dim"] == 4
    with pytest.raises(UserError, match="already holds a run"):
        main()
    assert main("--resume", "--quiet") == ["cpu", f"train {Path('runs/run')} 1", "close"]
    assert capsys.readouterr().out == "trained\n"


def test_a_batch_is_divided_among_processes_and_parts(main: Main) -> None:
    message = "--batch-size 4 cannot be divided evenly among 2 processes x --accumulation-steps 4"
    with pytest.raises(UserError, match=message):
        main("--accumulation-steps", "4", world=World(size=2))
    with pytest.raises(UserError, match="1 process x --accumulation-steps 3"):
        main("--accumulation-steps", "3")
    assert main("--accumulation-steps", "4")[-1] == "close"


def test_a_checkpoint_of_the_last_update_is_left(recorded: Recorded) -> None:
    recorded.train("--updates", "7")
    assert checkpoint.load(Path("runs/run/checkpoint-0.pt"), KIND)["learner"]["updates"] == 7
