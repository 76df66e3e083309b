"""The scripts in examples/ and the code of docs/python.md run as they are, with shorter training."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zerokara
from tests.markers import needs_onnx
from tests.programs import REPO, start
from zerokara.core.compute import Compute
from zerokara.core.media import write_png
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.learner import make_generator
from zerokara.generative.gan.sampler import Sampler, weights_file

RUNTIME = REPO / "node_modules" / "onnxruntime-web"
needs_browser = pytest.mark.skipif(
    not (RUNTIME.is_dir() and shutil.which("chromium")),
    reason="chromium or onnxruntime-web is missing: apt-get install chromium; npm install --no-save onnxruntime-web",
)
EXAMPLES = sorted((REPO / "examples").glob("*.py"))
# Options that make the runs of the page take a second.
QUICK = (
    "num_envs=2, hidden_units=16, learning_starts=50, batch_size=8, replay_capacity=500, log_every_steps=50, "
    "eval_episodes=2, eval_max_steps=20, capture_video=False, device='cpu', precision='float32', compile='off', "
    "threads=1, quiet=True"
)
QUICK_GAN = (
    "updates=4, eval_every_updates=4, eval_images=100, log_every_updates=2, batch_size=4, generator_width=0.05, "
    "image_size=(28,), discriminator_width=0.05, latent_dim=4, preview_images=4, quiet=True, device='cpu', "
    "precision='float32', threads=1"
)


def run(folder: Path, code: str) -> str:
    """Run Python code as a notebook does, without a file; return what it prints."""
    process = start(folder, "-c", code)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def run_file(folder: Path, name: str, *words: str) -> str:
    """Run an example as a script."""
    path = str(REPO / "examples" / name)
    return run(folder, f"import runpy, sys\nsys.argv = {[path, *words]}\nrunpy.run_path({path!r}, run_name='__main__')")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Return an image of a 1: a dark bar on white paper."""
    image = np.full((60, 60), 230, np.uint8)
    image[10:50, 27:33] = 20
    write_png(tmp_path / "photo.png", image)
    return tmp_path / "photo.png"


def test_train_on_an_environment_of_one_s_own_and_play_it(tmp_path: Path) -> None:
    assert "mean return of 10 episodes: " in run_file(tmp_path, "train_on_my_env.py", "300")
    # The class is found in the file of the example, which does not train again.
    assert run_file(tmp_path, "play_in_gymnasium.py", "runs/my-env").startswith("score ")


def test_play_an_agent_of_the_zoo(tmp_path: Path) -> None:
    score = float(run_file(tmp_path, "play_in_gymnasium.py").split(",")[0].removeprefix("score "))
    assert score >= 3  # of at most 5; random actions get about -3


def test_sample_a_generator_of_the_zoo(tmp_path: Path) -> None:
    out = run_file(tmp_path, "sample_generator.py")
    assert out == "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\ngenerated.png: 112x112 pixels\n"


def test_sample_a_generator(tmp_path: Path) -> None:
    config = Config(generator_width=0.05, latent_dim=4)
    network = make_generator(config, (1, 28, 28), 0).eval()
    (tmp_path / "runs" / "gan").mkdir(parents=True)
    sampler = Sampler(network, config, (1, 28, 28), (), Compute(threads=1), update=7)
    path = tmp_path / "runs" / "gan" / weights_file("best")
    sampler.save(path)
    (path.parent / "config.json").write_text('{"kind": "dcgan", "config": {}, "extra": {}}')
    out = run_file(tmp_path, "sample_generator.py", "runs/gan")
    assert out == "classes: none\ngenerated.png: 112x112 pixels\n"
    assert (tmp_path / "generated.png").is_file()


def test_classify_an_image(tmp_path: Path, photo: Path) -> None:
    assert run_file(tmp_path, "classify_image.py", "photo.png").startswith("photo.png: 1 (")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the page with an agent and a generator of the zoo."""
    folder = tmp_path_factory.mktemp("page")
    out = run_file(folder, "make_page.py", "page", "catch", "conditional-digits")
    assert out.splitlines()[-1].startswith("page: generator.html, 1 generators, catch with ")
    return folder / "page"


@needs_onnx
def test_the_page_has_the_observations_of_an_episode(page: Path) -> None:
    assert json.loads((page / "models.json").read_text()) == ["conditional-digits.onnx", "catch.onnx"]
    frames_THW = np.load(page / "catch.npy")
    assert len(frames_THW) > 20
    agent = zerokara.load_agent("catch", threads=1)
    with contextlib.closing(agent.make_env(1)) as env:
        obs = env.reset(seed=0)
        for first in range(len(frames_THW) - 3):
            assert (frames_THW[first : first + 4] == obs[0]).all()
            obs = env.step(np.atleast_1d(agent.act(obs))).obs


@pytest.fixture
def dom(page: Path) -> Iterator[Callable[[str], str]]:
    """Return a function from the parameters of the page to its content, after headless Chromium has run it."""
    link = page / "node_modules" / "onnxruntime-web"
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(RUNTIME)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(page))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run_page(parameters: str) -> str:
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
        address = f"http://127.0.0.1:{server.server_port}/generator.html?{parameters}"
        process = subprocess.run(["chromium", *words, address], capture_output=True, text=True, timeout=120, check=True)
        return process.stdout

    yield run_page
    server.shutdown()
    server.server_close()


@needs_onnx
@needs_browser
def test_the_page_generates_the_images_of_its_latents(dom: Callable[[str], str]) -> None:
    content = dom("model=conditional-digits.onnx&seed=5")
    generator = zerokara.load_generator("conditional-digits", threads=1)
    latents = re.search(r"<textarea[^>]*>(.*?)</textarea>", content)
    image = re.search(r'href="data:image/png;base64,([^"]*)"', content)
    assert latents, content
    assert image, content
    z_1Z = torch.tensor([json.loads(latents[1])])
    with Image.open(io.BytesIO(base64.b64decode(image[1]))) as opened:
        pixels_HWC = np.asarray(opened).astype(int)
    expected_HW = generator.generate(z_1Z, torch.tensor([0]))[0, 0].int().numpy()
    assert np.abs(pixels_HWC[..., :3] - expected_HW[..., None]).max() <= 1
    assert content.count('type="range" min="-3" max="3"') == 8
    assert 0.5 < z_1Z.std() < 1.5


@needs_onnx
@needs_browser
def test_the_page_reports_a_failure_and_an_old_file(page: Path, dom: Callable[[str], str]) -> None:
    import onnx

    model = onnx.load(page / "conditional-digits.onnx")
    onnx.helper.set_model_props(model, {"classes": "[]", "update": "7"})  # the input of the class is missing
    onnx.save(model, page / "old.onnx")
    content = dom("model=old.onnx")
    assert re.search(r'id="status">old\.onnx cannot generate this image: [^<]*labels[^<]*<', content), content
    assert '<p id="old">' in content
    assert '<p id="old" hidden="">' in dom("model=conditional-digits.onnx")


@needs_onnx
@needs_browser
def test_the_page_shows_q_values_of_recorded_frames(page: Path, dom: Callable[[str], str]) -> None:
    table = dom("model=catch.onnx&step=12").partition('id="q-values">')[2].partition("</tbody>")[0]
    agent = zerokara.load_agent("catch", threads=1)
    rows = re.findall(r'<td class="action">(.*?)</td>.*?<td class="value">(.*?)</td>', table)
    q_A = agent.q_values(np.load(page / "catch.npy")[12:16], stacked=True)
    with contextlib.closing(agent.make_env(1)) as env:
        assert [html.unescape(name) for name, _ in rows] == list(env.action_names)
    np.testing.assert_allclose([float(value) for _, value in rows], q_A, atol=1e-3)
    assert table.count('class="greedy"') == 1


def test_every_example_is_tested_and_listed() -> None:
    source = Path(__file__).read_text("utf-8")
    listed = (REPO / "examples" / "README.md").read_text("utf-8")
    for path in EXAMPLES:
        assert f'"{path.name}"' in source
        assert f"examples/{path.name}" in listed


def test_the_code_of_the_page(tmp_path: Path, photo: Path) -> None:
    page = (REPO / "docs" / "python.md").read_text("utf-8")
    blocks = [re.sub(r"^  ", "", block, flags=re.MULTILINE) if block.startswith("  ") else block
              for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)]  # fmt: skip
    assert len(blocks) >= 7
    code = "\n".join(blocks)
    code, trainings = re.subn(r"total_steps=20_000", f"total_steps=200, {QUICK}", code)
    (tmp_path / "pictures").mkdir()
    for index in range(130):
        pixels = np.random.default_rng(index).integers(256, size=(28, 28), dtype=np.uint8)
        write_png(tmp_path / "pictures" / f"{index}.png", pixels)
    code, gans = re.subn(r'data="mnist", updates=2_000', f'data="pictures", {QUICK_GAN}', code)
    assert (trainings, gans) == (2, 1)
    out = run(tmp_path, code + "\nprint(images.shape, threes.shape, prediction.name, len(predictions), agent.step)")
    assert out.splitlines()[-1] == "(64, 28, 28, 1) (8, 28, 28, 1) 1 2 200"
