"""Tests of the learner's side of a run with actors: what is stored, priorities, the pace of both sides, lost actors.

The real training loop runs with actors in the process of the test (local_actors.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.agents.actors.fed import Fed, Warnings
from tests.agents.actors.local_actors import GAMMA, ActorEnv
from tests.agents.scripted import Origin, ends_with, frame, origin_of, reward_of
from zerokara.agents import dqn
from zerokara.agents.actors import feed
from zerokara.agents.actors.actor import pack_weights, unpack_weights
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.network import make_network
from zerokara.agents.qlearning.prioritized_replay import PRIORITY_EPSILON, PrioritizedReplay
from zerokara.agents.qlearning.replay import LAST
from zerokara.core.compute import Compute
from zerokara.core.config import UserError

pytestmark = pytest.mark.usefixtures("local_actors")
NUM_ENVS = 3  # of an actor


def stored(replay: PrioritizedReplay, ring: int) -> Iterator[tuple[int, Origin, int]]:
    """Slots of a ring buffer: number, origin of the frame, flag."""
    for slot in range(int(replay.head[ring])):
        row = ring * replay.slots + slot % replay.slots
        yield slot, origin_of(replay._host["frame"][row]), int(replay._host["flag"][row])


def expected_return(origin: Origin, newest: Origin) -> tuple[float, float, Origin | None]:
    """3-step return, discount and next observation, if `newest` is the newest observation in the ring buffer."""
    total = 0.0
    for k in range(3):
        here = origin._replace(step=origin.step + k)
        if here == newest and ends_with(here) != "terminal":
            return total, GAMMA**k, here
        total += GAMMA**k * reward_of(here)
        if ends_with(here) == "terminal":
            return total, 0.0, None
        if ends_with(here) == "truncated":
            return total, GAMMA ** (k + 1), here._replace(step=here.step + 1)
    return total, GAMMA**3, origin._replace(step=origin.step + 3)


def check_ring(fed: Fed, ring: int, env: ActorEnv) -> int:
    """Compare all transitions of a ring buffer with the script; return their number."""
    replay = fed.replay
    slots = list(stored(replay, ring))
    newest = slots[-1][1]
    starts = [(slot, origin) for slot, origin, flag in slots[:-1] if not flag & LAST]
    number = torch.tensor([slot for slot, _ in starts])
    batch = replay.gather(torch.full((len(starts),), ring), number)
    assert batch.weight.tolist() == [1.0] * len(starts)
    for row, (_, origin) in enumerate(starts):
        assert origin.env == ring
        total, discount, bootstrap = expected_return(origin, newest)
        np.testing.assert_array_equal(batch.obs[row].numpy(), env.observe(origin))
        assert batch.reward[row].item() == pytest.approx(total, rel=1e-5)
        assert batch.discount[row].item() == pytest.approx(discount)
        assert batch.action[row] == env.actions[row][ring % NUM_ENVS]
        if bootstrap is not None:
            np.testing.assert_array_equal(batch.next_obs[row].numpy(), env.observe(bootstrap))
    return len(starts)


def test_the_steps_of_all_actors_are_stored_as_transitions(tmp_path: Path) -> None:
    fed = Fed(tmp_path, learning_starts=10_000)
    fed.until(180)
    numbers = [check_ring(fed, ring, fed.actors.envs[ring // NUM_ENVS][0]) for ring in range(6)]
    # The newest step of an environment has no next observation yet.
    assert sum(numbers) == pytest.approx(180, abs=6)
    assert min(numbers) >= 24


def test_observations_and_returns_of_episodes_with_smaller_epsilons_are_recorded(tmp_path: Path) -> None:
    fed = Fed(tmp_path, learning_starts=10_000)
    fed.until(180)
    ended = [origin for actor in range(2) for chunk in chunks_of(fed, actor) for origin in ends_in(chunk)]
    assert fed.training.episodes == len(ended) > 30
    smaller_epsilons = {2, 4, 5}  # of the ring buffers 0, 3, 1, 4, 2, 5, whose epsilons fall in this order
    counted = [origin for origin in ended if origin.env in smaller_epsilons]
    assert len(ended) > len(counted) > 10
    expected = sorted(sum(reward_of(o._replace(step=step)) for step in range(o.step + 1)) for o in counted)
    assert sorted(fed.training.returns) == pytest.approx(expected)
    assert list(fed.training.obs.shape) == [1, 2, 36, 36]
    assert fed.training.running_length_N.tolist() == [env.at[i].step for env in last_envs(fed) for i in range(NUM_ENVS)]


def last_envs(fed: Fed) -> list[ActorEnv]:
    return [made[-1] for made in fed.actors.envs]


def chunks_of(fed: Fed, actor: int) -> list[Any]:
    return [chunk for number, chunk in fed.actors.chunks if number == actor]


def ends_in(chunk: Any) -> list[Origin]:
    return [origin_of(chunk.frame[t, i]) for t, i in np.argwhere(chunk.terminal | chunk.truncated)]


def test_uniform_replay_samples_all_transitions_alike_however_many_an_actor_has(tmp_path: Path) -> None:
    fed = Fed(tmp_path, learning_starts=10_000)
    fed.iterate(1)
    fed.actors.silent.add(1)
    fed.until(150)
    priorities = fed.replay.tree.levels[0].numpy()
    filled = fed.replay.head > 0
    assert 0 < filled.sum() <= 6
    transitions = 0
    for ring in range(6):
        for slot, _, flag in stored(fed.replay, ring):
            is_newest = slot == fed.replay.head[ring] - 1
            expected = 0.0 if flag & LAST or (is_newest and not flag & 2) else 1.0
            assert priorities[ring * fed.replay.slots + slot] == expected
            transitions += int(expected)
    assert priorities.sum() == transitions
    fed.replay.set_beta(0.7)
    batch = fed.replay.sample(64)
    assert batch.weight.tolist() == [1.0] * 64, "all are transitions, with the same weight"


def test_new_transitions_are_sampled_with_the_priorities_of_the_actor(tmp_path: Path) -> None:
    fed = Fed(tmp_path, learning_starts=10_000, per_alpha=0.6)
    fed.until(180)
    network = make_network(fed.config, (2, 36, 36), 4)
    unpack_weights(network, pack_weights(fed.training.learner.network, Compute()))
    priorities = fed.replay.tree.levels[0]
    found = 0
    for ring in range(6):
        head = int(fed.replay.head[ring])
        for slot, _, flag in stored(fed.replay, ring):
            priority = float(priorities[ring * fed.replay.slots + slot])
            if flag & LAST or slot >= head - 3:
                assert priority == 0, "its n steps are not complete"
                continue
            batch = fed.replay.gather(torch.tensor([ring]), torch.tensor([slot]))
            with torch.no_grad():
                td_error = dqn.dqn_loss(fed.config, Compute(), network, network, *batch)[2]
            assert priority == pytest.approx(float(td_error + PRIORITY_EPSILON) ** 0.6, rel=1e-3)
            found += 1
    assert found > 140
    assert float(fed.replay.tree.levels[-1].sum()) == pytest.approx(float(priorities.sum()), rel=1e-4)


def test_the_learner_does_not_exceed_the_ratio_and_waits_for_any_actor_then(tmp_path: Path) -> None:
    fed = Fed(tmp_path)
    before = 0
    while fed.training.step < 600:
        due = schedules.updates_due(fed.config, fed.training.step)
        assert fed.training.updates <= due
        is_blocked = fed.training.updates >= due
        fed.feed.iterate()
        assert fed.actors.timeouts[-1] == (feed.MAX_WAIT if is_blocked else 0.0)
        assert fed.training.updates - before <= feed.UPDATES_AT_ONCE or fed.training.step >= 600
        before = fed.training.updates
    assert fed.training.updates == (600 - 120) // 6, "all updates are done when there are no more steps"


def test_a_ratio_of_its_own_changes_the_number_of_updates(tmp_path: Path) -> None:
    fed = Fed(tmp_path, max_replay_ratio=0.25)
    fed.until(600)
    assert fed.training.updates == (600 - 120) // 4


def test_actors_get_no_orders_while_the_learner_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(tmp_path, actor_steps=2)
    fed.until(120)
    monkeypatch.setattr(fed.feed, "_learn", lambda limit: None)
    fed.iterate(60)
    # A round of 12 steps is allowed, and two orders of each actor were on their way.
    assert 132 <= fed.training.step <= 120 + 3 * 12 + 6
    orders = len(fed.actors.orders)
    fed.iterate(10)
    assert len(fed.actors.orders) == orders
    monkeypatch.undo()


def test_with_a_minimum_of_0_the_actors_never_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(tmp_path, min_replay_ratio=0.0)
    fed.until(120)
    with monkeypatch.context() as patch:
        patch.setattr(fed.feed, "_learn", lambda limit: None)
        fed.iterate(60)
    assert fed.training.step > 600


def test_every_actor_has_two_orders_and_one_if_its_weights_became_too_old(tmp_path: Path) -> None:
    for bound, expected in ((2_000, 2), (20, 2), (19, 1)):  # 4 rounds of 30 steps are 20 updates
        fed = Fed(tmp_path / str(bound), max_staleness=bound)
        fed.iterate(1)
        assert [sum(order.actor == actor for order in fed.actors.orders) for actor in (0, 1)] == [expected] * 2


def test_an_actor_that_sends_nothing_does_not_hold_up_the_others(tmp_path: Path) -> None:
    fed = Fed(tmp_path)
    fed.iterate(1)
    fed.actors.silent.add(0)
    fed.until(600)
    assert fed.training.updates == (600 - 120) // 6
    assert sum(order.actor == 0 for order in fed.actors.orders) <= 4
    assert len(chunks_of(fed, 1)) > 30


def test_orders_have_the_newest_weights_within_a_part_of_the_bound(tmp_path: Path) -> None:
    fed = Fed(tmp_path, max_staleness=200)  # new weights after more than 2 updates
    published: list[int] = []
    fed.iterate(1)
    fed.actors.publish = lambda weights: published.append(fed.training.updates)  # type: ignore[method-assign]
    fed.until(600)
    versions = [order.version for order in fed.actors.orders]
    assert versions == sorted(versions)
    assert [version for version in dict.fromkeys(versions) if version] == published
    assert len(published) > 10


def make_stale(fed: Fed) -> int:
    """Let the next chunk of actor 0 be too old. Returns its number of steps."""
    fed.training.updates += fed.config.max_staleness + 1
    while True:
        before = len(chunks_of(fed, 0))
        fed.feed.iterate()
        if len(chunks_of(fed, 0)) > before:
            return fed.config.actor_steps * NUM_ENVS


def test_steps_with_weights_that_are_too_old_are_not_learned_from(tmp_path: Path) -> None:
    fed = Fed(tmp_path, learning_starts=10_000, max_staleness=100)
    fed.iterate(1)
    while len(chunks_of(fed, 0)) < 3:
        fed.feed.iterate()
    ring, slots = 0, [int(fed.replay.head[0])]
    step, episodes = fed.training.step, fed.training.episodes
    stale = make_stale(fed)
    slots.append(int(fed.replay.head[0]))
    assert fed.feed.stale_steps >= stale
    assert fed.training.step > step, "the steps count"
    assert fed.training.episodes > episodes
    fed.training.updates = 0
    fed.until(fed.training.step + 120)
    flags = [flag for _, _, flag in stored(fed.replay, ring)]
    assert all(flag & LAST for flag in flags[slots[0] : slots[1]])
    kept = [slot for slot, flag in enumerate(flags[:-1]) if not flag & LAST]
    assert {slot < slots[0] for slot in kept} == {True, False}
    batch = fed.replay.gather(torch.zeros(len(kept), dtype=torch.int64), torch.tensor(kept))
    assert batch.weight.tolist() == [1.0] * len(kept)
    origins = [origin for _, origin, _ in stored(fed.replay, ring)]
    for row, slot in enumerate(kept):  # stacks use the frames of the steps that are too old
        np.testing.assert_array_equal(batch.obs[row].numpy(), fed.actors.envs[0][0].observe(origins[slot]))
    last = kept.index(max(slot for slot in kept if slot < slots[0]))
    if not flags[kept[last]] & 2:  # the last return before them bootstraps from the first of them
        assert batch.discount[last].item() == pytest.approx(GAMMA)
        np.testing.assert_array_equal(batch.next_obs[last][-1:].numpy(), frame(origins[slots[0]]))


def test_a_lost_actor_is_replaced_and_its_episodes_end(tmp_path: Path) -> None:
    fed = Fed(tmp_path, learning_starts=10_000, per_alpha=0.6)
    fed.until(120)
    fed.actors.dying.add(1)
    fed.training.run.warn = warnings = Warnings()  # type: ignore[method-assign]
    while not fed.feed.replaced:
        fed.feed.iterate()
    assert warnings.texts == ["actor 1 has ended and is replaced, number 1 (killed by the test)"]
    heads, running = fed.replay.head.copy(), fed.training.running_length_N.copy()
    assert (running[3:] == 0).all()
    assert running[:3].any(), "the episodes of the other actor continue"
    fed.until(300)
    assert [len(seeds) for seeds in fed.actors.seeds] == [1, 2]
    seed = fed.training.seed
    assert fed.actors.seeds[0] == [seed + 10_007]
    assert fed.actors.seeds[1][0] == seed + 20_014
    assert (fed.actors.seeds[1][1] - seed - 20_014 - 1_009) % 15_485_863 == 0, "later_seed at the step of its start"
    for ring in (3, 4, 5):
        slots = list(stored(fed.replay, ring))
        _, origin, flag = slots[heads[ring]]
        assert origin == Origin(ring, 20, 0), "its ring buffer continues with a new episode"
        assert flag & 1
        assert slots[heads[ring] - 1][2] & (LAST | 2), "the last step before it is the end of a truncated episode"
        np.testing.assert_array_equal(
            fed.replay.gather(torch.tensor([ring]), torch.tensor([int(heads[ring])])).obs[0].numpy(),
            last_envs(fed)[1].observe(origin),
        )
        priorities = fed.replay.tree.levels[0][ring * fed.replay.slots :]
        assert (priorities[int(heads[ring]) : int(fed.replay.head[ring]) - 3] > 0).any()


def test_an_actor_that_cannot_start_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    fed = Fed(tmp_path)
    fed.iterate(1)
    fed.actors.replace = lambda actor, seed: None  # type: ignore[method-assign]
    fed.actors.dying.add(0)
    with pytest.raises(UserError, match=r"Actor 0 failed 3 times without sending steps \(killed by the test\)"):
        fed.iterate(50)


def test_a_chunk_resets_the_count_of_failures(tmp_path: Path) -> None:
    fed = Fed(tmp_path, learning_starts=10_000)
    for number in range(1, 6):
        fed.until(fed.training.step + 90)
        fed.actors.dying.add(0)
        while fed.feed.replaced < number:
            fed.feed.iterate()


def test_silence_of_a_minute_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(feed, "time", SimpleNamespace(monotonic=lambda: clock.now))
    fed = Fed(tmp_path)
    fed.iterate(1)
    fed.actors.silent.update((0, 1))
    fed.actors.waiting.clear()
    fed.training.run.warn = warnings = Warnings()  # type: ignore[method-assign]
    reported = []
    for now in (60.0, 61.0, 121.0, 122.0):
        clock.now = now
        fed.iterate(1)
        reported.append(len(warnings.texts))
    assert reported == [0, 1, 1, 2]
    assert set(warnings.texts) == {"no actor has sent steps for 60 s: in the process of the test"}


def test_a_checkpoint_is_due_before_a_chunk_could_overwrite_what_the_last_one_needs(tmp_path: Path) -> None:
    """A chunk of 5 steps writes at most 10 of the (60 + 4 * 6 * 5) / 6 = 30 spare slots of a ring buffer."""
    replay = Fed(tmp_path, save_replay=True, checkpoint_every_steps=60).replay
    assert replay.slots - replay.window == 30
    due = []
    for head in (20, 21):
        replay.head[0] = head
        due.append(replay.needs_checkpoint)
    assert due == [False, True]
