"""Tests of generative/scoring/feature_extractor.py: the zoo's classifiers for data of other names, resumed runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fd_lite0 import IMAGENET_CLASSES
from zerokara.core import data
from zerokara.core.distributed import World
from zerokara.core.models import model_file
from zerokara.core.run import Run
from zerokara.core.zoo.registry import find_file
from zerokara.generative.gan.config import KIND, Config
from zerokara.generative.scoring.feature_extractor import ALIASES, FeatureExtractor


@pytest.mark.parametrize("name", ALIASES)
def test_data_sets_have_the_classifier_of_another_name(name: str) -> None:
    extractor = FeatureExtractor.choose(Config(data=name), (3, 64, 64))
    assert extractor.fingerprint == model_file.fingerprint(find_file(ALIASES[name]))
    assert extractor.name == "fcd"


def test_photographs_has_the_classes_of_imagenette() -> None:
    metadata = FeatureExtractor.choose(Config(data="imagenette64"), (3, 64, 64)).metadata
    assert metadata is not None
    assert metadata.classes == tuple(sorted(IMAGENET_CLASSES))


def test_photographs_has_the_classes_of_the_folders(data_dir: Path) -> None:
    metadata = FeatureExtractor.choose(Config(data="imagenette64"), (3, 64, 64)).metadata
    assert metadata is not None
    assert data.load("imagenette64", "test", data_dir=data_dir).classes == metadata.classes


@pytest.mark.parametrize(("saved", "expected"), [("random_fd", "random_fd"), ("fcd", "fcd")])
def test_a_resumed_run_keeps_the_random_network_of_its_best_checkpoint(
    saved: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(data="imagenette64", name="run")
    with Run(config, kind=KIND, name="run", resume=False, quiet=True, world=World()) as run:
        assert FeatureExtractor.of_run(config, (3, 64, 64), run).name == "fcd"
        run.log(1, {f"eval/{saved}": 3.0})
        run.flush()
    resumed = replace(config, resume=True)
    with Run(resumed, kind=KIND, name="run", resume=True, quiet=True, world=World()) as run:
        assert FeatureExtractor.of_run(resumed, (3, 64, 64), run).name == expected
