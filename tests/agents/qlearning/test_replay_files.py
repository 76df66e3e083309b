"""Tests of replay buffers in files: checkpoints, killed processes, sizes, and insufficient memory or disk space."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests.agents.fakes import CPU, ScriptedEnvs, check_all, fill, make
from tests.programs import start
from zerokara.agents.qlearning import replay_files
from zerokara.agents.qlearning.replay import Replay, bytes_needed
from zerokara.core.config import UserError

# Shapes and types of the arguments of `Replay.add`, for one environment.
ADDED: tuple[tuple[tuple[int, ...], type[np.generic]], ...] = (
    ((4, 2, 2), np.uint8),
    ((), np.int64),
    ((), np.float32),
    ((), np.bool_),
    ((), np.bool_),
    ((4, 2, 2), np.uint8),
)


def test_another_instance_resumes_from_the_files(tmp_path: Path) -> None:
    envs = ScriptedEnvs(3)
    replay = make(envs, 3 * 23, n_step=3, folder=tmp_path, checkpoint_margin=60)
    fill(envs, replay, 70)
    envs.step(replay, ["terminal", "truncated", "continue"])  # two of the next slots start an episode
    state = replay.state_dict()
    expected = [replay.sample(64) for _ in range(3)]

    other = make(envs, 3 * 23, n_step=3, folder=tmp_path, checkpoint_margin=60, seed=99)
    other.load_state_dict(state)
    assert len(other) == len(replay)
    for batch in expected:
        for left, right in zip(batch, other.sample(64), strict=True):
            assert torch.equal(left, right)
    # Writing continues at the position of the first instance, and starts of episodes are restored.
    for _ in range(40):
        fill(envs, other, 1)
        check_all(other, envs, 3, window=23)


def test_writes_after_a_checkpoint_do_not_overwrite_its_data(tmp_path: Path) -> None:
    envs = ScriptedEnvs(3)
    checkpoint_margin = 3 * 2 * 30
    replay = make(envs, 3 * 23, n_step=3, folder=tmp_path, checkpoint_margin=checkpoint_margin)
    fill(envs, replay, 100)
    state = replay.state_dict()
    expected = replay.sample(200)
    for _ in range(30):  # worst case: every step is truncated and writes two slots
        envs.step(replay, ["truncated"] * 3)
    other = make(envs, 3 * 23, n_step=3, folder=tmp_path, checkpoint_margin=checkpoint_margin)
    other.load_state_dict(state)
    valid = expected.weight > 0
    got = other.sample(200)
    assert torch.equal(expected.weight, got.weight)
    for left, right in zip(expected, got, strict=True):
        keep = valid & (expected.discount > 0) if left is expected.next_obs else valid
        assert torch.equal(left[keep], right[keep])


def test_the_state_is_a_snapshot() -> None:
    envs = ScriptedEnvs(2)
    replay = make(envs, 60)
    fill(envs, replay, 5)
    state = replay.state_dict()
    head = state["head"].clone()
    fill(envs, replay, 20)
    replay.sample(8)
    assert torch.equal(state["head"], head)
    replay.load_state_dict(state)
    heads = state["head"].clone()
    fill(envs, replay, 3)
    assert torch.equal(state["head"], heads), "the buffer must not share memory with the loaded state"


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, torch
from zerokara.agents.qlearning.replay import Replay

folder = Path(sys.argv[1])
replay = Replay(40, 2, (4, 2, 2), 1, n_step=2, gamma=0.9, seed=3, device=torch.device("cpu"), folder=folder,
                checkpoint_margin=20)
no = np.zeros(2, bool)
def add(t):
    obs = np.full((2, 4, 2, 2), t, np.uint8)
    replay.add(obs, np.array([t % 4, t % 3]), np.array([t, -t], np.float32), no, no, obs)
for t in range(1, 31):
    add(t)
torch.save({**replay.state_dict()}, folder / "state.pt")
torch.save(tuple(replay.sample(16)), folder / "sample.pt")
for t in range(31, 36):
    add(t)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing_before_its_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, "-c", KILLED, str(tmp_path))
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    replay = Replay(40, 2, (4, 2, 2), 1, n_step=2, gamma=0.9, seed=0, device=CPU, folder=tmp_path, checkpoint_margin=20)
    replay.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for left, right in zip(torch.load(tmp_path / "sample.pt", weights_only=True), replay.sample(16), strict=True):
        assert torch.equal(left, right)


def test_a_state_of_other_ring_sizes_is_refused() -> None:
    envs = ScriptedEnvs(2)
    state = make(envs, 60).state_dict()
    with pytest.raises(UserError, match="ring buffers of 30 slots, but 2 ring buffers of 40 were expected"):
        make(envs, 80).load_state_dict(state)
    with pytest.raises(UserError, match="2 ring buffers of 30 slots, but 3 ring buffers of 30 were expected"):
        make(ScriptedEnvs(3), 90).load_state_dict(state)


def test_files_of_another_size_are_refused_and_not_changed(tmp_path: Path) -> None:
    envs = ScriptedEnvs(2)
    replay = make(envs, 60, folder=tmp_path)
    fill(envs, replay, 5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"frame.bin", "action.bin", "reward.bin", "flag.bin"}
    with pytest.raises(UserError, match=r"bytes, but this configuration needs .*--name"):
        make(envs, 100, folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_are_fully_allocated_at_once(tmp_path: Path) -> None:
    replay = Replay(
        2000, 2, (4, 20, 20), 1, n_step=1, gamma=0.9, seed=0, device=CPU, folder=tmp_path, checkpoint_margin=100
    )
    on_disk = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert on_disk >= replay.bytes


def test_a_full_disk_leaves_no_partial_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    allocate, made = os.posix_fallocate, []

    def fill_up(descriptor: int, offset: int, size: int) -> None:
        made.append(size)
        if len(made) == 3:
            os.ftruncate(descriptor, size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fill_up)
    envs = ScriptedEnvs(2)
    message = r"could not be created in .*full \(No space left on device\): free some disk space"
    with pytest.raises(UserError, match=message):
        make(envs, 60, folder=full)
    assert len(made) == 3
    assert list(full.iterdir()) == []
    # With free disk space, the same command works.
    monkeypatch.undo()
    replay = make(envs, 60, folder=full)
    fill(envs, replay, 20)
    check_all(replay, envs, 1, window=30)


def test_a_full_disk_keeps_the_files_of_a_run_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = ScriptedEnvs(2)
    fill(envs, make(envs, 60, folder=tmp_path), 10)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(UserError, match="No space left"):
        make(envs, 60, folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_empty_buffer_ignores_the_content_of_existing_files(tmp_path: Path) -> None:
    envs = ScriptedEnvs(2)
    replay = make(envs, 60, folder=tmp_path)
    for _ in range(5):
        envs.step(replay, ["terminal", "truncated"])
    fresh = make(envs, 60, folder=tmp_path)
    assert len(fresh) == 0
    assert fresh.sample(20).weight.sum() == 0
    fresh.add(*(np.zeros((2, *shape), kind) for shape, kind in ADDED))
    assert fresh.sample(20).weight.sum() == 0, "one slot without a next observation is no transition either"


# Sizes


def test_size_of_a_million_transitions() -> None:
    # Pixels, 4 bytes each for action and reward, one byte for the flag.
    assert bytes_needed(1_000_000, 0, (1, 84, 84)) == 1_000_000 * (84 * 84 + 9)
    assert bytes_needed(1_000_000, 10_000, (1, 84, 84)) <= 7.2e9
    assert bytes_needed(10, 5, (3, 6, 7)) == 15 * (126 + 9)


def test_reported_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    envs = ScriptedEnvs(3)
    replay = make(envs, 100, folder=tmp_path, checkpoint_margin=50)
    one_frame = 4  # the zeros before the start of an episode
    assert replay.bytes == sum(path.stat().st_size for path in tmp_path.iterdir()) - one_frame
    assert replay.bytes == 3 * (34 + 17) * (4 + 9)
    assert replay.describe_size().startswith("0.00 GB in files under ")
    assert make(envs, 100).describe_size() == "0.00 GB in memory, not saved on disk"


def test_the_size_is_printed_before_allocation(tmp_path: Path) -> None:
    printed: list[tuple[str, list[Path]]] = []

    def record(text: str) -> None:
        printed.append((text, list(tmp_path.iterdir())))

    make(ScriptedEnvs(3), 100, folder=tmp_path, print_line=record)
    [(text, files)] = printed
    assert text.startswith("replay buffer of 102 transitions: 0.00 GB in files under ")
    assert files == []


def test_insufficient_memory_is_refused_before_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2_000_000_000))
    options: dict[str, Any] = {"n_step": 1, "gamma": 0.9, "seed": 0, "device": CPU}
    for folder in (None, tmp_path / "replay"):
        with pytest.raises(UserError, match=r"needs 7\.07 GB of main memory, and 2\.00 GB are free"):
            Replay(1_000_000, 1, (4, 84, 84), 1, folder=folder, **options)
    assert list(tmp_path.iterdir()) == []


def test_insufficient_disk_space_is_refused_before_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    envs = ScriptedEnvs(2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    message = r"GB of disk space in .* are free: lower --replay-capacity, free some disk space"
    with pytest.raises(UserError, match=message):
        make(envs, 60, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    # A buffer in memory needs no disk space, and existing files need no additional space.
    fill(envs, make(envs, 60), 3)
    monkeypatch.undo()
    replay = make(envs, 60, folder=tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    make(envs, 60, folder=tmp_path).load_state_dict(replay.state_dict())


def test_buffers_too_small_for_one_sample_are_refused() -> None:
    with pytest.raises(UserError, match="has 7 slots for each of 8 environments, fewer than the 8"):
        make(ScriptedEnvs(8), 56, n_step=3)
    make(ScriptedEnvs(8), 64, n_step=3)


def test_needs_checkpoint_before_the_margin_is_used_up(tmp_path: Path) -> None:
    replay = Replay(40, 2, (4, 2, 2), 1, n_step=1, gamma=0.9, seed=0, device=CPU, folder=tmp_path, checkpoint_margin=20)
    obs, no = np.zeros((2, 4, 2, 2), np.uint8), np.zeros(2, bool)
    steps = 0
    replay.state_dict()
    while not replay.needs_checkpoint:
        replay.add(obs, np.zeros(2, np.int64), np.zeros(2, np.float32), no, ~no, obs)  # truncated: two slots each
        steps += 1
    assert steps == 5  # ten additional slots in each ring buffer
    replay.state_dict()
    assert not replay.needs_checkpoint


def test_a_buffer_without_files_resumes_empty(tmp_path: Path) -> None:
    obs, no = np.zeros((2, 4, 2, 2), np.uint8), np.zeros(2, bool)
    replays = [Replay(40, 2, (4, 2, 2), 1, n_step=1, gamma=0.9, seed=0, device=CPU) for _ in range(2)]
    replays[0].add(obs, np.zeros(2, np.int64), np.zeros(2, np.float32), no, no, obs)
    replays[1].load_state_dict(replays[0].state_dict())
    assert (len(replays[0]), len(replays[1])) == (2, 0)
    assert not replays[0].needs_checkpoint


@pytest.mark.parametrize("there", [0, 5, 1 << 20])
def test_without_posix_fallocate_zeros_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    path, size = tmp_path / "file", 5 * (1 << 19) + 3
    path.write_bytes(b"x" * there)
    with path.open("ab") as file:
        replay_files.allocate(file, size)
    assert path.read_bytes() == b"x" * there + bytes(size - there)
    with path.open("ab") as file:
        replay_files.allocate(file, size)
    assert path.stat().st_size == size


@pytest.mark.parametrize(("needed", "fits"), [(1000, True), (1001, False)])
def test_memory_of_a_gpu_and_of_the_machine_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, fits: bool
) -> None:
    """A buffer on a GPU in files needs no main memory; without files it needs both."""
    gpu = torch.device("cuda")

    def check(device: torch.device, folder: Path | None, *, cuda: int, main: int, disk: int) -> str:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (cuda, 10**12))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=main))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=disk))
        try:
            replay_files.check_size_fits(needed, device, folder)
        except UserError as error:
            return str(error)
        return ""

    large = 10**12
    for limit, device, folder, message in (
        ("cuda", gpu, None, "of cuda memory"),
        ("main", gpu, None, "of main memory"),
        ("cuda", gpu, tmp_path, "of cuda memory"),
        ("main", CPU, None, "of main memory"),
        ("main", CPU, tmp_path, "of main memory"),
        ("disk", CPU, tmp_path, "of disk space"),
    ):
        free = {"cuda": large, "main": large, "disk": large, limit: 1000}
        assert (message in check(device, folder, **free)) != fits
        assert (check(device, folder, **free) == "") == fits
    assert check(gpu, tmp_path, cuda=large, main=0, disk=large) == ""
    assert check(CPU, None, cuda=0, main=large, disk=0) == ""
    (tmp_path / "frame.bin").write_bytes(bytes(600))
    assert check(CPU, tmp_path, cuda=large, main=large, disk=401) == "", "existing files need no additional space"


def test_a_copy_on_another_device_equals_the_reference(tmp_path: Path) -> None:
    """The ring buffers of another device, simulated by tensors that do not share the memory of the arrays."""
    envs = ScriptedEnvs(3)
    replay, other = (make(envs, 60, n_step=3, folder=tmp_path, checkpoint_margin=60) for _ in range(2))
    for buffer in (replay, other):
        buffer._on_cpu = False
        buffer._ring = {name: torch.zeros_like(ring) for name, ring in buffer._ring.items()}
    fill(envs, replay, 40)
    assert check_all(replay, envs, 3, window=20) > 30
    other.load_state_dict(replay.state_dict())
    assert check_all(other, envs, 3, window=20) > 30


def test_a_restored_buffer_counts_the_steps_since_its_checkpoint(tmp_path: Path) -> None:
    envs = ScriptedEnvs(2)
    first, second = (make(envs, 60, folder=tmp_path, checkpoint_margin=20) for _ in range(2))
    fill(envs, first, 25)
    assert first.needs_checkpoint
    second.load_state_dict(first.state_dict())
    assert not second.needs_checkpoint


@pytest.mark.parametrize("name", ["frame", "action", "reward", "flag", "all", "short"])
def test_lost_files_mean_an_empty_buffer(name: str, tmp_path: Path) -> None:
    """A buffer of zeros with the write positions of the lost one would train on black frames."""
    envs = ScriptedEnvs(2)
    replay = make(envs, 2 * 20, n_step=3, folder=tmp_path, checkpoint_margin=20)
    fill(envs, replay, 30)
    state = replay.state_dict()
    paths = [path for path in tmp_path.iterdir() if name in ("all", path.stem)]
    for path in paths:
        path.unlink()
    if name == "short":
        with (tmp_path / "frame.bin").open("r+b") as file:
            file.truncate(100)
    printed: list[str] = []
    other = make(envs, 2 * 20, n_step=3, folder=tmp_path, checkpoint_margin=20, print_line=printed.append)
    other.load_state_dict(state)
    assert len(other) == 0
    lost = sorted(path.name for path in paths) or ["frame.bin"]
    assert printed[-1].startswith(f"replay buffer: {', '.join(lost)} in {tmp_path} is missing or too short")
    fill(envs, other, 15)
    assert len(other) >= 2 * 15
    assert other.sample(64).weight.sum() > 0
