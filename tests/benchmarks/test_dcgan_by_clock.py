"""Tests of benchmarks/dcgan_by_clock.py: equal seconds for both sides, ratios by hand, resumption, and MNIST."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from benchmarks import dcgan_against_tutorial as tutorial
from benchmarks import dcgan_by_clock as clock
from benchmarks import dcgan_scores
from benchmarks.dcgan_recipes import RECIPES
from tests.generative.finished_run import TINY, make_run
from tests.random_lite0 import use_random_weights
from zerokara.core.command_line import parse
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet, glyphs
from zerokara.core.models import lite0, model_file
from zerokara.core.zoo import provenance
from zerokara.core.zoo.registry import find_file
from zerokara.generative import dcgan
from zerokara.generative.gan.config import PRESETS, Config, read_config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import check_discriminator
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.distances import Features
from zerokara.generative.scoring.feature_extractor import FeatureExtractor, label_accuracy
from zerokara.generative.scoring.lite0 import Lite0


def random_data() -> Data:
    pixels = torch.randint(0, 256, (200, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = ImageSet(pixels, torch.zeros(200, dtype=torch.int64), ("any",), "random pixels")
    return Data(images, images.take(slice(0, 100)), ())


def weights(trained: tutorial.Tutorial) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained.generator.parameters()])


def test_the_tutorial_trains_for_the_seconds_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an update a second, 2.5 seconds are 3 updates; resumed, it ends where an undisturbed one ends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tutorial, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    monkeypatch.setattr(tutorial, "BATCH", 4)
    data = random_data()
    assert tutorial.train_tutorial("a", data, float("inf"), 1, 2.5).updates == 3
    resumed = tutorial.train_tutorial("a", data, float("inf"), 1, 4)
    assert (resumed.updates, resumed.seconds) == (4, 4)
    assert tutorial.train_tutorial("a", data, float("inf"), 1, 4).updates == 4
    by_updates = tutorial.train_tutorial("b", data, 4, 1)
    assert torch.equal(weights(resumed), weights(by_updates))


def write_metrics(folder: Path, rows: Sequence[Mapping[str, float | None]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def test_updates_are_planned_from_a_run_with_as_many_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 updates of 64 images at the median 96 images/s are 400 of its 430 s; 30 s of two minutes are subtracted."""
    monkeypatch.chdir(tmp_path)
    words = ["--data", "glyphs", "--log-every-updates", "300"]

    def train(name: str, given: Sequence[str]) -> tuple[Path, float]:
        config = parse(Config, PRESETS, list(given), "")
        assert (config.data, config.updates, config.eval_every_updates) == ("glyphs", 600, 100)
        assert config.log_every_updates == 50, "several intervals, whatever the command says"
        rows = [{"speed/images_per_s": rate, "train/d_loss": 1.0} for rate in (5, 90, 96, 400)] + [{"eval/fcd": 3.0}]
        write_metrics(Path("runs") / name, rows)
        return Path("runs") / name, 430.0

    def never(name: str, given: Sequence[str]) -> tuple[Path, float]:
        raise AssertionError

    with pytest.raises(UserError, match=r"--minutes 0\.5 is not more than the 30 s that the evaluations and the start"):
        clock.plan_updates("short", 0.5, words, 64, train)
    assert clock.plan_updates("p", 2, words, 64, train) == 135
    assert clock.plan_updates("p", 2, words, 64, never) == 135, "without another run"


@pytest.mark.parametrize(("updates", "every"), [(600, 100), (601, 101), (7, 2), (3, 1)])
def test_every_run_has_at_most_six_evaluations(updates: int, every: int) -> None:
    assert clock.schedule(updates) == ["--updates", str(updates), "--eval-every-updates", str(every)]
    assert len({*range(every, updates + 1, every), updates}) <= clock.EVALUATIONS


def test_metrics_of_a_run_that_is_being_written(tmp_path: Path) -> None:
    """The distance to held-out images is that of the classifier, else that of random features."""
    assert clock.read_metric(tmp_path, "eval/fcd") == []
    write_metrics(tmp_path, [{"eval/random_fd": 4.0}, {"eval/random_fd": 2.0}, {"eval/random_fd": 3.0}])
    assert clock.held_out_last_over_best(tmp_path) == 1.5
    write_metrics(tmp_path, [{"eval/fcd": 8.0}, {"eval/fcd": None}, {"eval/fcd": 2.0}])
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"eval/fcd": 1')
    assert clock.read_metric(tmp_path, "eval/fcd") == [8.0, 2.0]
    assert clock.held_out_last_over_best(tmp_path) == 1


def test_both_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The tutorial gets the seconds of our run, 2.5, with an update a second; both commands share that run."""
    use_random_weights(monkeypatch)
    monkeypatch.setattr(
        Lite0, "extract", lambda _, images: Features(adaptive_avg_pool2d(images.double(), 3).flatten(1))
    )
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 400, "test": 100})
    monkeypatch.setattr(tutorial, "BATCH", 4)
    monkeypatch.setattr(clock, "plan_updates", lambda *_: 3)
    monkeypatch.chdir(tmp_path)
    trained: list[str] = []

    def run(name: str, words: list[str]) -> Path:
        folder = Path("runs") / name
        if not folder.exists():
            trained.append(name)
            dcgan.main([*words, "--name", name])
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"speed/hours": 2.5 / 3600}) + "\n")
        return folder

    def call(*words: str) -> dict[str, Any]:
        clock.main([*words, "--data", "glyphs", "--image-size", "32", "--minutes", "0.05", "--images", "25", *tiny])
        out = capsys.readouterr().out
        result: dict[str, Any] = json.loads(out[out.index("{\n") :])
        return result

    tiny = ("--seeds", "1", *TINY[2:], "--conditional")
    monkeypatch.setattr(clock, "run_ours", run)
    monkeypatch.setattr(tutorial, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    result = call("tutorial", "--recipe", "fast")
    (found,) = result["seeds"]
    assert (found["updates"], found["tutorial_updates"], found["seconds"]) == (3, 3, pytest.approx(2.5))
    smaller = min(found[f"tutorial_in_{mode}_mode"]["fd_lite0"] for mode in ("training", "evaluation"))
    assert found["ratio_last"] == pytest.approx(found["ours_last"]["fd_lite0"] / smaller)
    assert found["ratio_best"] == pytest.approx(found["ours_best"]["fd_lite0"] / smaller)
    assert found["tutorial_seconds"] == 3
    assert found["fraction_of_budget"] == pytest.approx(2.5 / 3)
    assert found["last_over_best"] == found["ours_last"]["fd_lite0"] / found["ours_best"]["fd_lite0"]
    folder = Path("runs") / trained[0]
    distances = clock.read_metric(folder, "eval/fcd")
    assert len(distances) == 3
    assert found["held_out_last_over_best"] == distances[-1] / min(distances)
    sampler = Sampler.load(folder, "last")
    labels = sampler.labels(100)
    assert labels is not None
    generated = FeatureExtractor.load(find_file("glyphs")).extract(sampler.generate(sampler.latents(100, 0), labels))
    by_classifier = found["by_classifier"]["last"]
    assert by_classifier["accuracy"] == pytest.approx(label_accuracy(generated, labels), abs=0.011)
    assert 0 < by_classifier["floor_fcd"] < by_classifier["fcd"]
    assert result["worst"]["ratio_last"] == found["ratio_last"]
    assert by_classifier["protocol"]["classifier"] == model_file.fingerprint(find_file("glyphs"))
    assert by_classifier["floor_accuracy"] > 0.9
    protocol = result["protocol"]
    assert 0 < protocol["floor"]["fd_lite0"] < found["ours_last"]["fd_lite0"]
    assert (protocol["real"][:6], protocol["split"], protocol["weights"]) == ("25 of ", "test", lite0.SHA256[:16])
    assert protocol["real_images"] == protocol["generated_images"] == protocol["floor_images"] == 25
    (saved,) = Path("runs").glob("clock-glyphs-fast-0.05-*-1-25.json")
    assert json.loads(saved.read_text())["protocol"] == protocol
    assert call("tutorial", "--recipe", "fast")["seeds"] == [found]
    other = call("recipes", "--recipes", "fast")
    assert [row["recipe"] for row in other["results"]] == ["fast"]
    assert other["protocol"]["split"] == "held-out"
    assert other["protocol"]["floor"] != protocol["floor"], "held-out images, not test images"
    assert len(trained) == 1, "finished runs are not trained again"
    assert trained[0].startswith("clock-glyphs-fast-0.05-")
    assert trained[0].endswith("-ours-1")


def test_the_classifier_scores_the_named_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def report(options: Any, sampler: Any, progress: Any) -> dict[str, Any]:
        given.append((options.run, options.which, options.images, sampler, progress.silent))
        return {"scores": {"painted": {"fcd": 5.0}, "floor": {"fcd": 1.0}}, "protocol": {"classifier": "0123"}}

    monkeypatch.setattr("zerokara.generative.metrics.report", report)
    monkeypatch.setattr("zerokara.generative.gan.finished.load_sampler", lambda options, program: options.which)
    scores = dcgan_scores.classifier_scores(Path("runs/a"), "last", 500)
    assert scores == {"fcd": 5.0, "floor_fcd": 1.0, "protocol": {"classifier": "0123"}}
    dcgan_scores.classifier_scores(Path("runs/a"), "best", 25)
    assert given == [("runs/a", "last", 500, "last", True), ("runs/a", "best", 100, "best", True)]


def test_generators_that_began_from_the_weights_of_the_score_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before training, and again by what the run saved."""
    use_random_weights(monkeypatch)
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 400, "test": 100})
    monkeypatch.setattr(clock, "run_ours", pytest.fail)
    monkeypatch.setattr(provenance, "find_weights", lambda name: tmp_path / name)
    monkeypatch.setattr(provenance, "trace", lambda path: ["of the run", lite0.SHA256[:16]])
    message = "was initialized from the weights of FD-Lite0, or from weights that were trained from these"
    for command, recipe in (("recipes", "--recipes"), ("tutorial", "--recipe")):
        with pytest.raises(UserError, match=message):
            clock.main([command, recipe, "r1", "--data", "glyphs", "--pretrained-backbone", "runs/other"])
    monkeypatch.undo()
    use_random_weights(monkeypatch)
    folder = make_run(tmp_path, "plain")
    images = ImageSet(Sampler.load(folder).generate(torch.randn(9, 64)), torch.zeros(9).long(), ("any",), "generated")
    score = dcgan_scores.Score(images, "test", images, 9)
    assert score.of_run(folder, "last")["fd_lite0"] > 0
    content = json.loads((folder / "config.json").read_text())
    content["extra"]["origin"] = [lite0.SHA256[:16]]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        score.of_run(folder, "last")


def test_recipes_with_images_of_different_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """FD-Lite0 resizes images, so it would be computed without an error."""
    use_random_weights(monkeypatch)
    monkeypatch.setattr(Data, "load", lambda config: pytest.fail(f"images of {config.image_size}"))
    words = ["recipes", "--data", "glyphs", "--recipes", "fast", "paper"]
    with pytest.raises(UserError, match=r"different --image-size \(fast none, paper 64\): give one to all\."):
        clock.main(words)
    for size in ("32", "64"):
        with pytest.raises(pytest.fail.Exception, match=rf"images of \({size},\)"):
            clock.main([*words, "--image-size", size])


def test_images_that_the_tutorial_does_not_support_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    use_random_weights(monkeypatch)
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 400, "test": 100})
    monkeypatch.setattr(clock, "run_ours", pytest.fail)
    for size, message in (("28", "support sides of 32 or 64, got 28"), ("48", "support sides of 32 or 64, got 48")):
        with pytest.raises(UserError, match=message):
            clock.main(["tutorial", "--data", "glyphs", "--image-size", size, "--seeds", "1"])


def test_the_tutorial_gets_the_images_and_the_threads_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of an environment differ between seeds, and threads may be chosen by the run."""
    monkeypatch.chdir(tmp_path)
    arguments = SimpleNamespace(data="frames:zerokara/Catch-v0", image_size=32, minutes=1.0)
    recipe = clock.Recipe("fast", arguments, ())  # type: ignore[arg-type]
    monkeypatch.setattr(recipe, "train", lambda seed: (Path("runs"), {"seed": seed, "seconds": 9.0}))
    monkeypatch.setattr(Data, "load", lambda config: f"frames of seed {config.seed}")
    monkeypatch.setattr(clock, "read_config", lambda folder: {"extra": {"compute": {"threads": 3}}})
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    given: list[Any] = []

    def train_tutorial(name: str, *words: Any) -> tutorial.Tutorial:
        given.extend(words)
        raise InterruptedError

    monkeypatch.setattr(clock, "train_tutorial", train_tutorial)
    with pytest.raises(InterruptedError):
        clock.compare_seed(recipe, 2, SimpleNamespace(number=25))  # type: ignore[arg-type]
    assert given == ["frames of seed 2", float("inf"), 2, 9.0]
    assert threads == [3], "those of the run"


class Training:
    """A process of generative.dcgan that saves two evaluations, at these polls (1: the first)."""

    commands: list[list[str]]
    end = 0
    evaluations: tuple[int, ...] = (2, 3)

    def __init__(self, command: list[str], stdout: Any) -> None:
        self.commands.append(command)
        self.command = command
        self.folder = Path("runs") / command[command.index("--name") + 1]
        self.polls, self.returncode = 0, 0

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        self.returncode = self.end

    def poll(self) -> int | None:
        self.polls += 1
        if self.polls in self.evaluations:
            distance = self.polls + 3.0 * ("--conditional" in self.command)
            write_metrics(self.folder, [{"eval/confident": self.polls / 4 + 0.1, "eval/fcd": distance}])
        return self.end if self.polls == 4 else None


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Training]:
    """Replace the processes by such ones, and the clock by one that advances by a second whenever it is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Training, "commands", [], raising=False)
    monkeypatch.setattr(subprocess, "Popen", Training)
    steps = SimpleNamespace(perf_counter=itertools.count().__next__, sleep=lambda seconds: None)
    monkeypatch.setattr(clock, "time", steps)
    return Training


def test_mnist_is_timed_from_the_start_of_the_command(
    training: type[Training], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """60% of the images are confident after 2 s and 85% after 3 s; a command ends after 4 s.

    The distances of the run without classes are 2 and 3, those of the run with classes 5 and 6.
    """
    monkeypatch.setattr(clock, "plan_updates", lambda *_: 30)
    monkeypatch.setattr(clock, "classifier_scores", lambda folder, which, images: {"fcd": 5.0, "images": images})

    def call() -> dict[str, Any]:
        clock.main(["mnist", "--seeds", "7", "--minutes", "0.1", "--images", "10", "--flip"])
        printed = capsys.readouterr()
        errors.append(printed.err)
        result: dict[str, Any] = json.loads(printed.out)
        return result

    errors: list[str] = []
    result = call()
    assert "-ours-7 took 67% of --minutes: something else used the machine." in errors[0]
    (found,) = result["seeds"]
    assert found["confident_at_seconds"] == [[2, 0.6], [3, 0.85]]
    assert found["seconds_until_confident"] == 3
    assert (found["seconds"], found["updates"]) == (4, 30)
    assert found["fraction_of_budget"] == pytest.approx(4 / 6)
    assert found["by_classifier"] == {"fcd": 5.0, "images": 10}
    assert found["confident_held_out_last_over_best"] == 3 / 2
    assert found["held_out_last_over_best"] == 6 / 5
    plain, by_class = (parse(Config, PRESETS, command[command.index("--name") :], "") for command in training.commands)
    assert (plain.data, plain.seed, plain.conditional, plain.flip) == ("mnist", 7, False, True)
    assert (plain.updates, plain.eval_every_updates) == (2_000, 250)
    assert (by_class.seed, by_class.conditional, by_class.updates, by_class.eval_every_updates) == (7, True, 30, 5)
    assert call()["seeds"] == [found]
    assert len(training.commands) == 2, "finished measurements are not repeated"


def test_an_evaluation_just_before_the_end_counts(training: type[Training], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "evaluations", (2, 4))
    folder, seconds, evaluated = clock.watch("a", [])
    assert evaluated == [2, seconds] == [2, 4]
    assert len(clock.read_metric(folder, "eval/confident")) == 2


def test_pictures_of_ones_own_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their runs have settings that the tutorial, and the images of the comparison, would not have."""
    use_random_weights(monkeypatch)
    message = (
        r"is a path, and .*: give --image-size, --grayscale or --no-grayscale, --background, --held-out-images, "
        r"--no-augment-few-images\.$"
    )
    for command in ("recipes", "tutorial"):
        with pytest.raises(UserError, match=message):
            clock.main([command, "--data", str(tmp_path)])
    with pytest.raises(UserError, match=message.replace("--image-size, ", "")):
        tutorial.main(["quality", "--data", str(tmp_path)])


@pytest.mark.parametrize("name", ["fast", "fast-diffaugment", "fast-ada"])
def test_pictures_of_ones_own_need_all_that_a_run_would_choose(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(90):
        pixels = random.integers(256, size=(36, 32 + index % 3, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    arguments = SimpleNamespace(data=str(tmp_path), image_size=32, minutes=1.0)
    given = ["--no-grayscale", "--background", "white", "--held-out-images", "10", "--batch-size", "16"]
    if name == "fast":
        with pytest.raises(UserError, match=r"give --no-augment-few-images\.$"):
            clock.Recipe(name, arguments, given)  # type: ignore[arg-type]
    recipe = clock.Recipe(name, arguments, [*given, "--no-augment-few-images"])  # type: ignore[arg-type]
    config, data = Data.load_with_defaults(read_config(recipe.words))
    assert replace(config, name="") == recipe.config, "the run chooses nothing"
    assert (data.train.shape, len(data.held_out)) == ((3, 32, 32), 10)


def test_a_command_that_fails_or_was_interrupted_has_no_time(
    training: type[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "end", 1)
    with pytest.raises(subprocess.CalledProcessError):
        clock.train_by_the_wall_clock("a", [])
    with pytest.raises(UserError, match="a was interrupted, so its time is not known: delete this folder"):
        clock.train_by_the_wall_clock("a", [])


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_options_that_fit_together(name: str) -> None:
    """Two recipes never share the names of their runs, since these depend on all options."""
    arguments = SimpleNamespace(data="cifar10", image_size=0, minutes=1.0)
    one, other = (clock.Recipe(name, arguments, extra) for extra in ((), ("--flip",)))  # type: ignore[arg-type]
    timed = clock.Recipe(name, arguments, (), whole_command=True)  # type: ignore[arg-type]
    assert len({one.prefix, other.prefix, timed.prefix}) == 3
    check_discriminator(one.config, (3, 32, 32), 10)


def test_refused_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--minutes must be above 0, got 0"):
        clock.main(["recipes", "--minutes", "0"])
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    for command in ("recipes", "tutorial"):
        with pytest.raises(UserError, match=r"benchmarks\.dcgan_by_clock needs the package no-such-package-of-weights"):
            clock.main([command])
