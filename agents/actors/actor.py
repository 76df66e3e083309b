"""Actor of a DQN run with actors: acts in environments of its own, and returns chunks of steps.

Horgan et al. 2018, "Distributed Prioritized Experience Replay" (Ape-X), algorithm 1. The learner asks an actor for a
chunk and gives it weights. The actor does some steps in its environments with an epsilon for each of them, sums the
n-step returns, and computes the absolute TD errors of these transitions with its weights: their initial priorities.

A chunk holds each frame once, as the replay buffer does, and single rewards: the learner makes frame stacks and n-step
returns when it samples. The TD errors of a chunk are those of the transitions whose n steps are complete, so they begin
n slots before its first step and end n slots before its last one.

Shapes: T steps of a chunk, N environments of an actor, P transitions, F channels of a frame, C channels of an
observation, H, W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zerokara import envs
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.network import make_network
from zerokara.agents.qlearning.policy import Exploration, Policy
from zerokara.agents.qlearning.replay import Batch, Replay
from zerokara.agents.training.replay_buffer import store
from zerokara.core.compute import Compute
from zerokara.core.machine import has_bfloat16

Loss = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""`dqn_loss` of agents/dqn.py."""


class Chunk(NamedTuple):
    """Steps of all environments of an actor, one after another."""

    version: int  # updates that had been done to the weights with which the actor acted
    frame: np.ndarray  # (T, N, F, H, W), the newest of each observation in which an action was taken
    action: np.ndarray  # (T, N) int64
    reward: np.ndarray  # (T, N) float32, raw
    terminal: np.ndarray  # (T, N) bool
    truncated: np.ndarray  # (T, N) bool
    life_lost: np.ndarray  # (T, N) bool
    last_frame: np.ndarray  # (truncated episodes, F, H, W), of their last observations, by step and environment
    obs: np.ndarray  # (1, C, H, W), observation of the first environment after the chunk
    env: np.ndarray  # (P,) environments of the transitions with a TD error
    slot: np.ndarray  # (P,) their slots in the ring buffers, counted from the first slot of this chunk
    td_error: np.ndarray  # (P,) float32, absolute
    errors: int  # exceptions of environments
    warnings: Sequence[str]  # of the environments

    def steps(self) -> Iterator[tuple[np.ndarray, np.ndarray, envs.Step]]:
        """Yield for each step the frames (N, F, H, W), the actions (N,), and the result with single frames."""
        last_frame = iter(self.last_frame)
        for t, frame in enumerate(self.frame):
            last = np.zeros_like(frame)
            for i in np.flatnonzero(self.truncated[t]):
                last[i] = next(last_frame)
            ends = self.terminal[t], self.truncated[t], self.life_lost[t]
            yield frame, self.action[t], envs.Step(self.obs, self.reward[t], *ends, last)


class Lost(NamedTuple):
    """Message in place of a chunk that its actor has ended."""

    reason: str


class Actor:
    """Environments, a copy of the Q-network, and the newest steps.

    Args:
        number: number of the actor, from 0.
        config: config of the run; `num_envs` environments are created.
        compute: hardware settings of the learner. The actor runs on the CPU, and not in 16 bits if that is slow there.
        loss: `dqn_loss`, from which the TD errors are taken.
        seed: seed of this actor.
        env: environments; None: they are created.
    """

    def __init__(
        self,
        number: int,
        config: Config,
        compute: Compute,
        loss: Loss,
        seed: int,
        env: envs.VectorEnv | None = None,
    ) -> None:
        cpu, threads = torch.device("cpu"), max(1, int(config.actor_cpus))
        precision = compute.precision if has_bfloat16(cpu) else "float32"
        self.compute = dataclasses.replace(compute, device="cpu", compile=False, threads=threads, precision=precision)
        self.compute.apply()
        self.config, self._loss = config, loss
        # A resumed run starts new actors with new episodes, so their states are not saved.
        self.env = env or envs.make(
            config.env, config.num_envs, num_threads=threads, resumable=False, **config.env_settings()
        )
        network = make_network(config, self.env.obs_shape, self.env.num_actions)
        self.network = self.compute.frozen(self.compute.module(network))
        self.policy = Policy(self.network, self.compute, seed)
        self.exploration = Exploration(self.env.num_envs, self.env.num_actions, seed, config.ez_greedy_zeta)
        self.epsilon_N = torch.from_numpy(schedules.actor_epsilons(config)[number])
        self.generator = torch.Generator().manual_seed(seed)  # of quantile fractions
        n_step, frame_channels = schedules.max_n_step(config), self.env.frame_channels
        # The transitions without a TD error, a chunk with the last observations of truncated episodes, and a stack.
        slots = n_step + 2 * config.actor_steps + self.env.obs_shape[0] // frame_channels + 1
        self.replay = Replay(
            self.env.num_envs * slots,
            self.env.num_envs,
            self.env.obs_shape,
            frame_channels,
            dtype=self.env.obs_dtype,
            n_step=n_step,
            gamma=config.gamma,
            seed=seed,
            device=cpu,
        )
        self._evaluated = np.zeros(self.env.num_envs, np.int64)  # (N,) slots before have got their TD errors
        self._version = -1
        self.obs = self.env.reset(seed % 2**31)
        self.frame = self.obs[:, -frame_channels:]  # the newest ones, (N, F, H, W)

    def collect(self, weights: np.ndarray, version: int, n_step: int, gamma: float) -> Chunk:
        """Do `actor_steps` steps in all environments.

        Args:
            weights: as `pack_weights` returns them.
            version: updates that have been done to them.
            n_step: n of the returns from which TD errors are computed, at most the largest of the config.
            gamma: discount factor.

        Raises:
            UserError: an environment failed.
        """
        if version != self._version:
            unpack_weights(self.network, weights)
            self._version = version
        head, errors = self.replay.head.copy(), self.env.errors
        frames, actions, results = [], [], []
        for _ in range(self.config.actor_steps):
            action_N = self.env.executed(self.policy.act(self.obs, self.epsilon_N, self.exploration, noisy=True))
            result = self.env.step(action_N)
            store(self.config, self.replay, self.frame, action_N, result)
            frames.append(self.frame)
            actions.append(action_N)
            results.append(result)
            self.obs, self.frame = result.obs, result.frame[:, -self.env.frame_channels :]
        warnings = list(self.env.warnings)
        self.env.warnings.clear()
        env, slot, td_error = self._td_errors(n_step, gamma)
        cut = [result for result in results if result.truncated.any()]
        last = [result.last_obs[result.truncated, -self.env.frame_channels :] for result in cut]
        return Chunk(
            version=version,
            frame=np.stack(frames),
            action=np.stack(actions),
            reward=np.stack([result.reward for result in results]),
            terminal=np.stack([result.terminal for result in results]),
            truncated=np.stack([result.truncated for result in results]),
            life_lost=np.stack([result.life_lost for result in results]),
            last_frame=np.concatenate([frames[0][:0], *last]),
            obs=self.obs[:1],
            env=env,
            slot=slot - head[env],
            td_error=td_error,
            errors=self.env.errors - errors,
            warnings=warnings,
        )

    def _td_errors(self, n_step: int, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Absolute TD errors (P,) of the transitions whose n steps are complete since the last call.

        Returns environments (P,), slots of the actor's ring buffers (P,), and the TD errors. Without prioritized replay
        there are none.
        """
        nothing = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        complete = np.maximum(self.replay.head - self.replay.n_step, 0)
        number = complete - self._evaluated
        env = np.repeat(np.arange(len(number)), number)
        slot = np.arange(len(env)) - np.repeat(np.cumsum(number) - number, number) + self._evaluated[env]
        self._evaluated = complete
        if not self.config.per_alpha or not len(env):
            return nothing
        if schedules.is_annealed(self.config):
            self.replay.set_n_step_and_gamma(n_step, gamma)
        batch = self.replay.gather(torch.from_numpy(env), torch.from_numpy(slot))
        rows = batch.weight > 0  # the last observation of a truncated episode starts no transition
        batch = Batch(*(tensor[rows] for tensor in batch))
        env, slot = env[rows.numpy()], slot[rows.numpy()]
        if not len(env):
            return nothing
        taus = self.network.head.sample_taus(len(env), self.generator)
        with torch.no_grad(), self.compute.autocast():
            td_error = self._loss(self.config, self.compute, self.network, self.network, *batch, *taus)[2]
        return env, slot, td_error.float().numpy()

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


def pack_weights(network: nn.Module, compute: Compute) -> np.ndarray:
    """Return the floating-point part of a network's state in 16 bits (bfloat16), as an array of int16."""
    flat = torch.cat([tensor.reshape(-1).float() for tensor in _weights(network)])
    return compute.to_host(flat).to(torch.bfloat16).view(torch.int16).numpy()


def unpack_weights(network: nn.Module, weights: np.ndarray) -> None:
    """Copy weights from `pack_weights` into a network of the same shapes."""
    flat = torch.from_numpy(weights.copy()).view(torch.bfloat16)
    tensors = _weights(network)
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _weights(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
