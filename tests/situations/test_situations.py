"""The situations with files of issue 21: each command gives today's answer, and each test that a row names exists."""

from __future__ import annotations

import ast
import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.situations.boxes import BOXES
from tests.situations.files import Files, Situation
from tests.situations.images import IMAGES, OTHERS, TEXTS
from tests.situations.masks_and_splits import MASKS, SPLITS
from zerokara.core.config import UserError
from zerokara.core.data.boxes import BoxSet
from zerokara.core.data.captions import CaptionSet

SITUATIONS = (*MASKS, *SPLITS, *BOXES, *IMAGES, *TEXTS, *OTHERS)
ROOT = Path(__file__).parents[2]


def answer(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a program says about its data: its error, or its lines before training and facts about its images."""
    name, *words = shlex.split(command)
    program: Any = importlib.import_module(f"zerokara.{name}")
    try:
        if not hasattr(program, "Data"):
            program.main(words)
            return capsys.readouterr().out
        config = program.read_config(words, program.__doc__)
        if name == "generative.dcgan":
            config, data = program.Data.load_with_defaults(config)
            return "\n".join([*facts(data.train), *data.messages])
        data = program.Data.load(config)
    except UserError as error:
        return str(error)
    parts = [data.train, data.validation, getattr(data, "test", data.validation)]
    lines = data.messages(config) if name == "vision.detect" else data.train.messages
    return "\n".join([f"{len(parts[-1])} test images", *(fact for part in parts for fact in facts(part)), *lines])


def facts(images: Any) -> list[str]:
    """Return the number and source of images, their classes, and the first box or caption of each."""
    found = [f"{len(images)} training images", images.source]
    if isinstance(images, CaptionSet):
        pairs = zip(images.names, images.captions, strict=True)
        return found + [f"caption of {name}: {sentences[0]}" for name, sentences in pairs]
    if isinstance(images, BoxSet):
        for name, boxes, scale in zip(images.names, images.boxes, images.scales.tolist(), strict=True):
            found += [f"boxes of {name}: {', '.join(f'{end / scale:g}' for end in box)}" for box in boxes.tolist()]
        return [*found, f"classes: {' | '.join(images.classes)}"]
    return [*found, f"classes: {', '.join(images.classes)}"]


def write(files: Files) -> None:
    """Write files into the current folder. "link:a/b" is a symbolic link to a folder."""
    for name, content in files.items():
        path = Path(name.removeprefix("link:"))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name != name and name.startswith("link:"):
            path.symlink_to(Path(str(content)).resolve())
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("situation", [each for each in SITUATIONS if not each.test], ids=lambda each: each.name)
def test_the_command_gives_its_answer(
    situation: Situation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(situation.files())
    found = answer(situation.command, capsys)
    assert "\n".join(part for part in situation.now if part not in found) == "", found
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("situation", [each for each in SITUATIONS if each.test], ids=lambda each: each.name)
def test_the_test_that_shows_an_answer_exists(situation: Situation) -> None:
    file, _, name = situation.test.partition("::")
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_names_are_unique() -> None:
    assert len({each.name for each in SITUATIONS}) == len(SITUATIONS)
