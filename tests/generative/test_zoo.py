"""Tests of generators of the zoo: found by name by every program that uses one, and what the package ships."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.generative.finished_run import FEW, HERE, make_run
from zerokara.core.config import UserError
from zerokara.core.data import glyphs
from zerokara.core.zoo import registry as zoo
from zerokara.generative import arithmetic, export, interpolate, metrics, neighbours, sample
from zerokara.generative.gan import finished
from zerokara.generative.gan.sampler import GeneratorMetadata, Sampler, find_generator

SOURCES = {"mnist": "CC BY-SA", "glyphs": "drawn by zerokara"}  # words of the metadata about the data
CLASSIFIERS = zoo.FOLDER / "classifiers"  # the tests replace zoo.FOLDER


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("generated"), "plain")


@pytest.fixture
def drawn(run: Path, empty_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a zoo with one generator, the best one of the run, and no run folder beside it."""
    path = empty_zoo / "generators" / "drawn.safetensors"
    path.parent.mkdir()
    shutil.copy(run / "generator-best.safetensors", path)
    shutil.copytree(CLASSIFIERS, empty_zoo / "classifiers")
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    return path


def test_a_generator_is_loaded_by_name_file_or_folder(drawn: Path, run: Path) -> None:
    of_run = Sampler.load(run, threads=1)
    assert (of_run.name, of_run.source, of_run.output_folder) == ("plain", run, run)
    z_NZ = of_run.latents(5, seed=0)
    for source in ("drawn", str(drawn), drawn):
        sampler = Sampler.load(source, threads=1)
        assert (sampler.name, sampler.source, sampler.update) == ("drawn", drawn, of_run.update)
        assert sampler.output_folder == Path("runs/outputs-drawn")
        assert (sampler.generate(z_NZ) == of_run.generate(z_NZ)).all()
        assert sampler.scores == of_run.scores


def test_files_of_a_run_have_its_origin_and_so_have_copies(drawn: Path, run: Path) -> None:
    assert Sampler.load(drawn).origin == Sampler.load(run).origin != ()
    assert finished.run_extra(Sampler.load(drawn)) == {"origin": []}  # no pretrained backbone
    assert "origin" not in finished.run_extra(Sampler.load(run))  # config.json as it is


@pytest.mark.parametrize(
    ("program", "words", "file"),
    [
        (sample, ["--number", "4"], "media/samples-best-0.png"),
        (interpolate, ["--number", "1", "--points", "2", "--steps", "2"], "media/interpolation-best-0.mp4"),
        (arithmetic, ["--mean", "0", "1"], "media/arithmetic-best-0.png"),
        (neighbours, ["--number", "2"], "media/neighbours-best-0.png"),
        (export, ["--no-onnx"], "export/drawn.safetensors"),
    ],
    ids=["sample", "interpolate", "arithmetic", "neighbours", "export"],
)
def test_programs_write_into_a_folder_of_its_name(
    program: object, words: list[str], file: str, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.main(["drawn", *words, *HERE])  # type: ignore[attr-defined]
    path = Path("runs/outputs-drawn", file)
    assert path.is_file()
    assert str(path) in capsys.readouterr().out
    assert [path.name for path in drawn.parent.iterdir()] == ["drawn.safetensors"], "nothing is written to the package"


def test_metrics_of_a_generator_of_the_zoo(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics.main(["drawn", "--images", "100", "--json", *HERE])
    assert '"run": "drawn"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dranw"], r"There is no dranw \(did you mean drawn\?\): .* name in the zoo \(drawn\)\."),
        (["drawn", "--which", "last"], "--which last selects a generator of a run folder, and drawn is one file"),
        ([], r"No run was named: give its folder or a name in the zoo \(drawn\), as in .* drawn\."),
    ],
)
def test_error_messages(words: list[str], message: str, drawn: Path) -> None:
    with pytest.raises(UserError, match=message):
        sample.main(words)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", zoo.files("generators"))
def test_generators_of_the_package_are_small_scored_and_generate(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metadata = GeneratorMetadata.read_metadata(find_generator(name))
    assert metadata is not None
    assert find_generator(name).stat().st_size <= zoo.MAX_BYTES
    assert metadata.figures["fcd_float16"] <= 1.05 * metadata.figures["fcd"]
    assert metadata.protocol["painted_images"] == 10_000
    assert metadata.command.startswith("python -m ")
    assert SOURCES[metadata.config["data"]] in metadata.data
    sample.main([name, "--number", "9", *HERE])
    with Image.open(f"runs/outputs-{name}/media/samples-best-0.png") as grid:
        assert np.asarray(grid).std() > 30, "not a uniform image"
