"""Tests of benchmarks/dcgan_by_clock.py: equal seconds for both sides, ratios by hand, resumption."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from benchmarks import dcgan_against_tutorial as tutorial
from benchmarks import dcgan_by_clock as clock
from tests.generative.finished_run import TINY
from tests.random_lite0 import use_random_weights
from zerokara.core.config import UserError
from zerokara.core.data import ImageSet, glyphs
from zerokara.core.models import lite0
from zerokara.generative import dcgan
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import check_discriminator
from zerokara.generative.scoring.distances import Features
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


def test_updates_are_planned_from_the_speed_without_the_first_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes at the median 96 images/s in batches of 64 are 180 updates; the plan is saved."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, words: list[str]) -> Path:
        assert words[:2] == ["--data", "glyphs"]
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        rows = [{"speed/images_per_s": rate, "train/d_loss": 1.0} for rate in (5, 90, 96, 400)] + [{"eval/fcd": 3.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return folder

    monkeypatch.setattr(clock, "run_ours", run)
    assert clock.plan_updates("p", 2, ["--data", "glyphs"], 64) == 180
    assert clock.plan_updates("p", 2, ["--data", "glyphs"], 64) == 180, "without another run"


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

    tiny = ("--seeds", "1", *TINY[2:])
    monkeypatch.setattr(clock, "run_ours", run)
    monkeypatch.setattr(tutorial, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    result = call("tutorial", "--recipe", "fast")
    (found,) = result["seeds"]
    assert (found["updates"], found["tutorial_updates"], found["seconds"]) == (3, 3, pytest.approx(2.5))
    smaller = min(found[f"tutorial_in_{mode}_mode"]["fd_lite0"] for mode in ("training", "evaluation"))
    assert found["ratio_last"] == pytest.approx(found["ours_last"]["fd_lite0"] / smaller)
    assert found["ratio_best"] == pytest.approx(found["ours_best"]["fd_lite0"] / smaller)
    assert result["worst"]["ratio_last"] == found["ratio_last"]
    assert 0 < result["floor"]["fd_lite0"] < found["ours_last"]["fd_lite0"]
    assert result["protocol"]["real"].startswith("25 of ")
    assert call("tutorial", "--recipe", "fast")["seeds"] == [found]
    other = call("recipes", "--recipes", "fast")
    assert [row["recipe"] for row in other["results"]] == ["fast"]
    assert other["floor"] != result["floor"], "held-out images, not test images"
    assert len(trained) == 1, "finished runs are not trained again"
    assert trained[0].startswith("clock-glyphs-fast-0.05-")
    assert trained[0].endswith("-ours-1")


@pytest.mark.parametrize("name", clock.RECIPES)
def test_recipes_are_options_that_fit_together(name: str) -> None:
    """Two recipes never share the names of their runs, since these depend on all options."""
    arguments = SimpleNamespace(data="cifar10", image_size=0, minutes=1.0)
    one, other = (clock.Recipe(name, arguments, extra) for extra in ((), ("--flip",)))  # type: ignore[arg-type]
    assert one.prefix != other.prefix
    check_discriminator(one.config, (3, 32, 32), 10)


def test_refused_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--minutes must be above 0, got 0"):
        clock.main(["recipes", "--minutes", "0"])
    monkeypatch.setattr(lite0, "PACKAGE", "no-such-package-of-weights")
    for command in ("recipes", "tutorial"):
        with pytest.raises(UserError, match=r"benchmarks\.dcgan_by_clock needs the package no-such-package-of-weights"):
            clock.main([command])
