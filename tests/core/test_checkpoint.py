"""Checkpoints: exact round trip, atomic writing, and detection of damaged files."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.programs import start
from zerokara.core.checkpoint import load, restore_generator, rng_state, save, set_rng_state, write_atomically
from zerokara.core.config import UserError

ROOT = Path(__file__).parents[2]


def example() -> dict[str, Any]:
    return {
        "weights": OrderedDict(w=torch.randn(3, 4), half=torch.randn(5).bfloat16(), counts=torch.arange(6)),
        "nested": [1, 2.5, None, True, "text", b"bytes", (1, (2,)), {3: torch.tensor(4, dtype=torch.uint8)}],
        "layout": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


def assert_same(one: Any, two: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert one.stride() == two.stride()
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert type(one) is type(two)
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert type(one) is type(two)
        assert one == two


def test_round_trip(tmp_path: Path) -> None:
    state = example()
    save(tmp_path / "a.pt", state, "dqn")
    assert_same(load(tmp_path / "a.pt", "dqn"), state)
    assert os.listdir(tmp_path) == ["a.pt"]  # noqa: PTH208  (only the names are needed)


def test_training_resumes_exactly(tmp_path: Path) -> None:
    def train(resume: bool) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 2)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        for step in range(6):
            if resume and step == 3:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng_state()}
                save(tmp_path / "a.pt", state, "dqn")
                torch.manual_seed(7)
                network = torch.nn.Linear(4, 2)
                optimizer = torch.optim.Adam(network.parameters(), lr=5.0)
                state = load(tmp_path / "a.pt", "dqn")
                network.load_state_dict(state["network"])
                optimizer.load_state_dict(state["optimizer"])
                set_rng_state(state["rng"])
            optimizer.zero_grad()
            network(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        return network.weight.detach()

    assert torch.equal(train(resume=True), train(resume=False))


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    replay = torch.arange(1_000_000)
    save(tmp_path / "a.pt", {"batch": replay[10:14]}, "dqn")
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    assert load(tmp_path / "a.pt", "dqn")["batch"].tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(1), r"state\['deep'\]\[0\] is a numpy.float64"),
        (np.zeros(2), "numpy.ndarray"),
        ({1.5: 0}, "key 1.5"),
        ({1, 2}, "builtins.set"),
        (Path("x"), "Path"),
        (print, "builtin_function"),
    ],
)
def test_only_plain_values_can_be_saved(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        save(tmp_path / "a.pt", {"deep": [value]}, "dqn")
    with pytest.raises(TypeError, match="kind"):
        save(tmp_path / "a.pt", {"kind": "other"}, "dqn")
    assert list(tmp_path.iterdir()) == []


def load_error(path: Path, kind: str = "dqn") -> str:
    with pytest.raises(UserError) as error:
        load(path, kind)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert "no checkpoint at" in load_error(path)
    path.write_bytes(b"")
    assert "truncated or no checkpoint" in load_error(path)
    path.write_text("hello", encoding="utf-8")
    assert "truncated or no checkpoint" in load_error(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "no checkpoint of zerokara" in load_error(path)
    torch.save({"state_dict": {}}, path)
    assert "lacks the header" in load_error(path)
    torch.save([1, 2], path)
    assert "lacks the header" in load_error(path)
    torch.save({"format": "zerokara", "version": 9, "kind": "dqn"}, path)
    assert "format version 9" in load_error(path)
    save(path, {}, "dcgan")
    assert "written by 'dcgan', not 'dqn'" in load_error(path)


class Malicious:
    """Object that runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_loading_runs_no_code_of_the_file(tmp_path: Path) -> None:
    torch.save(
        {"format": "zerokara", "version": 1, "kind": "dqn", "x": Malicious(tmp_path / "executed")}, tmp_path / "a.pt"
    )
    assert "no checkpoint of zerokara" in load_error(tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()


def test_truncated_files_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(path, example(), "dqn")
    complete = path.read_bytes()
    for length in [*range(0, len(complete), 97), len(complete) - 1]:
        path.write_bytes(complete[:length])
        assert "damaged" in load_error(path)


def test_flipped_bits_are_detected_or_have_no_effect(tmp_path: Path) -> None:
    """A zip has bytes without effect (padding, dates); a change of any other byte must be detected."""
    path = tmp_path / "a.pt"
    weights = torch.randn(400)
    state = {"w": weights, "step": 12345}
    save(path, state, "dqn")
    complete = path.read_bytes()
    data = complete.index(weights.numpy().tobytes())
    detected = 0
    positions = [*range(0, len(complete), 11), *range(data, data + 1600, 160)]
    for position in positions:
        flipped = bytearray(complete)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        try:
            assert_same(load(path, "dqn"), state)
        except UserError:
            detected += 1
        else:
            assert not data <= position < data + 1600  # every flip within the weights is detected
    assert detected > len(positions) / 3


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """The disk is simulated by a limit on the size of files, in a separate process."""
    code = """
import resource, sys, torch
from pathlib import Path
from zerokara.core.checkpoint import save
from zerokara.core.config import run_main
path = Path(sys.argv[1])
save(path, {"step": 1, "w": torch.zeros(1000)}, "dqn")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
run_main(lambda: save(path, {"step": 2, "w": torch.zeros(1_000_000)}, "dqn"))
"""
    path = tmp_path / "a.pt"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {path} could not be written (the disk is full)")
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert load(path, "dqn")["step"] == 1


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        save(tmp_path / "missing" / "a.pt", {}, "dqn")


def test_interrupted_writing_keeps_the_old_file(tmp_path: Path) -> None:
    def write(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sigkill_at_any_time_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    """Kill ten processes that save continuously at random times; each one resumes from the checkpoint of the last."""
    code = """
import os, random, signal, sys, time, torch
from pathlib import Path
from zerokara.core.checkpoint import load, save
path, rng = Path(sys.argv[1]), random.Random(1)
for _ in range(10):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        step = load(path, "dqn")["step"] if path.exists() else 0
        while True:
            step += 1
            save(path, {"step": step, "w": torch.full((50_000,), float(step))}, "dqn")
            os.write(write_end, b".")
    saved = len(os.read(read_end, 1))
    for _ in range(rng.randrange(10)):
        saved += len(os.read(read_end, 1))
    time.sleep(rng.random() * 0.01)  # during a save, or between two saves
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = load(path, "dqn")
    assert torch.equal(state["w"], torch.full((50_000,), float(state["step"])))
    assert state["step"] >= saved
    assert {p.name for p in path.parent.iterdir()} <= {"a.pt", ".a.pt.tmp"}
print(state["step"])
"""
    process = start(tmp_path, "-c", code, str(tmp_path / "a.pt"))
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert int(out) >= 10


def test_random_number_generators_are_restored(tmp_path: Path) -> None:
    def draw() -> list[float]:
        legacy = np.random.random(2).tolist()  # noqa: NPY002  (the generator that is saved)
        return [random.random(), *legacy, *torch.rand(2).tolist(), random.gauss(0, 1)]

    random.gauss(0, 1)  # caches a second value, which is part of the state
    save(tmp_path / "a.pt", {"rng": rng_state()}, "dqn")
    expected = draw()
    assert draw() != expected
    set_rng_state(load(tmp_path / "a.pt", "dqn")["rng"])
    assert draw() == expected


def test_a_generator_is_restored_or_seeded_by_its_state() -> None:
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    state = generator.get_state()
    expected = torch.rand(4, generator=generator)
    restore_generator(generator, state)
    assert torch.equal(torch.rand(4, generator=generator), expected)
    numbers = []
    for state_of_a_gpu in (
        torch.arange(16, dtype=torch.uint8),
        torch.arange(16, dtype=torch.uint8),
        torch.zeros(16).byte(),
    ):
        restore_generator(generator, state_of_a_gpu)
        numbers.append(torch.rand(4, generator=generator).tolist())
    assert numbers[0] == numbers[1] != numbers[2]
