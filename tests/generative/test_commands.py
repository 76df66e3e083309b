"""Tests of the programs that use a finished run: samples, videos, arithmetic, neighbors, export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.generative.finished_run import FEW, HERE, make_run
from tests.markers import needs_onnx
from zerokara.core.config import UserError
from zerokara.core.data import glyphs
from zerokara.generative import arithmetic, export, interpolate, neighbours, sample
from zerokara.generative.arithmetic import combine
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.interpolate import Position, closed_path, open_path, slerp
from zerokara.generative.neighbours import nearest_in_pixels


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder runs/ with an unconditional run and a class-conditional one. Tests must not write to it."""
    root = tmp_path_factory.mktemp("generated")
    make_run(root, "plain")
    make_run(root, "by_class", "--conditional")
    return root / "runs"


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(glyphs, "NUMBER", FEW)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "runs", ignore=shutil.ignore_patterns("events.*"))
    return Path("runs/plain")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def test_generated_images_are_independent_of_their_batch(finished: Path) -> None:
    for name in ("plain", "by_class"):
        sampler = Sampler.load(finished / name, threads=1)
        assert any(isinstance(module, nn.BatchNorm2d) for module in sampler.generator.modules())
        z_NZ, label_N = sampler.latents(40, seed=5), sampler.labels(40)
        together = sampler.generate(z_NZ, label_N).int()
        assert together.float().std() > 1
        alone = sampler.generate(z_NZ[17:18], None if label_N is None else label_N[17:18])
        assert (alone.int() - together[17:18]).abs().max() <= 1  # one level: convolutions sum in another order
        others = z_NZ.clone()
        others[18:] *= 30
        assert (sampler.generate(others, label_N)[17].int() - together[17]).abs().max() <= 1


def test_sample_writes_an_image_grid_that_depends_on_the_seed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample.main([str(run), "--number", "6", "--columns", "3", *HERE])
    where = run / "media" / "samples-best-0.png"
    assert f"{where}: 6 images, update 4" in capsys.readouterr().out
    assert pixels(where).shape == (2 * 56 + 1, 3 * 56 + 2)
    for name, seed in (("again.png", "0"), ("other.png", "1")):
        sample.main([str(run), "--number", "6", "--columns", "3", "--seed", seed, "--out", name, *HERE])
    assert (pixels(Path("again.png")) == pixels(where)).all()
    assert (pixels(Path("other.png")) != pixels(where)).any()


def test_sample_writes_a_folder_but_does_not_overwrite(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "CHUNK", 3)
    sample.main([str(run), "--number", "7", "--folder", "many", *HERE])
    files = sorted(Path("many").iterdir())
    assert [path.name for path in files] == [f"{index:06}.png" for index in range(7)]
    sampler = Sampler.load(run, threads=1)
    expected = sampler.generate(sampler.latents(7, seed=0))[:, 0].int().numpy()
    assert np.abs(np.stack([pixels(path) for path in files]).astype(int) - expected).max() <= 1
    with pytest.raises(UserError, match="contains PNG files already"):
        sample.main([str(run), "--folder", "many", *HERE])


def test_sample_by_label_and_error_messages(run: Path) -> None:
    by_class = str(run.with_name("by_class"))
    sample.main([by_class, "--number", "4", "--label", "3", "--out", "threes.png", *HERE])
    sample.main([by_class, "--number", "4", "--label", "8", "--out", "eights.png", *HERE])
    assert (pixels(Path("threes.png")) != pixels(Path("eights.png"))).any()
    for words, message in (
        ([by_class, "--label", "10"], "from 0 to 9"),
        ([str(run), "--label", "1"], "without classes"),
        ([str(run), "--number", "3000"], "add --folder"),
        ([str(run), "--out", "picture.gif"], r"ends in \.png"),
        (["runs/plian"], "did you mean"),
        ([], r"No run was named: .* runs/by_class\."),
    ):
        with pytest.raises(UserError, match=message):
            sample.main([*words, *HERE])


def test_truncation_multiplies_latent_vectors(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler.load(run, threads=1)
    assert (sampler.latents(3, 5, 0.25) == sampler.latents(3, 5) / 4).all()
    expected = sampler.generate(sampler.latents(3, 5) / 4)
    assert (sampler.sample(3, seed=5, psi=0.25) == expected.permute(0, 2, 3, 1).numpy()).all()
    sample.main([str(run), "--number", "3", "--seed", "5", "--psi", "0.25", "--folder", "few", *HERE])
    assert (pixels(Path("few/000001.png")) == expected[1, 0].numpy()).all()
    for psi in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(UserError, match="psi must be above 0 and at most 1"):
            sampler.sample(1, psi=psi)
        with pytest.raises(UserError, match="psi"):
            sample.main([str(run), "--psi", str(psi), *HERE])


def test_a_contact_sheet_has_a_row_for_each_class(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_class = run.with_name("by_class")
    sample.main([str(by_class), "--per-class", "3", "--seed", "2", *HERE])
    where = by_class / "media" / "classes-best-2.png"
    assert f"{where}: 30 images, update 4, one row each for 0, 1, 2," in capsys.readouterr().out
    sheet = pixels(where)
    assert sheet.shape == (10 * 57 - 1, 3 * 57 - 1)
    sampler = Sampler.load(by_class, threads=1)
    row = sampler.generate(sampler.latents(3, 2), torch.full((3,), 7)).int().numpy()
    for column in range(3):
        image = sheet[7 * 57 : 7 * 57 + 56 : 2, column * 57 : column * 57 + 56 : 2]
        assert np.abs(image.astype(int) - row[column, 0]).max() <= 1
    for words, message in (
        ([str(run), "--per-class", "3"], "without classes: remove --per-class"),
        ([str(by_class), "--per-class", "3", "--label", "1"], "--label has no effect without a plain set"),
        ([str(by_class), "--per-class", "3", "--number", "9"], "--number has no effect without a plain set"),
        ([str(by_class), "--per-class", "3", "--folder", "x"], "--per-class has no effect without an image grid"),
    ):
        with pytest.raises(UserError, match=message):
            sample.main([*words, *HERE])


def test_slerp_changes_direction_and_length_at_a_constant_rate() -> None:
    x, y = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    third = slerp(x, y, 1 / 3)
    expected = (2 + 2 / 3) * torch.tensor([[3**0.5 / 2, 0.5, 0.0]])  # 30 of 90 degrees, a third of the way from 2 to 4
    torch.testing.assert_close(third, expected)
    for a, b in ((x, y), (x, x), (x, -x), (x, 3 * x)):
        torch.testing.assert_close(slerp(a, b, 0.0), a)
        torch.testing.assert_close(slerp(a, b, 1.0), b)
        assert slerp(a, b, 0.4).isfinite().all()
    torch.testing.assert_close(slerp(x, 3 * x, 0.5), 2 * x)
    random = torch.randn(2, 50, 100)
    lengths = slerp(random[0], random[1], 0.5).norm(dim=1)
    torch.testing.assert_close(lengths, random.norm(dim=2).mean(0))


def test_paths_pass_all_points() -> None:
    closed = list(closed_path(3, 4))
    assert len(closed) == 12
    assert closed[::4] == [Position(0, 1, 0.0), Position(1, 2, 0.0), Position(2, 0, 0.0)]
    assert closed[-1] == Position(2, 0, 0.75), "the way back to the first"
    halves = [Position(0, 1, 0.0), Position(0, 1, 0.5), Position(1, 2, 0.0), Position(1, 2, 0.5), Position(2, 2, 0.0)]
    assert list(open_path(3, 5)) == halves
    assert list(open_path(2, 1)) == [Position(0, 1, 0.0)]


def test_interpolate_writes_a_video(run: Path) -> None:
    interpolate.main([str(run), "--number", "4", "--points", "2", "--steps", "3", "--strip", "7", *HERE])
    with av.open(str(run / "media" / "interpolation-best-0.mp4")) as video:
        frames = [frame.to_ndarray(format="gray") for frame in video.decode(video=0)]
    assert len(frames) == 6
    assert frames[0].shape == (114, 114)
    assert np.abs(frames[0].astype(int) - frames[3]).max() > 8
    strip = pixels(run / "media" / "interpolation-best-0.png")
    assert strip.shape == (4 * 57 - 1, 7 * 57 - 1)
    assert np.abs(strip[:56, :56].astype(int) - frames[0][:56, :56]).mean() < 3, "the first frame, compressed"


def test_combined_latents_by_hand() -> None:
    z_NZ = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0], [0.0, 1.0]])
    terms = [(1.0, (0, 1)), (-1.0, (2,)), (1.0, (3,))]
    assert combine(z_NZ, terms, normal=False).tolist() == [2 - 5 + 0, 1 - 5 + 1]
    torch.testing.assert_close(combine(z_NZ, terms, normal=True), torch.tensor([-3.0, -3.0]) / 2.5**0.5)
    many = torch.randn(30_000, 8)
    deviation = torch.stack(
        [combine(many[i : i + 9], [(1, (0, 1, 2)), (-1, (3, 4)), (1, (5,))], True) for i in range(4000)]
    )
    assert deviation.std().item() == pytest.approx(1, abs=0.05)


def test_arithmetic_writes_an_image_grid(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plain", "by_class"):
        arithmetic.main([f"runs/{name}", "--mean", "1", "2", "--minus", "3", "--plus", "4", *HERE])
        assert pixels(Path(f"runs/{name}/media/arithmetic-best-0.png")).shape == (3 * 57 - 1, 4 * 57 - 1)
    assert "mean minus plus" in capsys.readouterr().out
    with pytest.raises(UserError, match="--mean names no images"):
        arithmetic.main([str(run), "--plus", "4", *HERE])
    with pytest.raises(UserError, match="numbered from 0"):
        arithmetic.main([str(run), "--mean", "-1", *HERE])


def test_neighbors_are_found_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    train = torch.randint(256, (50, 1, 6, 6), dtype=torch.uint8)
    generated = train[[3, 49, 20]].clone()
    generated[:, 0, 0, 0] ^= 1
    for chunk in (7, 100):
        monkeypatch.setattr(neighbours, "CHUNK", chunk)
        assert nearest_in_pixels(generated, train).tolist() == [3, 49, 20]


def test_neighbours_writes_an_image_grid(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    neighbours.main([str(run), "--number", "4", "--columns", "2", *HERE])
    assert pixels(run / "media" / "neighbours-best-0.png").shape == (2 * 57 - 1, 6 * 57 - 1)
    assert "580 training images" in capsys.readouterr().out


@needs_onnx
@pytest.mark.usefixtures("onnx_operators")
@pytest.mark.parametrize("name", ["plain", "by_class"])
def test_exported_files_generate_the_same_images_for_any_batch(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    export.main([f"runs/{name}", *HERE])
    assert capsys.readouterr().out.count("largest difference of a pixel") == 2
    sampler = Sampler.load(Path("runs", name), threads=1)
    exported = Sampler.read(Path("runs", name, "export", f"{name}.safetensors"), threads=1)
    session = onnxruntime.InferenceSession(f"runs/{name}/export/{name}.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(sampler.class_names)
    for number in (1, 5):
        z_NZ, label_N = sampler.latents(number, seed=9), sampler.labels(number)
        expected = sampler.generate(z_NZ, label_N).numpy() / 255
        feed = {"latents": z_NZ.numpy()} | ({} if label_N is None else {"labels": label_N.numpy()})
        assert np.abs(session.run(["pixels"], feed)[0] - expected).max() < 0.6 / 255
        assert (exported.generate(z_NZ, label_N) == sampler.generate(z_NZ, label_N)).all()


def test_a_different_exported_generator_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Sampler.read

    def damaged(path: Path, *, device: str = "cpu", threads: int = 0) -> Sampler:
        sampler = read(path, device=device, threads=threads)
        if path.parent.name != "plain":  # the exported file, not the original
            sampler.generator.project.weight.mul_(1.5)
        return sampler

    monkeypatch.setattr(Sampler, "read", damaged)
    with pytest.raises(UserError, match="differs by"):
        export.main([str(run), "--no-onnx", *HERE])
    assert not (run / "export").exists()
