"""Default names of runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest

from zerokara.core.command_line import parse
from zerokara.core.run_config import default_name
from zerokara.vision.classification.config import PRESETS, Config


@dataclass(frozen=True)
class Style:
    pictures: tuple[str, ...] = ("photos/old town.jpg", "wave (blue).png")
    env: str = "ALE/Pong-v5"
    rom: str = "package:Game-v0"
    seed: int = 3


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (["pictures", "seed"], "kind-old_town-wave_blue_-3"),
        (["env", "seed"], "kind-Pong-v5-3"),
        (["rom"], "kind-package-Game-v0"),
        ([], "kind"),
    ],
)
def test_paths_and_ids_become_parts_of_a_name(fields: list[str], name: str) -> None:
    assert default_name("kind", Style(), fields) == name


def test_name_of_a_classifier() -> None:
    config = parse(Config, PRESETS, ["--data", "../my pets.zip", "--seed", "3", "--preset", "book"], "")
    fields = importlib.import_module("zerokara.vision.classify").NAME_FIELDS
    assert default_name("classify", config, fields) == "classify-my_pets-deep_cnn-book-3"
