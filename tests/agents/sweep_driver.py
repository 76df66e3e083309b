"""Program agents.sweep with the fake agent of fake_agent.py, for tests of several drivers as processes."""

from __future__ import annotations

import sys
from unittest import mock

from matplotlib.figure import Figure

from zerokara.agents import sweep
from zerokara.agents.sweeping import config as sweep_config
from zerokara.agents.sweeping.search_space import AGENTS
from zerokara.core.config import run_main


def main() -> None:
    """Run a driver."""
    fake = {**AGENTS, "dqn": AGENTS["dqn"]._replace(module="tests.agents.fake_agent")}
    for module in (sweep, sweep_config):
        vars(module)["AGENTS"] = fake
    sweep.POLL_SECONDS = 0.02
    mock.patch.object(Figure, "draw").start()  # figures stay blank
    sweep.main(sys.argv[1:])


if __name__ == "__main__":
    run_main(main)
