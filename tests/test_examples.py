"""The scripts in examples/ and the code of docs/python.md run as they are, with shorter training."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import io
import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two pages, catch/ and pong/: each has this agent and a generator of the zoo."""
    folder = tmp_path_factory.mktemp("pages")
    for agent in ("catch", "pong"):
        out = run_file(folder, "make_page.py", agent, agent, "conditional-digits")
        assert out.splitlines()[-1].startswith(f"{agent}: generator.html, 1 generators, {agent} with ")
    return folder


@needs_onnx
@pytest.mark.parametrize("name", ["catch", "pong"])
def test_the_page_has_the_observations_of_an_episode(pages: Path, name: str) -> None:
    assert json.loads((pages / name / "models.json").read_text()) == ["conditional-digits.onnx", f"{name}.onnx"]
    frames_THW = np.load(pages / name / f"{name}.npy")
    assert len(frames_THW) > 20
    agent = zerokara.load_agent(name, threads=1)
    with contextlib.closing(agent.make_env(1)) as env:
        obs = env.reset(seed=0)
        for first in range(len(frames_THW) - 3):
            assert (frames_THW[first : first + 4] == obs[0]).all()
            obs = env.step(np.atleast_1d(agent.act(obs))).obs


Act = Callable[[str, str], list[dict[str, Any]]]


@pytest.fixture
def act(pages: Path, tmp_path: Path) -> Iterator[Act]:
    """Return a function that opens an address, acts on the page as a script of JavaScript says, returns its records.

    The page runs in headless Chromium. tests/page_actions.html has the functions that a script calls, and the fields of
    a record.
    """
    for name in ("catch", "pong"):
        link = pages / name / "node_modules" / "onnxruntime-web"
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(RUNTIME)
    posted: queue.Queue[bytes] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(pages)))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run_script(address: str, script: str) -> list[dict[str, Any]]:
        source = (REPO / "tests" / "page_actions.html").read_text("utf-8")
        (pages / "actions.html").write_text(source.replace("SCRIPT", script).replace("ADDRESS", address), "utf-8")
        words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = ["chromium", *words, f"http://127.0.0.1:{server.server_port}/actions.html"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                records: list[dict[str, Any]] = json.loads(posted.get(timeout=120))
            except queue.Empty:
                pytest.fail("the script has not ended: a condition that it waits for does not hold")
            finally:
                process.terminate()
        assert not any("error" in one for one in records), records
        return records

    yield run_script
    server.shutdown()
    server.server_close()


def read_data_url(address: str) -> np.ndarray:
    """Decode the PNG file of a data URL. Returns its pixels (H, W, 4), RGBA."""
    with Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))) as image:
        return np.asarray(image.convert("RGBA")).astype(int)


def assert_generated(record: dict[str, Any], digit: int) -> None:
    """Compare the image of the page with PyTorch's of the same latents and class; and the sliders with the latents."""
    generator = zerokara.load_generator("conditional-digits", threads=1)
    z_Z = json.loads(record["latents"])
    expected_HW = generator.generate(torch.tensor([z_Z]), torch.tensor([digit]))[0, 0].int().numpy()
    assert np.abs(read_data_url(record["image"])[..., :3] - expected_HW[..., None]).max() <= 1
    np.testing.assert_allclose(record["sliders"], np.clip(z_Z[:8], -3, 3), atol=0.0051)
    np.testing.assert_allclose([float(text) for text in record["outputs"]], z_Z[:8], atol=0.0051)
    assert record["visible"] == ["generator"]


@needs_onnx
@needs_browser
def test_the_page_generates_the_images_of_its_latents(act: Act) -> None:
    script = """
        await imageAfter(() => {});
        await imageAfter(() => enter("latent-0", "2.5", "input"));
        await imageAfter(() => enter("class", "7", "change"));
        await imageAfter(() => enter("seed", "9", "change"));
        await imageAfter(() => enter("latents", JSON.stringify(Array(64).fill(0.25)), "change"));
        enter("latents", "[1, 2]", "change");
        record();
        await imageAfter(() => enter("seed", "5", "change"));
        await imageAfter(() => find("random").click());
    """
    records = act("pong/generator.html?model=conditional-digits.onnx&seed=5", script)
    first, slider, digit, seed, pasted, refused, again, other = records
    latents = [json.loads(one["latents"]) for one in records if one is not refused]
    assert_generated(first, 0)
    assert 0.5 < np.std(latents[0]) < 1.5
    assert len(first["sliders"]) == 8
    assert re.fullmatch(r"conditional-digits\.onnx: update \d+, 28x28 pixels", first["status"])
    assert_generated(slider, 0)
    assert latents[1] == [2.5, *latents[0][1:]]
    assert_generated(digit, 7)
    assert latents[2] == latents[1]
    assert_generated(seed, 7)
    assert not set(latents[3]) & set(latents[2])
    assert_generated(pasted, 7)
    assert latents[4] == [0.25] * 64
    assert refused["status"] == "The latents must be a list of 64 numbers, as in [0.5, -1.2, ...]."
    assert (refused["image"], refused["sliders"]) == (pasted["image"], pasted["sliders"])
    assert_generated(again, 7)
    assert latents[5] == latents[0]
    assert_generated(other, 7)
    assert other["seed"] != "5"
    assert not set(latents[6]) & set(latents[5])


@needs_onnx
@needs_browser
def test_the_page_reports_a_failure_and_an_old_file(pages: Path, act: Act) -> None:
    import onnx

    model = onnx.load(pages / "catch" / "conditional-digits.onnx")
    onnx.helper.set_model_props(model, {"classes": "[]", "update": "7"})  # the input of the class is missing
    onnx.save(model, pages / "catch" / "old.onnx")
    script = """
        await until(() => find("status").textContent.includes("cannot"));
        record();
        await imageAfter(() => enter("model", "conditional-digits.onnx", "change"));
    """
    old, new = act("catch/generator.html?model=old.onnx", script)
    assert re.fullmatch(r"old\.onnx cannot generate this image: .*labels.*", old["status"]), old["status"]
    assert (old["old"], new["old"]) == (True, False)
    assert_generated(new, 0)


def assert_q_values(record: dict[str, Any], pages: Path, name: str, step: int) -> None:
    """Compare frame, Q-values, bars and position of the page with the agent's, at a step counted from 0."""
    agent = zerokara.load_agent(name, threads=1)
    frames_THW = np.load(pages / name / f"{name}.npy")
    steps = len(frames_THW) - 3
    assert (record["step"], record["step_slider"]) == (f"step {step + 1} of {steps}", step)
    assert (read_data_url(record["frame"])[..., :3] == frames_THW[step + 3][..., None]).all()
    q_A = agent.q_values(frames_THW[step : step + 4], stacked=True)
    np.testing.assert_allclose(record["values"], q_A, atol=1e-3)
    assert record["greedy"] == [index == int(np.argmax(q_A)) for index in range(len(q_A))]
    widths_A = np.array([float(width.removesuffix("%")) for width in record["bars"]])
    assert widths_A[np.argmax(q_A)] == widths_A.max() <= 100
    with contextlib.closing(agent.make_env(1)) as env:
        assert record["actions"] == list(env.action_names)
    # The line at the position in the curve is the only column without transparent pixels.
    columns = np.flatnonzero((read_data_url(record["curve"])[..., 3] > 0).all(axis=0))
    assert len(columns) > 0
    assert np.abs(columns - step / (steps - 1) * 400).max() <= 1
    assert record["visible"] == ["agent"]


@needs_onnx
@needs_browser
@pytest.mark.parametrize("name", ["catch", "pong"])
def test_the_page_plays_recorded_frames_with_their_q_values(pages: Path, act: Act, name: str) -> None:
    script = """
        const reach = (number) => until(() => find("step-text").textContent.startsWith(`step ${number} of `));
        for (let number = 1; number <= 4; number++) {
          await reach(number);
          record();
        }
        find("play").click();
        await new Promise((resolve) => setTimeout(resolve, 1000));
        record();
        enter("step", "12", "input");
        record();
        find("play").click();
        await reach(14);
        record();
        enter("model", "conditional-digits.onnx", "change");
        await until(() => find("save").hasAttribute("href"));
        record();
    """
    records = act(f"{name}/generator.html?model={name}.onnx", script)
    *played, paused, moved, resumed, generator = records
    for step, record in enumerate(played):
        assert_q_values(record, pages, name, step)
    assert_q_values(paused, pages, name, 3)
    assert_q_values(moved, pages, name, 12)
    assert_q_values(resumed, pages, name, 13)
    labels = [one["play"] for one in (*played, paused, moved, resumed)]
    assert labels == ["Pause", "Pause", "Pause", "Pause", "Play", "Play", "Pause"]
    assert_generated(generator, 0)


@needs_onnx
@needs_browser
def test_the_page_shows_a_step_and_a_file_of_one_s_own(pages: Path, act: Act) -> None:
    script = """
        await until(() => find("step-text").textContent);
        record();
        const {File, DataTransfer} = page.contentWindow;  // the page expects objects of its own window
        const transfer = new DataTransfer();
        const blob = await (await fetch("pong/conditional-digits.onnx")).blob();
        transfer.items.add(new File([blob], "mine.onnx"));
        find("file").files = transfer.files;
        find("file").dispatchEvent(new Event("change"));
        await until(() => find("save").hasAttribute("href"));
        record();
    """
    step, file = act("pong/generator.html?model=pong.onnx&step=100", script)
    assert_q_values(step, pages, "pong", 100)
    assert step["play"] == "Play"
    assert_generated(file, 0)
    assert file["status"].startswith("mine.onnx: update ")


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
