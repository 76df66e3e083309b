"""Rainbow and Beyond the Rainbow in the style of eager single-file implementations. Not a program.

The code follows files like CleanRL's rainbow_atari.py: float32, not compiled; the replay buffer stores whole frame
stacks, for the observation and again for the next observation; priorities are in a sum tree that is traversed by Python
loops; acting, emulation and learning run sequentially. Settings and environments are those of zerokara, so that they
cause no difference.

Shapes: N environments, B batch, A actions, X atoms, T quantiles, S target quantiles, C, H, W an observation.
"""

from __future__ import annotations

import copy
import math
import random
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from zerokara import envs
from zerokara.agents.configs.dqn import Config
from zerokara.agents.qlearning import schedules


class SumTree:
    """Sum tree: a binary tree whose inner nodes hold the sums of their children."""

    def __init__(self, capacity: int) -> None:
        self.size: int = 2 ** math.ceil(math.log2(capacity))
        self.sums = np.zeros(2 * self.size)

    def __setitem__(self, index: int, value: float) -> None:
        """Set a leaf and update the sums of its ancestors."""
        index += self.size
        self.sums[index] = value
        while index > 1:
            index //= 2
            self.sums[index] = self.sums[2 * index] + self.sums[2 * index + 1]

    def find(self, target: float) -> int:
        """Return the index of the leaf at which the cumulative sum reaches `target`."""
        index = 1
        while index < self.size:
            index *= 2
            if self.sums[index] <= target:
                target -= self.sums[index]
                index += 1
        return index - self.size


class Drawn(NamedTuple):
    """Batch of transitions."""

    index_B: list[int]
    obs: Tensor
    action_B: Tensor
    reward_B: Tensor
    next_obs: Tensor
    done_B: Tensor
    weight_B: Tensor


class Buffer:
    """Prioritized replay buffer of n-step transitions with stratified sampling."""

    def __init__(self, config: Config, obs_shape: tuple[int, int, int]) -> None:
        capacity = config.replay_capacity
        self.config, self.capacity, self.index, self.full = config, capacity, 0, False
        self.obs = np.zeros((capacity, *obs_shape), np.uint8)
        self.next_obs = np.zeros((capacity, *obs_shape), np.uint8)
        self.action, self.reward, self.done = np.zeros(capacity, np.int64), np.zeros(capacity), np.zeros(capacity)
        self.tree, self.max_priority = SumTree(capacity), 1.0
        self.waiting: list[deque[tuple[np.ndarray, int, float, bool]]] = [
            deque(maxlen=config.n_step) for _ in range(config.num_envs)
        ]

    def add(self, env: int, obs: np.ndarray, action: int, reward: float, next_obs: np.ndarray, done: bool) -> None:
        """Add one step of one environment."""
        waiting = self.waiting[env]
        waiting.append((obs, action, reward, done))
        if len(waiting) < self.config.n_step and not done:
            return
        while waiting:
            total = sum(self.config.gamma**k * each[2] for k, each in enumerate(waiting))
            self.obs[self.index], self.action[self.index] = waiting[0][0], waiting[0][1]
            self.reward[self.index], self.next_obs[self.index], self.done[self.index] = total, next_obs, done
            self.tree[self.index] = self.max_priority**self.config.per_alpha
            self.index += 1
            if self.index == self.capacity:
                self.index, self.full = 0, True
            waiting.popleft()
            if not done:
                break

    def sample(self, beta: float) -> Drawn:
        """Sample a batch with importance-sampling weights."""
        size = self.config.batch_size
        segment = self.tree.sums[1] / size
        indices = [self.tree.find(random.uniform(segment * k, segment * (k + 1))) for k in range(size)]
        fraction = self.tree.sums[np.array(indices) + self.tree.size] / self.tree.sums[1]
        weight = ((self.capacity if self.full else self.index) * fraction) ** -beta
        return Drawn(
            indices,
            torch.from_numpy(self.obs[indices]),
            torch.from_numpy(self.action[indices]),
            torch.from_numpy(self.reward[indices]).float(),
            torch.from_numpy(self.next_obs[indices]),
            torch.from_numpy(self.done[indices]).float(),
            torch.from_numpy(weight / weight.max()).float(),
        )

    def update_priorities(self, index_B: list[int], error_B: np.ndarray) -> None:
        """Update the priorities."""
        for index, error in zip(index_B, error_B, strict=True):
            priority = float(error) + 1e-6
            self.tree[index] = priority**self.config.per_alpha
            self.max_priority = max(self.max_priority, priority)


class NoisyLinear(nn.Module):
    """Linear layer with factorized Gaussian noise, whose noisy weights are computed at each pass."""

    weight_epsilon: Tensor
    bias_epsilon: Tensor

    def __init__(self, in_features: int, out_features: int, sigma: float) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight_mu = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_features, in_features), sigma * bound))
        self.bias_mu = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.bias_sigma = nn.Parameter(torch.full((out_features,), sigma * bound))
        self.register_buffer("weight_epsilon", torch.zeros(out_features, in_features))
        self.register_buffer("bias_epsilon", torch.zeros(out_features))

    def reset_noise(self) -> None:
        """Resample the noise."""
        e_in, e_out = (torch.randn(number) for number in reversed(self.weight_mu.shape))
        e_in, e_out = (e.sign() * e.abs().sqrt() for e in (e_in, e_out))
        self.weight_epsilon.copy_(torch.outer(e_out, e_in))
        self.bias_epsilon.copy_(e_out)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs (B, O)."""
        weight = self.weight_mu + self.weight_sigma * self.weight_epsilon
        return F.linear(x, weight, self.bias_mu + self.bias_sigma * self.bias_epsilon)


class Network(nn.Module):
    """Dueling network with noisy layers on a backbone."""

    def __init__(self, config: Config, discriminator_run: nn.Module, features: int, actions: int, outputs: int) -> None:
        super().__init__()
        self.discriminator_run, self.actions, self.outputs = discriminator_run, actions, outputs

        def stream(out: int) -> nn.Sequential:
            sigma = config.noisy_sigma_init
            hidden = NoisyLinear(features, config.hidden_units, sigma)
            return nn.Sequential(hidden, nn.ReLU(), NoisyLinear(config.hidden_units, out, sigma))

        self.value, self.advantage = stream(outputs), stream(actions * outputs)

    def reset_noise(self) -> None:
        """Resample the noise of all layers."""
        for layer in self.modules():
            if isinstance(layer, NoisyLinear):
                layer.reset_noise()

    def duel(self, features: Tensor) -> Tensor:
        """Compute (B, A, X)."""
        value: Tensor = self.value(features).view(-1, 1, self.outputs)
        advantage: Tensor = self.advantage(features).view(-1, self.actions, self.outputs)
        return value + advantage - advantage.mean(1, keepdim=True)


class Rainbow(Network):
    """Nature network (Mnih et al. 2015) with a categorical head of 51 atoms."""

    atoms: Tensor

    def __init__(self, config: Config, channels: int, actions: int) -> None:
        discriminator_run = nn.Sequential(
            nn.Conv2d(channels, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        super().__init__(config, discriminator_run, 3136, actions, config.num_atoms)
        self.register_buffer("atoms", torch.linspace(*config.value_range, config.num_atoms))

    def forward(self, obs: Tensor) -> Tensor:
        """Compute probabilities (B, A, X)."""
        return F.softmax(self.duel(self.discriminator_run(obs / 255.0)), dim=2)

    def values(self, obs: Tensor) -> Tensor:
        """Compute expected returns (B, A)."""
        return (self.forward(obs) * self.atoms).sum(2)


def rainbow_loss(config: Config, online: Rainbow, target: Rainbow, batch: Drawn) -> Tensor:
    """Compute the cross-entropy (B,) to the projected target distribution of the double Q-learning action."""
    atoms, number = online.atoms, len(batch.action_B)
    with torch.no_grad():
        best_B = online.values(batch.next_obs).argmax(1)
        following_BX = target(batch.next_obs)[torch.arange(number), best_B]
        discount = config.gamma**config.n_step
        moved_BX = batch.reward_B[:, None] + discount * atoms[None] * (1 - batch.done_B[:, None])
        place_BX = (moved_BX.clamp(atoms[0], atoms[-1]) - atoms[0]) / (atoms[1] - atoms[0])
        low_BX = place_BX.floor().clamp(0, len(atoms) - 1)
        high_BX = place_BX.ceil().clamp(0, len(atoms) - 1)
        to_low_BX = (high_BX + (low_BX == high_BX).float() - place_BX) * following_BX
        to_high_BX = (place_BX - low_BX) * following_BX
        projected_BX = torch.zeros_like(following_BX)
        for row in range(number):
            projected_BX[row].index_add_(0, low_BX[row].long(), to_low_BX[row])
            projected_BX[row].index_add_(0, high_BX[row].long(), to_high_BX[row])
    predicted_BX: Tensor = online(batch.obs)[torch.arange(number), batch.action_B]
    return -(projected_BX * predicted_BX.clamp(min=1e-5).log()).sum(1)


class Residual(nn.Module):
    """Residual block x + conv(relu(conv(relu(x)))) with spectral normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0, self.conv1 = (spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output, of the same shape as x."""
        out: Tensor = self.conv1(F.relu(self.conv0(F.relu(x))))
        return x + out


class Btr(Network):
    """IMPALA network with an IQN head, evaluated at random quantile fractions."""

    def __init__(self, config: Config, channels: int, actions: int) -> None:
        layers: list[nn.Module] = []
        for number in (16, 32, 32):
            width = round(number * config.width_multiplier)
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            layers += [Residual(width), Residual(width)]
            channels = width
        layers += [nn.ReLU(), nn.AdaptiveMaxPool2d(config.pool_size), nn.Flatten()]
        features = channels * config.pool_size**2
        super().__init__(config, nn.Sequential(*layers), features, actions, 1)
        self.quantiles, self.cosines = config.num_tau_samples, config.cosine_embedding_dim
        self.embedding = nn.Linear(config.cosine_embedding_dim, features)

    def forward(self, obs: Tensor, quantiles: int) -> tuple[Tensor, Tensor]:
        """Compute quantiles (B, T, A) and their fractions (B, T)."""
        x = self.discriminator_run(obs / 255.0)
        tau_BT = torch.rand(len(x), quantiles)
        cosines = torch.cos(tau_BT[:, :, None] * torch.arange(self.cosines) * math.pi)
        embedded = F.relu(self.embedding(cosines))
        z: Tensor = self.duel((x[:, None] * embedded).flatten(0, 1)).squeeze(2)
        return z.view(len(x), quantiles, self.actions), tau_BT

    def values(self, obs: Tensor) -> Tensor:
        """Compute expected returns (B, A)."""
        return self.forward(obs, self.quantiles)[0].mean(1)


def btr_loss(config: Config, online: Btr, target: Btr, batch: Drawn) -> Tensor:
    """Compute the Munchausen quantile Huber loss (B,)."""
    number, temperature = len(batch.action_B), config.munchausen_tau
    with torch.no_grad():
        next_z_BSA, _ = target(batch.next_obs, config.num_target_tau_samples)
        next_q_BA = next_z_BSA.mean(1)
        next_log_pi_BA = temperature * F.log_softmax(next_q_BA / temperature, dim=1)
        next_pi_BA = F.softmax(next_q_BA / temperature, dim=1)
        log_pi_BA = temperature * F.log_softmax(target.values(batch.obs) / temperature, dim=1)
        bonus_B = log_pi_BA[torch.arange(number), batch.action_B].clamp(config.munchausen_clip, 0)
        soft_BS = (next_pi_BA[:, None] * (next_z_BSA - next_log_pi_BA[:, None])).sum(2)
        reward_B = batch.reward_B + config.munchausen_alpha * bonus_B
        target_BS = reward_B[:, None] + config.gamma**config.n_step * (1 - batch.done_B[:, None]) * soft_BS
    z_BTA, tau_BT = online(batch.obs, config.num_tau_samples)
    z_BT: Tensor = z_BTA[torch.arange(number), :, batch.action_B]
    error_BTS = target_BS[:, None] - z_BT[:, :, None]
    huber_BTS: Tensor = torch.where(error_BTS.abs() <= 1, 0.5 * error_BTS**2, error_BTS.abs() - 0.5)
    slope_BTS = (tau_BT[:, :, None] - (error_BTS < 0).float()).abs()
    loss_B: Tensor = (slope_BTS * huber_BTS).mean(2).sum(1)
    return loss_B


class Peer:
    """Training loop: act, step the environments, store, update.

    Args:
        config: of the preset `rainbow` or `btr`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.env = envs.make(config.env, config.num_envs, **config.env_settings())
        self.obs = self.env.reset(config.seed)
        channels, actions = self.env.obs_shape[0], self.env.num_actions
        self.online = Btr(config, channels, actions) if config.head == "iqn" else Rainbow(config, channels, actions)
        self.target = copy.deepcopy(self.online)
        self.optimizer = torch.optim.Adam(
            self.online.parameters(), lr=config.learning_rate, eps=config.optimizer_epsilon
        )
        self.buffer = Buffer(config, self.env.obs_shape)
        self.step = 0
        self.losses: list[float] = []

    def run_steps(self, steps: int) -> None:
        """Train for this number of steps, summed over the environments."""
        end = self.step + steps
        while self.step < end:
            self._play()
            if self.step >= self.config.learning_starts and self.step % self.config.train_every_steps == 0:
                self._learn()
            if self.step % self.config.target_update_steps < self.config.num_envs:
                self.target.load_state_dict(self.online.state_dict())

    def _play(self) -> None:
        config = self.config
        with torch.no_grad():
            self.online.reset_noise()
            action_N = self.online.values(torch.from_numpy(self.obs)).argmax(1).numpy()
        epsilon, actions = schedules.epsilon(config, self.step), self.env.num_actions
        action_N = np.array([random.randrange(actions) if random.random() < epsilon else a for a in action_N])
        self.env.send(action_N)
        step = self.env.recv()
        done_N = step.terminal | step.truncated
        if config.terminal_on_life_loss:
            done_N = done_N | step.life_lost
        for n, action in enumerate(action_N):
            reward, done = float(np.sign(step.reward[n])), bool(done_N[n])
            self.buffer.add(n, self.obs[n], int(action), reward, step.obs[n], done)
        self.obs = step.obs
        self.step += config.num_envs

    def _learn(self) -> None:
        config = self.config
        batch = self.buffer.sample(schedules.per_beta(config, self.step))
        self.online.reset_noise()
        self.target.reset_noise()
        if isinstance(self.online, Btr) and isinstance(self.target, Btr):
            loss_B = btr_loss(config, self.online, self.target, batch)
        else:
            assert isinstance(self.online, Rainbow)
            assert isinstance(self.target, Rainbow)
            loss_B = rainbow_loss(config, self.online, self.target, batch)
        loss = (loss_B * batch.weight_B).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.online.parameters(), config.max_grad_norm or float("inf"))
        self.optimizer.step()
        self.buffer.update_priorities(batch.index_B, loss_B.detach().numpy())
        self.losses.append(loss.item())
