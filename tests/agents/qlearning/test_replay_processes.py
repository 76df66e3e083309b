"""Replay buffers of several processes whose ring buffers another number of processes takes over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.fakes import CPU, GAMMA, SCRIPT, ScriptedEnvs, check_rows
from zerokara.agents.qlearning.prioritized_replay import PrioritizedReplay
from zerokara.agents.qlearning.replay import Replay
from zerokara.core.checkpoint import later_seed

NUM_ENVS, WINDOW, N_STEP = 6, 23, 3

Make = Callable[..., "Shards"]


class Shards:
    """Replay buffers of all processes, with the method `add` of one buffer of all environments."""

    def __init__(self, parent: Path, size: int, *, margin: int = 60, suffix: str = "", kind: Any = Replay) -> None:
        self.num_envs = NUM_ENVS // size
        self.printed: list[str] = []
        self.replays = [
            kind(
                NUM_ENVS * WINDOW // size,
                self.num_envs,
                (4, 2, 2),
                1,
                n_step=N_STEP,
                gamma=GAMMA,
                seed=rank,
                device=CPU,
                folder=parent / f"replay-{rank}{suffix}",
                checkpoint_margin=margin * self.num_envs,
                print_line=self.printed.append,
                **({"alpha": 0.5} if kind is PrioritizedReplay else {}),
            )
            for rank in range(size)
        ]

    def add(self, *arrays: np.ndarray | None) -> None:
        """Store one step of all environments, each in the buffer of its process."""
        for rank, replay in enumerate(self.replays):
            part = slice(rank * self.num_envs, (rank + 1) * self.num_envs)
            replay.add(*(None if array is None else array[part] for array in arrays))

    def states(self) -> dict[int, dict[str, Any]]:
        return {rank: replay.state_dict() for rank, replay in enumerate(self.replays)}

    def load(self, states: dict[int, dict[str, Any]], step: int = 0) -> None:
        for rank, replay in enumerate(self.replays):
            replay.load_processes(states, rank, step)
            replay.end_episodes()  # as `Session.load_processes` does

    def check(self, envs: ScriptedEnvs) -> int:
        """Compare everything that can be sampled with the reference. Return the number of transitions."""
        checked = 0
        for rank, replay in enumerate(self.replays):
            for ring in range(self.num_envs):
                env = rank * self.num_envs + ring
                pairs = [(env, slot) for slot in envs.sampleable_slots(env, WINDOW)]
                slot_B = torch.tensor([slot for _, slot in pairs])
                checked += check_rows(replay.gather(torch.full_like(slot_B, ring), slot_B), envs, pairs, N_STEP)
        return checked


def fill(envs: ScriptedEnvs, shards: Shards, steps: int) -> None:
    """Do steps with all kinds of endings, at different times in each environment."""
    for _ in range(steps):
        scripts = [SCRIPT[env % len(SCRIPT)] for env in range(NUM_ENVS)]
        events = [script[(envs.steps + 5 * env) % len(script)] for env, script in enumerate(scripts)]
        envs.step(shards, events)  # type: ignore[arg-type]
        envs.last_events = events  # type: ignore[attr-defined]


def start_new_episodes(envs: ScriptedEnvs) -> None:
    """Start new episodes in the reference: the newest observation becomes the last one of a truncated episode."""
    for env, event in enumerate(envs.last_events):  # type: ignore[attr-defined]
        if not ("terminal" in event or "truncated" in event):
            if not envs.slots[env][-1].ends:
                envs.slots[env][-1].action = None
            envs.episodes[env] = [envs.frame()]


@pytest.mark.parametrize("steps", [1, 9, 70])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2), (2, 3), (6, 1), (1, 6), (2, 2)])
def test_all_transitions_are_kept_and_new_ones_are_added(tmp_path: Path, before: int, after: int, steps: int) -> None:
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, before)
    fill(envs, first, steps)
    number = first.check(envs)
    # A ring buffer of another process may have another number of slots, by rounding.
    second = Shards(tmp_path, after, margin=57, suffix="-1")
    second.load(first.states())
    assert sum(map(len, second.replays)) == sum(map(len, first.replays))
    start_new_episodes(envs)
    assert second.check(envs) == number
    for _ in range(60):
        fill(envs, second, 1)
        second.check(envs)
    assert second.check(envs) > 3 * WINDOW
    assert second.printed[after:] == [], "nothing is lost"


def test_writes_after_the_checkpoint_are_not_taken_over(tmp_path: Path) -> None:
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, 2)
    fill(envs, first, 50)
    states, slots, events = first.states(), [list(env) for env in envs.slots], envs.last_events  # type: ignore[attr-defined]
    fill(envs, first, 15)
    second = Shards(tmp_path, 3, suffix="-1")
    second.load(states)
    envs.slots, envs.last_events = slots, events  # type: ignore[attr-defined]
    start_new_episodes(envs)
    assert second.check(envs) > 3 * WINDOW


@pytest.mark.parametrize("damage", ["frame", "flag", "short", "all"])
def test_lost_files_leave_their_ring_buffers_empty(tmp_path: Path, damage: str) -> None:
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, 2)
    fill(envs, first, 50)
    states = first.states()
    for path in (tmp_path / "replay-1").iterdir():
        if damage in ("all", path.stem):
            path.unlink()
    if damage == "short":
        with (tmp_path / "replay-1" / "reward.bin").open("r+b") as file:
            file.truncate(100)
    second = Shards(tmp_path, 3, suffix="-1")
    second.load(states)
    assert [replay.head.astype(bool).tolist() for replay in second.replays] == [[True] * 2, [True, False], [False] * 2]
    lost = f"a file in {tmp_path / 'replay-1'} is missing or has another size; the transitions of process 1 are lost"
    assert second.printed[3:] == [f"replay buffer: {lost}"] * 3
    assert second.replays[0].sample(64).weight.sum() > 40
    assert second.replays[2].sample(64).weight.sum() == 0
    fill(envs, second, 30)
    assert second.replays[2].sample(64).weight.sum() > 40


def test_the_ring_buffers_of_a_process_without_a_checkpoint_stay_empty(tmp_path: Path) -> None:
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, 3)
    fill(envs, first, 50)
    states = first.states()
    del states[1]
    second = Shards(tmp_path, 1, suffix="-1")
    second.load(states)
    assert second.replays[0].head.astype(bool).tolist() == [True, True, False, False, True, True]


def test_a_buffer_in_memory_stays_empty(tmp_path: Path) -> None:
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, 2)
    fill(envs, first, 5)
    memory = Replay(NUM_ENVS * WINDOW, NUM_ENVS, (4, 2, 2), 1, n_step=1, gamma=GAMMA, seed=0, device=CPU)
    memory.load_processes(first.states(), 0, 5)
    assert len(memory) == 0
    assert memory.state_dict()["folder"] is None


def test_states_of_older_releases_name_no_folder(tmp_path: Path) -> None:
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, 2)
    fill(envs, first, 50)
    states = first.states()
    assert [state.pop("folder") for state in states.values()] == ["replay-0", "replay-1"]
    second = Shards(tmp_path, 1, suffix="-1")
    second.load(states)
    start_new_episodes(envs)
    assert second.check(envs) > 3 * WINDOW


@pytest.mark.parametrize("step", [0, 1000])
def test_batches_are_sampled_anew(tmp_path: Path, step: int) -> None:
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, 1)
    fill(envs, first, 50)
    first.replays[0].sample(8)
    second = Shards(tmp_path, 2, suffix="-1")
    second.load(first.states(), step)
    for rank, replay in enumerate(second.replays):
        expected = torch.Generator().manual_seed(later_seed(rank, step))
        assert torch.equal(replay.generator.get_state(), expected.get_state())


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2)])
def test_priorities_are_taken_over(tmp_path: Path, before: int, after: int) -> None:
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, before, kind=PrioritizedReplay)
    for _ in range(60):
        fill(envs, first, 1)
        for replay in first.replays:
            batch = replay.sample(16)
            replay.update_priorities(batch.reward.abs() + 0.1)
    second = Shards(tmp_path, after, margin=57, suffix="-1", kind=PrioritizedReplay)
    second.load(first.states())

    def priorities(shards: Shards, env: int) -> list[float]:
        replay, ring = shards.replays[env // shards.num_envs], env % shards.num_envs
        slot_S = np.arange(max(0, replay.head[ring] - WINDOW), replay.head[ring])
        values: list[float] = replay.tree.get(torch.from_numpy(ring * replay.slots + slot_S % replay.slots)).tolist()
        return values

    for env in range(NUM_ENVS):
        assert priorities(second, env) == priorities(first, env)
    totals = [sum(float(replay.tree.levels[-1].sum()) for replay in shards.replays) for shards in (first, second)]
    assert totals[0] == pytest.approx(totals[1])
    highest = [float(replay.max_priority) for replay in first.replays]
    for rank, replay in enumerate(second.replays):
        sources = {(rank * second.num_envs + ring) // first.num_envs for ring in range(second.num_envs)}
        assert float(replay.max_priority) == max(1.0, *(highest[source] for source in sources))
    start_new_episodes(envs)
    for _ in range(60):
        fill(envs, second, 1)
        assert all(replay.sample(32).weight.min() > 0 for replay in second.replays), "a slot without a transition"
        second.check(envs)
    for env in range(NUM_ENVS):
        assert np.count_nonzero(priorities(second, env)) <= WINDOW - 3, "slots that have left the window have none"


def test_the_line_about_files_that_were_written_after_the_checkpoint(tmp_path: Path) -> None:
    """A run that returns to an older checkpoint has an empty folder of another name."""
    envs = ScriptedEnvs(NUM_ENVS)
    first = Shards(tmp_path, 1)
    fill(envs, first, 50)
    second = Shards(tmp_path, 1, suffix="-1")
    second.replays[0].load_state_dict(first.states()[0])
    assert len(second.replays[0]) == 0
    assert second.printed[-1] == (
        f"replay buffer: the files in {tmp_path / 'replay-0'} were written after the checkpoint; the buffer is empty, "
        f"and updates resume when it is filled again"
    )
