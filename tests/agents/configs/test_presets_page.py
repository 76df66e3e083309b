"""Tests of docs/family.md and docs/presets.md: every preset has a section, and the tables have the presets' values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from zerokara import envs
from zerokara.agents.configs import pqn, stream
from zerokara.agents.configs.common import Settings
from zerokara.agents.configs.dqn import PRESETS, Config
from zerokara.agents.configs.presets import PAPER_PRESETS

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "family.md").read_text("utf-8")
SECTIONS = {text.split("\n")[0]: text for text in PAGE.split("\n## ")[1:]}
ROWS = [line for line in SECTIONS["The presets side by side"].splitlines() if line.startswith("| `")]
TABLE = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in ROWS]

REFERENCES = {text.split("\n")[0]: text for text in (DOCS / "presets.md").read_text("utf-8").split("\n## ")[1:]}
ALL = REFERENCES.pop("All presets of DQN")


def test_every_preset_has_a_section_with_its_cost() -> None:
    assert set(SECTIONS) >= {*PRESETS, "pqn", "stream"}
    without_cost = [name for name in (*PRESETS, "pqn", "stream") if "**Cost:**" not in SECTIONS[name]]
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


# ---- docs/presets.md


def rows(section: str) -> dict[str, list[str]]:
    """Return the table of a section by setting: reference, value there, value here, equal."""
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len({row[0] for row in cells}) == len(cells), "a setting has two rows"
    return {row[0]: row[1:] for row in cells}


def shown(value: Any) -> str:
    """Format a value as in the tables: 50,000,000, 6.25e-05, on, none."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def is_printed(equal: str, config: Any) -> bool:
    """Return True for "no: words" if an entry in the list that a run prints begins with these words."""
    no, _, words = equal.partition(": ")
    return no == "no" and bool(words) and any(text.startswith(words) for text in config.deviations)


def test_what_is_equal() -> None:
    config = Config(**{**PAPER_PRESETS["data-efficient"], "preset": "data-efficient"})
    assert is_printed("no: convolutions are padded", config)
    for equal in ("yes", "yes: convolutions are padded", "yes; padded here", "no", "no: ", "no: they are padded"):
        assert not is_printed(equal, config)


# A line of a file, in the section of a single file its line only; the paper; a function of BTR's later version, whose
# lines are not counted; a remark in parentheses on what the reference has not.
NAMES_A_PLACE = re.compile(r"\w\.?:\d|^\d|the paper|, later version \(|^\(")


def test_references_name_a_place() -> None:
    for reference in ("lua run_gpu:32", "zoo dqn/run_atari.py:83", "43", "the paper, table 1", "atari:159"):
        assert NAMES_A_PLACE.search(reference)
    for reference in (
        "",
        "btr networks.py, PyTorch's default",
        "lua, zoo dqn/run_atari.py",
        "configs/atari.gin (rate)",
    ):
        assert not NAMES_A_PLACE.search(reference)


def check(section: str, config: Any) -> set[str]:
    """Check the rows of a table against a config. Returns the names of its fields."""
    fields = set()
    for setting, (reference, there, here, equal) in rows(section).items():
        assert NAMES_A_PLACE.search(reference), (setting, reference)
        assert equal == "yes" or is_printed(equal, config), setting
        if setting.startswith("`"):
            fields.add(setting.strip("`"))
            assert here == shown(getattr(config, setting.strip("`"))), setting
        if equal == "yes":
            assert here in (there.split(" (")[0], "the same"), setting
    return fields


def departures(section: str) -> list[str]:
    """Return the list below the table."""
    return [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]


def builds_on(name: str) -> Mapping[str, Any]:
    """Return the values of the preset on which a preset builds; `nature` builds on nothing."""
    section = REFERENCES[name]
    assert ("Builds on `" in section) == (name != "nature")
    return {} if name == "nature" else PAPER_PRESETS[section.split("Builds on `")[1].split("`")[0]]


def test_every_preset_has_a_table_of_references() -> None:
    assert list(REFERENCES) == [*PAPER_PRESETS, "PQN: paper", "PQN: lstm", "Streaming Q(lambda): paper"]


@pytest.mark.parametrize("name", PAPER_PRESETS)
def test_a_table_has_every_value_that_a_preset_sets(name: str) -> None:
    values, parent = PAPER_PRESETS[name], builds_on(name)
    config = Config(**{**values, "preset": name})
    fields = check(REFERENCES[name], config)
    changed = {field for field, value in values.items() if field not in parent or parent[field] != value}
    assert changed <= fields
    assert departures(REFERENCES[name]) == list(config.deviations), "the list that a run prints"


def test_a_preset_without_a_paper_has_no_deviations() -> None:
    assert list(Config(preset="fast").deviations) == []


def test_rows_of_all_presets() -> None:
    for name, values in PAPER_PRESETS.items():
        config = Config(**{**values, "preset": name})
        excepted = {"`gamma`"} if name == "btr" else {"`epsilon_start`"} if config.noisy else set()
        for setting, (_, there, here, equal) in rows(ALL).items():
            if setting.startswith("`") and setting not in excepted:
                assert there == here == shown(getattr(config, setting.strip("`"))), (name, setting)
            if equal.startswith("no") and not (noops(config) == 0 and setting.startswith("no-ops")):
                assert is_printed(equal, config), (name, setting)


def noops(config: Settings) -> int:
    """Return the maximum number of no-ops at a reset of an Atari game."""
    maximum = {**envs.PROTOCOLS[config.protocol], **config.env_settings()}["noop_max"]
    assert isinstance(maximum, int)
    return maximum


CONFIGS: Mapping[str, Settings] = {
    **{name: Config(**{**values, "preset": name}) for name, values in PAPER_PRESETS.items()},
    **{f"pqn {name}": pqn.Config(**{**values, "preset": name}) for name, values in pqn.PRESETS.items()},
    "stream": stream.Config(**stream.PRESETS["paper"]),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_presets_with_no_ops_print_how_many_are_drawn(config: Settings) -> None:
    assert any(" no-ops" in text and "ale-py draws" in text for text in config.deviations) == (noops(config) > 0)


def test_presets_without_no_ops() -> None:
    assert [name for name, config in CONFIGS.items() if noops(config) == 0] == ["dopamine", "munchausen"]


def test_presets_with_priorities_print_that_batches_are_stratified_in_part() -> None:
    stratified = [name for name in PAPER_PRESETS if any("stratified" in text for text in CONFIGS[name].deviations)]
    assert stratified == [name for name, values in PAPER_PRESETS.items() if values.get("per_alpha")]


def test_table_of_pqn() -> None:
    values = pqn.PRESETS["paper"]
    config = pqn.Config(**values)
    fields = check(REFERENCES["PQN: paper"], config)
    assert fields >= {*values, "td_lambda", "rollout_steps", "num_envs"}
    assert departures(REFERENCES["PQN: paper"]) == list(config.deviations)
    longer = {**values, "total_steps": 50_000_000, "epsilon_decay_steps": 5_000_000}
    assert pqn.PRESETS["paper-200m"] == longer


def test_table_of_pqn_with_an_lstm() -> None:
    values, section = pqn.PRESETS["lstm"], REFERENCES["PQN: lstm"]
    config = pqn.Config(**{**values, "preset": "lstm"})
    assert check(section, config) >= {*values, "td_lambda", "learning_rate"}
    assert departures(section) == list(config.deviations)


def test_table_of_streaming() -> None:
    values = stream.PRESETS["paper"]
    section = REFERENCES["Streaming Q(lambda): paper"]
    config = stream.Config(**values)
    fields = check(section, config)
    assert fields >= {*values, *stream.GROUPS["algorithm"]} - {"final_learning_rate", "learning_rate_decay_steps"}
    assert departures(section) == list(config.deviations)
    row = next(line for line in PAGE.splitlines() if line.startswith("| streaming's"))
    assert (
        f"| {stream.Config().total_steps:,} | no target | none | ObGD, {stream.Config().learning_rate:g} | once |"
        in row
    )
