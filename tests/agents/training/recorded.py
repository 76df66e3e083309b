"""Session without a network in the scripted environments of tests/agents/scripted.py, and a record of what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.resources import resources
from tests.agents.scripted import SIZE, Origin, ScriptedEnv, origin_of
from zerokara import envs
from zerokara.agents.configs.dqn import Config
from zerokara.agents.training import session
from zerokara.agents.training.evaluation import Scores
from zerokara.agents.training.session import Session
from zerokara.core.distributed import World
from zerokara.core.run import Run

NUM_ENVS = 4
SETTINGS: dict[str, Any] = {
    "num_envs": NUM_ENVS,
    "frame_stack": 2,
    "image_size": SIZE,
    "total_steps": 80,
    "eval_every_steps": 0,
    "log_every_steps": 20,
    "checkpoint_every_steps": 32,
    "eval_episodes": 3,
    "capture_video": False,
    "name": "run",
}


def scores(mean: float, *, cut: int = 0) -> Scores:
    """Scores of three episodes."""
    return Scores((mean - 1, mean, mean + 1), (10, 20, 60), cut)


class Learner:
    """Learner without networks, with a record of the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.network = torch.nn.Module()
        self.network.backbone = torch.nn.Linear(1, 1)

    def read_metrics(self) -> dict[str, float]:
        return {"train/loss": 0.5}

    def update_copies(self) -> None:
        self.calls.append("update_copies")


class Policy:
    network = torch.nn.Linear(1, 1)


class Counter:
    """Part of an algorithm whose state is a number."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> None:
        self.value = sum(state["value"] for state in states.values()) + 1_000 * rank + step


class Walk(Session):
    """Session whose iteration is one step with action 0, and one update."""

    epsilon = 0.25

    def __init__(self, config: Config, run: Run, world: World) -> None:
        super().__init__(config, run, resources(config, world), "agents.dqn")
        self.learner, self.policy = Learner(), Policy()  # type: ignore[assignment]
        self.counter, self.generator = Counter(), torch.Generator().manual_seed(5)
        self.register(counter=self.counter, generator=self.generator)

    def iterate(self) -> None:
        """Do one step."""
        self.record(self.env.step(np.zeros(self.num_envs, np.int64)))
        self.updates += 1
        self.counter.value += 1


class Seeded(ScriptedEnv):
    """Scripted environments that record the seeds of their resets."""

    def __init__(self, num_envs: int, seeds: list[int]) -> None:
        super().__init__(num_envs)
        self.seeds = seeds

    def reset(self, seed: int) -> np.ndarray:
        self.seeds.append(seed)
        return super().reset(seed)


class Recorded:
    """A session, and a record of what it did at which step."""

    def __init__(self, run: Run, config: Config, world: World, patch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, int, dict[str, Any]]] = []  # environments
        self.seeds: list[int] = []
        self.evaluations: list[dict[str, Any]] = []
        self.scores: list[Scores] = []  # of the following evaluations; the last one is repeated
        self.images: list[tuple[Origin, int]] = []
        self.videos: list[int] = []
        self.saves: list[int] = []

        def make(env: str, num_envs: int, **settings: Any) -> ScriptedEnv:
            self.made.append((env, num_envs, settings))
            return Seeded(num_envs, self.seeds)

        def evaluate(policy: Policy, env: ScriptedEnv, **options: Any) -> Scores:
            self.evaluations.append({"step": self.session.step, "env": env, **options})
            return self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]

        def log_images(network: Any, obs: np.ndarray, channels: int, run: Run, step: int) -> None:
            assert (network, channels) == (Policy.network, 1)
            self.images.append((origin_of(obs[0]), step))

        def log_video(policy: Policy, config: Config, run: Run, step: int) -> bool:
            self.videos.append(step)
            return True

        patch.setattr(envs, "make", make)
        patch.setattr(session, "evaluate", evaluate)
        patch.setattr(session, "log_images", log_images)
        patch.setattr(session, "log_video", log_video)
        self.run, self.session = run, Walk(config, run, world)
        save = run.save

        def record_save(path: Path, state: dict[str, Any]) -> None:
            self.saves.append(state["step"])
            save(path, state)

        patch.setattr(run, "save", record_save)

    def train(self, *arguments: Any, each: Callable[[], object] = lambda: None) -> None:
        """Run the loop to its end; `each` is called after every iteration."""
        self.session.start()
        for _ in self.session.iterations(*arguments):
            self.session.iterate()
            each()


Make = Callable[..., Recorded]
