"""Training with actors in the process of the test (local_actors.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.agents.actors.local_actors import SETTINGS, LocalActors
from tests.agents.resources import resources
from zerokara.agents import dqn
from zerokara.agents.actors import feed
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning.prioritized_replay import PrioritizedReplay
from zerokara.core.run import Run


def make_feed(config: Config, training: dqn.Training) -> feed.ActorFeed:
    return feed.ActorFeed(config, training, training.replay, training.learn, dqn.dqn_loss)


class Fed:
    """Training with its actors, without the rest of the loop."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.config = Config(**(SETTINGS | {"save_replay": False} | changes))
        with Run(self.config, kind="dqn", name="run", resume=False, quiet=True, root=folder) as run:
            self.training = dqn.Training(self.config, run, resources(self.config))
            self.feed = make_feed(self.config, self.training)
        self.training.obs = self.training.env.reset(0)

    @property
    def replay(self) -> PrioritizedReplay:
        assert isinstance(self.training.replay, PrioritizedReplay)
        return self.training.replay

    @property
    def actors(self) -> LocalActors:
        return LocalActors.made

    def iterate(self, number: int) -> None:
        for _ in range(number):
            self.feed.iterate()

    def until(self, steps: int) -> None:
        while self.training.step < steps:
            self.feed.iterate()


def train(folder: Path, name: str = "run", resume: bool = False, **changes: Any) -> str:
    config = Config(**(SETTINGS | {"name": name} | changes))
    with Run(config, kind="dqn", name=name, resume=resume, quiet=True, root=folder) as run:
        return dqn.train(config, run, resources(config))


class Warnings:
    """Function that keeps the warnings of a run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> None:
        self.texts.append(text)
