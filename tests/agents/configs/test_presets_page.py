"""Tests of docs/family.md: a section for every preset, and a table with the values of the presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerokara.agents.configs import pqn
from zerokara.agents.configs.dqn import PRESETS, Config

PAGE = (Path(__file__).parents[3] / "docs" / "family.md").read_text("utf-8")
SECTIONS = {text.split("\n")[0]: text for text in PAGE.split("\n## ")[1:]}
ROWS = [line for line in SECTIONS["The presets side by side"].splitlines() if line.startswith("| `")]
TABLE = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in ROWS]


def test_every_preset_has_a_section_with_its_cost() -> None:
    assert set(SECTIONS) >= {*PRESETS, "pqn"}
    without_cost = [name for name in (*PRESETS, "pqn") if "**Cost:**" not in SECTIONS[name]]
    assert without_cost == []


def test_every_preset_has_a_row_in_the_table() -> None:
    assert [row[0] for row in TABLE] == list(PRESETS)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_a_row_lists_the_values_of_the_preset(row: list[str]) -> None:
    name, builds_on, steps, target, replay, optimizer, reuse = row
    config = Config(**{"preset": name, **PRESETS[name]})
    kind, rate = optimizer.split(", ")
    assert builds_on in {"(none)", *PRESETS}
    assert int(steps.replace(",", "")) == config.total_steps
    assert int(target.replace(",", "")) == config.target_update_steps
    assert int(replay.replace(",", "")) == config.replay_capacity
    assert {"Adam": "adam", "centered RMSProp": "rmsprop"}[kind] == config.optimizer
    assert float(rate) == config.learning_rate
    assert reuse == f"{config.batch_size * config.gradient_steps // config.train_every_steps} times"


def test_row_of_pqn() -> None:
    config = pqn.Config()
    row = next(line for line in PAGE.splitlines() if line.startswith("| PQN's"))
    assert (
        f"| {config.total_steps:,} | no target | none | RAdam, {config.learning_rate:g}".replace("0.00025", "2.5e-4")
        in row
    )
    assert row.endswith(f"| {config.update_epochs} times |")
