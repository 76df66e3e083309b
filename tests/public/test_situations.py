"""Situations of docs/situations.md from Python: finished runs, longer runs, many runs, environments that raise."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

import zerokara
from tests.public.blink import Blink
from tests.public.test_training import TINY_DQN, images
from zerokara.core import checkpoint
from zerokara.core.data import glyphs

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(path: Path) -> dict[str, list[float]]:
    """Return the numbers of the weights and of the optimizer in the checkpoint of a DQN run."""
    state = checkpoint.load(path, "dqn")["learner"]
    return {name: tensor.flatten().tolist() for name, tensor in state["network"].items()}


def test_a_finished_agent_that_is_resumed_is_not_trained_further() -> None:
    settings = {**TINY_DQN, "eval_every_steps": 200, "total_steps": 200}
    zerokara.train_dqn(env=Blink, name="a", **settings)
    folder = Path("runs/a")
    before = [(folder / name).read_bytes() for name in ("metrics.jsonl", "agent-best.safetensors")]
    trained = weights(folder / "checkpoint-0.pt")
    for total_steps in (200, 100):  # a run cannot be shortened either
        assert zerokara.train_dqn(env=Blink, name="a", resume=True, **{**settings, "total_steps": total_steps}).step
        assert [(folder / name).read_bytes() for name in ("metrics.jsonl", "agent-best.safetensors")] == before
        assert weights(folder / "checkpoint-0.pt") == trained


def test_a_finished_agent_that_is_trained_for_more_steps_does_not_explore_anew() -> None:
    zerokara.train_dqn(env=Blink, name="a", **{**TINY_DQN, "total_steps": 200})
    trained = weights(Path("runs/a/checkpoint-0.pt"))
    zerokara.train_dqn(env=Blink, name="a", resume=True, **{**TINY_DQN, "total_steps": 400})
    rows = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    epsilon = {row["step"]: row["train/epsilon"] for row in rows if "train/epsilon" in row}
    assert list(epsilon) == list(range(40, 401, 40))
    assert epsilon[40] > 0.5
    assert set(list(epsilon.values())[4:]) == {0.01}  # from step 200
    assert weights(Path("runs/a/checkpoint-0.pt")) != trained


def test_finished_generators_and_classifiers_that_are_resumed_keep_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "pictures", 130)
    monkeypatch.setattr(glyphs, "NUMBER", {"train": 120, "test": 40})
    hardware = {"quiet": True, "device": "cpu", "precision": "float32", "threads": 1}
    gan: dict[str, Any] = {
        "data": "pictures",
        "image_size": (28,),
        "updates": 4,
        "eval_every_updates": 4,
        "eval_images": 100,
        "log_every_updates": 2,
        "batch_size": 4,
        "generator_width": 0.05,
        "discriminator_width": 0.05,
        "latent_dim": 4,
        "preview_images": 4,
        **hardware,
        "name": "gan",
    }
    classifier: dict[str, Any] = {
        "data": "glyphs",
        "backbone": "deep_cnn",
        "width_multiplier": 0.1,
        "validation_images": 20,
        "epochs": 1,
        "batch_size": 20,
        "test": True,
        "tta_views": 1,
        "elastic_pixels": 0,
        "compile": "off",
        **hardware,
        "name": "classifier",
    }
    for train, settings in ((zerokara.train_dcgan, gan), (zerokara.train_classifier, classifier)):
        train(**settings)
        folder = Path("runs", settings["name"])
        names = [
            path for path in folder.iterdir() if path.suffix in (".safetensors", ".jsonl") or path.stem == "result"
        ]
        assert len(names) >= (3 if train is zerokara.train_classifier else 2)
        before = [path.read_bytes() for path in names]
        train(resume=True, **settings)
        assert [path.read_bytes() for path in names] == before


def test_many_runs_in_one_process_leave_no_files_and_threads_behind() -> None:
    process = psutil.Process()
    files, threads = [], []
    for number in range(4):
        settings = {**TINY_DQN, "total_steps": 80, "eval_every_steps": 40, "capture_video": number % 2 == 0}
        zerokara.train_dqn(env="zerokara/Catch-v0", name=str(number), **settings)
        files.append(process.num_fds())
        threads.append(threading.active_count())
    assert files[-1] <= files[0]  # fewer, if files of earlier tests are closed meanwhile
    assert threads[-1] <= threads[0]


def test_a_run_whose_environment_raised_resumes_from_its_last_checkpoint() -> None:
    steps = [0]

    class Raising(Blink):
        def step(self, action: Any) -> Any:
            steps[0] += 1
            if steps[0] == 300:
                raise ConnectionError("simulator lost")
            return super().step(action)

    settings = {**TINY_DQN, "checkpoint_every_steps": 100}
    with pytest.raises(zerokara.UserError, match=r"Raising raised ConnectionError: simulator lost; this happened"):
        zerokara.train_dqn(env=Raising, name="a", **settings)
    before = zerokara.load_agent("runs/a", threads=1, env=Raising, which="last").step
    assert before >= 100
    assert zerokara.train_dqn(env=Raising, name="a", resume=True, **settings).step == 400
