"""Fixture with actors in the process of the test instead of Ray."""

from __future__ import annotations

import pytest

from tests.agents.actors.local_actors import LocalActors
from tests.agents.scripted import ScriptedEnv
from zerokara import envs
from zerokara.agents.actors import feed


@pytest.fixture
def local_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "RayActors", LocalActors)
    monkeypatch.setattr(envs, "make", lambda env, num_envs, **options: ScriptedEnv(num_envs))
