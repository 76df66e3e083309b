"""The scripts in examples/ and the code of docs/python.md run as they are, with shorter training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.programs import REPO, start
from zerokara.core.compute import Compute
from zerokara.core.media import write_png
from zerokara.generative.gan.config import Config
from zerokara.generative.gan.learner import make_generator
from zerokara.generative.gan.sampler import Sampler, weights_file

EXAMPLES = sorted((REPO / "examples").glob("*.py"))
# Options that make the runs of the page take a second.
QUICK = (
    "num_envs=2, hidden_units=16, learning_starts=50, batch_size=8, replay_capacity=500, log_every_steps=50, "
    "eval_episodes=2, eval_max_steps=20, capture_video=False, device='cpu', precision='float32', compile='off', "
    "threads=1, quiet=True"
)
QUICK_GAN = (
    "updates=4, eval_every_updates=4, log_every_updates=2, batch_size=4, generator_width=0.05, image_size=(28,), "
    "discriminator_width=0.05, latent_dim=4, preview_images=4, quiet=True, device='cpu', precision='float32', threads=1"
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
