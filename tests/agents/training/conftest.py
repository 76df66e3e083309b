"""Fixture that creates recorded sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.training.recorded import SETTINGS, Make, Recorded
from zerokara.agents.configs.dqn import Config
from zerokara.core.distributed import World
from zerokara.core.run import Run


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that creates a recorded session of the run "run", given changes of the config."""
    with contextlib.ExitStack() as stack:

        def make_session(*, resume: bool = False, world: World = World(), **changes: Any) -> Recorded:  # noqa: B008
            stack.close()
            config = Config(**(SETTINGS | changes))
            run = Run(config, kind="dqn", name="run", resume=resume, quiet=True, root=tmp_path)
            return Recorded(stack.enter_context(run), config, world, monkeypatch)

        yield make_session
