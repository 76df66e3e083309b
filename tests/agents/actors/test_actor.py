"""Tests of an actor: what a chunk holds, TD errors of n-step transitions, epsilons, weights in 16 bits.

The observations of the environments encode environment, episode and step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.agents.actors.local_actors import GAMMA, SETTINGS, ActorEnv
from tests.agents.scripted import Origin, ends_with, frame, reward_of
from zerokara import envs
from zerokara.agents import dqn
from zerokara.agents.actors.actor import Actor, Chunk, pack_weights, unpack_weights
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.network import QNetwork, make_network
from zerokara.agents.qlearning.policy import Policy
from zerokara.core.compute import Compute

OBS_SHAPE = (2, 36, 36)


def make_actor(loss: Any = dqn.dqn_loss, number: int = 1, **changes: Any) -> Actor:
    config = Config(**(SETTINGS | changes))
    env = ActorEnv(number, config.num_envs, frame_stack=config.frame_stack)
    return Actor(number, config, Compute(), loss, 7, env)


def weights_of(network: QNetwork) -> np.ndarray:
    return pack_weights(network, Compute())


def collect(actor: Actor, chunks: int) -> list[Chunk]:
    config = actor.config
    return [actor.collect(weights_of(actor.network), i, config.n_step, config.gamma) for i in range(chunks)]


def steps_of(env: int, number: int) -> list[Origin]:
    """Observations from which the steps of an environment start."""
    origins = [Origin(env, 0, 0)]
    while len(origins) < number:
        last = origins[-1]
        origins.append(Origin(env, last.episode + 1, 0) if ends_with(last) else last._replace(step=last.step + 1))
    return origins


def slots_of(env: int, number: int) -> list[Origin | None]:
    """Content of the slots of a ring buffer; None: the last observation of a truncated episode."""
    slots: list[Origin | None] = []
    for origin in steps_of(env, number):
        slots += [origin, None] if ends_with(origin) == "truncated" else [origin]
    return slots


def test_a_chunk_holds_the_steps_of_the_environments() -> None:
    actor = make_actor()
    chunks = collect(actor, 4)
    assert [chunk.version for chunk in chunks] == [0, 1, 2, 3]
    for i in range(3):
        for t, origin in enumerate(steps_of(3 + i, 20)):
            chunk, at = chunks[t // 5], t % 5
            np.testing.assert_array_equal(chunk.frame[at, i], frame(origin))
            assert chunk.reward[at, i] == np.float32(reward_of(origin))
            assert chunk.action[at, i] == actor.env.actions[t][i]  # type: ignore[attr-defined]
            assert chunk.terminal[at, i] == (ends_with(origin) == "terminal")
            assert chunk.truncated[at, i] == (ends_with(origin) == "truncated")
            assert chunk.life_lost[at, i] == (origin.step == 1)
    np.testing.assert_array_equal(chunks[-1].obs[0], actor.obs[0])


@pytest.mark.parametrize("frame_stack", [1, 2, 3])
def test_the_steps_of_a_chunk_are_what_the_replay_buffer_takes(frame_stack: int) -> None:
    actor = make_actor(frame_stack=frame_stack)
    truncations = 0
    for number, chunk in enumerate(collect(actor, 4)):
        for t, (frame_N, action_N, step) in enumerate(chunk.steps()):
            for i in range(3):
                origin = steps_of(3 + i, 20)[5 * number + t]
                np.testing.assert_array_equal(frame_N[i], frame(origin))
                assert action_N[i] == chunk.action[t, i]
                assert step.reward[i] == np.float32(reward_of(origin))
                if step.truncated[i]:
                    truncations += 1
                    np.testing.assert_array_equal(step.last_obs[i], frame(origin._replace(step=origin.step + 1)))
    assert truncations > 4


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_an_actor_stores_the_steps_that_it_needs_and_no_more(frame_stack: int) -> None:
    """Until n steps later a transition has no TD error; a chunk may hold as many last observations as steps."""
    actor = make_actor(frame_stack=frame_stack)
    config = actor.config
    assert actor.replay.window == schedules.max_n_step(config) + 2 * config.actor_steps + frame_stack + 1


class RecordingLoss:
    """Loss that keeps the batches and returns TD errors that are numbers of transitions."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, ...]] = []
        self.networks: list[tuple[Any, Any]] = []

    def __call__(self, config: Config, compute: Compute, *tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
        self.networks.append(tensors[:2])
        self.batches.append(tensors[2:8])
        assert tensors[8:] == (None, None), "this head has no quantile fractions"
        done = sum(len(batch[0]) for batch in self.batches[:-1])
        return torch.zeros(()), torch.zeros(()), torch.arange(len(tensors[2])).float() + done


@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "raw"])
def test_td_errors_are_those_of_n_step_transitions(clip: bool) -> None:
    loss = RecordingLoss()
    actor = make_actor(loss, per_alpha=0.6, clip_rewards=clip)
    chunks = collect(actor, 4)
    assert all(online is target is actor.network for online, target in loss.networks)
    first_slot = np.zeros(3, np.int64)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    number = 0
    for index, chunk in enumerate(chunks):
        obs, action, reward, discount, next_obs, weight = loss.batches[index]
        assert len(chunk.env) == len(chunk.slot) == len(chunk.td_error) == len(obs) > 0
        assert weight.tolist() == [1.0] * len(obs)
        for row, (i, relative) in enumerate(zip(chunk.env.tolist(), chunk.slot.tolist(), strict=True)):
            slot = int(first_slot[i]) + relative
            seen[i].append(slot)
            origin = slots_of(3 + i, 25)[slot]
            assert origin is not None, "no transition starts at the last observation of a truncated episode"
            total, factor, bootstrap = expected_return(origin, clip)
            np.testing.assert_array_equal(obs[row].numpy(), actor.env.observe(origin))  # type: ignore[attr-defined]
            assert action[row] == actor.env.actions[steps_of(3 + i, 25).index(origin)][i]  # type: ignore[attr-defined]
            assert reward[row].item() == pytest.approx(total, rel=1e-5)
            assert discount[row].item() == pytest.approx(factor)
            if bootstrap is not None:
                shown = actor.env.observe(bootstrap)  # type: ignore[attr-defined]
                np.testing.assert_array_equal(next_obs[row].numpy(), shown)
            assert chunk.td_error[row] == number
            number += 1
        first_slot += 5 + chunk.truncated.sum(axis=0)
    for i in range(3):  # every transition once, up to the third slot before the end
        complete = [s for s, origin in enumerate(slots_of(3 + i, 20)) if origin is not None and s < first_slot[i] - 3]
        assert seen[i] == complete


def expected_return(origin: Origin, clip: bool) -> tuple[float, float, Origin | None]:
    """3-step return, discount, and the observation from which it bootstraps; None after a terminal."""
    total = 0.0
    for k in range(3):
        here = origin._replace(step=origin.step + k)
        total += GAMMA**k * (float(np.sign(reward_of(here))) if clip else reward_of(here))
        if ends_with(here) == "terminal":
            return total, 0.0, None
        if ends_with(here) == "truncated":
            return total, GAMMA ** (k + 1), here._replace(step=here.step + 1)
    return total, GAMMA**3, origin._replace(step=origin.step + 3)


def test_annealed_returns_have_the_n_and_gamma_of_the_order() -> None:
    loss = RecordingLoss()
    actor = make_actor(loss, per_alpha=0.6, n_step=1, n_step_start=3, gamma_start=0.5)
    actor.collect(weights_of(actor.network), 0, 2, 0.7)
    steps = {round(float(np.log(discount) / np.log(0.7)), 4) for discount in loss.batches[0][3].tolist() if discount}
    assert steps <= {1.0, 2.0}, "1 before a truncation"
    assert 2.0 in steps


def test_without_prioritized_replay_there_are_no_td_errors() -> None:
    chunks = collect(make_actor(loss=lambda *_: pytest.fail("TD errors are not used")), 3)
    assert [len(chunk.env) + len(chunk.slot) + len(chunk.td_error) for chunk in chunks] == [0, 0, 0]


@pytest.mark.parametrize("head", ["q", "c51", "qr", "iqn"])
def test_td_errors_are_those_of_the_loss_of_dqn(head: str) -> None:
    actor = make_actor(per_alpha=0.6, head=head, double=True)
    chunk = collect(actor, 1)[0]
    assert len(chunk.td_error) > 0
    assert (chunk.td_error >= 0).all()
    if head == "iqn":
        return  # draws random quantile fractions
    batch = actor.replay.gather(torch.from_numpy(chunk.env), torch.from_numpy(chunk.slot))
    taus = actor.network.head.sample_taus(len(batch.action), torch.Generator())
    with torch.no_grad():
        expected = dqn.dqn_loss(actor.config, Compute(), actor.network, actor.network, *batch, *taus)[2]
    np.testing.assert_allclose(chunk.td_error, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize(("actor_cpus", "threads"), [(0.5, 1), (1.0, 1), (2.5, 2)])
def test_the_environments_have_the_cpus_and_the_seed_of_the_actor(
    actor_cpus: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class Env(ActorEnv):
        def reset(self, seed: int) -> np.ndarray:
            seen["seed"] = seed
            return super().reset(seed)

    def make(env: str, num_envs: int, **options: Any) -> ActorEnv:
        seen.update(options, num_envs=num_envs)
        return Env(0, num_envs)

    monkeypatch.setattr(envs, "make", make)
    monkeypatch.setattr(Compute, "apply", lambda compute: seen.update(threads=compute.threads))
    config = Config(**(SETTINGS | {"actor_cpus": actor_cpus}))
    actor = Actor(0, config, Compute(device="meta", compile=True, threads=7), dqn.dqn_loss, 2**31 + 5)
    assert (seen["num_threads"], seen["threads"], seen["num_envs"], seen["seed"]) == (threads, threads, 3, 5)
    assert (actor.compute.device, actor.compute.compile) == ("cpu", False)
    assert seen["resumable"] is False, "an actor is never resumed, so that its environments need not be reproducible"


def test_epsilons_are_those_of_the_paper_with_one_environment_per_actor() -> None:
    config = Config(**SETTINGS | {"actors": 3, "num_envs": 1})
    assert schedules.actor_epsilons(config)[:, 0].tolist() == pytest.approx([0.4, 0.4**4.5, 0.4**8])
    assert schedules.actor_epsilons(Config(**SETTINGS | {"actors": 1, "num_envs": 1})).tolist() == [[0.4]]


def test_each_environment_has_an_epsilon_and_neighbors_are_of_different_actors() -> None:
    config = Config(**SETTINGS | {"actor_epsilon": 0.5, "actor_epsilon_alpha": 5.0})
    expected = [[0.5**1, 0.5**3, 0.5**5], [0.5**2, 0.5**4, 0.5**6]]
    np.testing.assert_allclose(schedules.actor_epsilons(config), expected)
    assert schedules.epsilon(config, 300) == pytest.approx(np.mean(expected))


def test_an_actor_acts_with_its_epsilons(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Tensor] = []
    original = Policy.act

    def act(policy: Policy, obs: np.ndarray, epsilon: Tensor, *args: Any, **options: Any) -> np.ndarray:
        used.append(epsilon)
        assert options == {"noisy": True}
        return original(policy, obs, epsilon, *args, **options)

    monkeypatch.setattr(Policy, "act", act)
    actor = make_actor(actor_epsilon=0.5, actor_epsilon_alpha=5.0)
    collect(actor, 1)
    assert [epsilon.tolist() for epsilon in used] == [pytest.approx([0.5**2, 0.5**4, 0.5**6])] * 5


def test_epsilon_0_is_greedy_and_epsilon_1_is_random() -> None:
    greedy, random = make_actor(actor_epsilon=0.0), make_actor(actor_epsilon=1.0)
    for actor in (greedy, random):
        obs = actor.obs
        chunk = collect(actor, 1)[0]
        best = actor.policy.values(obs).argmax(dim=1).numpy()
        assert (chunk.action[0] == best).all() == (actor is greedy)
    assert len(np.unique(np.stack(random.env.actions))) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("changes", [{}, {"noisy": True}, {"head": "c51"}], ids=["plain", "noisy", "c51"])
def test_weights_come_back_in_16_bits(changes: dict[str, Any]) -> None:
    config = Config(**SETTINGS | changes)
    torch.manual_seed(1)
    network = make_network(config, OBS_SHAPE, 4)
    other = make_network(config, OBS_SHAPE, 4)
    packed = weights_of(network)
    assert packed.dtype == np.int16
    floats = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    assert packed.nbytes == 2 * sum(tensor.numel() for tensor in floats)
    packed.setflags(write=False)  # as the arrays of Ray
    unpack_weights(other, packed)
    for ours, theirs in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(ours.to(torch.bfloat16).float(), theirs)
    if config.head == "c51":
        assert torch.equal(network.head.atom_X, other.head.atom_X), "the support is not rounded"  # type: ignore[arg-type]


def test_new_weights_are_loaded_once() -> None:
    actor = make_actor()
    torch.manual_seed(5)
    packed = weights_of(make_network(actor.config, OBS_SHAPE, 4))
    actor.collect(packed, 3, 3, GAMMA)
    np.testing.assert_array_equal(weights_of(actor.network), packed)
    actor.collect(packed[:1], 3, 3, GAMMA)  # the same version: not read
    np.testing.assert_array_equal(weights_of(actor.network), packed)


def test_the_warnings_of_the_environments_are_sent_once() -> None:
    actor = make_actor()
    actor.env.warnings.append("an exception")
    actor.env.errors = 2
    first = collect(actor, 1)[0]
    assert (first.warnings, first.errors) == (["an exception"], 0)
    assert collect(actor, 1)[0].warnings == []
