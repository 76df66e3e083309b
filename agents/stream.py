"""Streaming Q(lambda): train an agent with eligibility traces, one update per step, without storing any step.

    python -m agents.stream --env ALE/Pong-v5

Elsayed, Vasan and Mahmood 2024, "Streaming Deep Reinforcement Learning Finally Works", algorithm Stream Q(lambda). The
agent acts in one environment, learns from every step once, and forgets it: there is no replay buffer, no batch and no
target network. Eligibility traces z, one for each weight, remember which weights caused the Q-values of the last steps,
so that a TD error corrects these Q-values, too:

    z = gamma lambda z + gradient of Q(s, a)
    delta = r + gamma max over a' of Q(s', a') - Q(s, a)
    w = w + alpha delta z,    alpha = learning rate / max(1, learning rate kappa max(1, |delta|) |z|_1)

The bound on alpha (overshooting-bounded gradient descent, ObGD) keeps updates so small that the TD error of the step
should not change its sign. The traces are reset at the end of an episode and when an action was not greedy (Watkins
1989), since the later rewards are then not those of the greedy policy. Training is stable because of sparse initial
weights, LayerNorm before every activation, and rewards and observations that are normalized by running statistics.

Top to bottom: the TD error and the step size, one iteration of the loop (act, add the gradient to the traces while the
environment runs, update). Running statistics are in agents/qlearning/normalization.py, the vectors of weights and
traces in agents/qlearning/traces.py, the network in agents/qlearning/network.py; logging, evaluation and checkpoints in
agents/training/session.py, the start of a run in agents/training/start.py.

Shapes: N = 1 environment, P parameters, A actions, C, H, W an observation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zerokara.agents.configs.stream import KIND, Config, check_processes, read_config
from zerokara.core.command_line import check_command_line
from zerokara.core.config import run_main

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor

from zerokara.agents.qlearning import schedules
from zerokara.agents.qlearning.network import make_stream_network
from zerokara.agents.qlearning.normalization import InputNormalization, RewardScaler, RunningStatistics
from zerokara.agents.qlearning.policy import Exploration, Policy
from zerokara.agents.qlearning.replay import ALL, Rows
from zerokara.agents.qlearning.traces import TraceLearner
from zerokara.agents.training.session import Session
from zerokara.agents.training.start import Resources, start_run
from zerokara.core.run import LogCallback, Run
from zerokara.envs import Step


def td_error(reward: float, value: float, next_value: float, *, gamma: float, terminal: bool) -> float:
    """TD error of a step: r + gamma max over a' of Q(s', a') - Q(s, a), without the maximum at a terminal.

    Args:
        reward: scaled reward r.
        value: Q(s, a).
        next_value: maximum Q-value of the observation after the step; at a truncation, that of the last observation of
            the episode.
        gamma: discount factor of one step.
        terminal: the episode terminated, or a life was lost that counts as its end.
    """
    return reward + gamma * (not terminal) * next_value - value


def obgd_step_size(error: float, trace_norm: float, *, learning_rate: float, kappa: float) -> float:
    """Step size of overshooting-bounded gradient descent (Elsayed et al. 2024, algorithm 3).

    The product of step size, kappa, max(1, |error|) and |z|_1 is at most 1. It estimates from above how much of the TD
    error an update removes; above 1, the error would change its sign.

    Args:
        error: TD error.
        trace_norm: |z|_1, the sum of the absolute traces.
        learning_rate: step size without the bound.
        kappa: factor in the bound.
    """
    return learning_rate / max(1.0, learning_rate * kappa * max(1.0, abs(error)) * trace_norm)


class Training(Session):
    """State of a run of streaming Q(lambda), and one iteration of the training loop."""

    config: Config
    learner: TraceLearner

    def __init__(self, config: Config, run: Run, resources: Resources) -> None:
        super().__init__(config, run, resources, "agents.stream")
        torch.manual_seed(config.seed)
        network = make_stream_network(config, self.env.obs_shape, self.env.num_actions)
        self.learner = TraceLearner(network, self.compute)
        self.policy = Policy(network, self.compute)
        self.exploration = Exploration(1, self.env.num_actions, self.seed, config.ez_greedy_zeta)
        self.normalization = network.normalization
        self.frames = RunningStatistics((self.env.obs_shape[0] // config.frame_stack, *self.env.obs_shape[1:]))
        self.rewards = RewardScaler(config.gamma)
        self.register(learner=self.learner, exploration=self.exploration, frames=self.frames, rewards=self.rewards)

    @property
    def epsilon(self) -> float:
        """Probability of a random action, linear in `epsilon_decay_steps`. See also `Session.epsilon`."""
        return schedules.linear_epsilon(self.config, self.step)

    def observe(self, obs_NCHW: np.ndarray) -> None:
        """Add the newest frame of an observation to the statistics with which observations are normalized."""
        if isinstance(self.normalization, InputNormalization):
            self.frames.update(obs_NCHW[0, -len(self.frames.mean) :])
            self.normalization.set_statistics(self.frames, unit=255.0 if obs_NCHW.dtype == np.uint8 else 1.0)

    def end_episodes(self, rows: Rows = ALL) -> None:
        """See `Session.end_episodes`. The new episode has no traces, and its first observation is a new one."""
        super().end_episodes(rows)
        self.learner.trace_P.zero_()
        self.rewards.trace = 0.0
        self.observe(self.obs)

    def iterate(self) -> None:
        """Do one step in the environment and one update."""
        with self.timed("act"):
            q_NA = self.learner.values(self.obs)
            action_N = self.env.executed(self.policy.epsilon_greedy(q_NA, self.epsilon, self.exploration))
            action = int(action_N[0])
            is_greedy = action == int(q_NA[0].argmax())
        self.env.send(action_N)
        with self.timed("learn"):
            value = q_NA[0, action]
            self.add_gradient(value, is_greedy)
        with self.timed("emulate"):
            step = self.env.recv()
        with self.timed("learn"):
            self.update(step, float(value.detach()), is_greedy)
        self.record(step)  # sets self.latest, adds 1 to self.step
        if step.terminal[0] or step.truncated[0]:
            self.observe(self.obs)  # the first one of the next episode

    def add_gradient(self, value: Tensor, is_greedy: bool) -> None:
        """Decay the traces, and add the gradient of a Q-value (a scalar) to them."""
        config, trace_P = self.config, self.learner.trace_P
        if is_greedy or config.trace_reset == "after":
            trace_P.mul_(config.gamma * config.td_lambda)
        else:
            trace_P.zero_()
        value.backward()  # adds to the gradients, which are the traces

    def update(self, step: Step, value: float, is_greedy: bool) -> None:
        """Update the weights from the TD error of a step, and reset the traces if they end here.

        Args:
            step: result of the step.
            value: Q(s, a) before it.
            is_greedy: the executed action was the greedy one.
        """
        config, learner = self.config, self.learner
        terminal = bool(step.terminal[0]) or (config.terminal_on_life_loss and bool(step.life_lost[0]))
        ended = terminal or bool(step.truncated[0])
        reward = float(np.sign(step.reward[0]) if config.clip_rewards else step.reward[0])
        if config.scale_rewards:
            reward = self.rewards.scale(reward, ended)
        self.observe(step.last_obs)
        next_value = 0.0 if terminal else float(self.policy.values(step.last_obs).amax())

        error = td_error(reward, value, next_value, gamma=config.gamma, terminal=terminal)
        trace_norm = float(learner.trace_P.abs().sum())
        learning_rate = schedules.learning_rate(config, self.step)
        step_size = obgd_step_size(error, trace_norm, learning_rate=learning_rate, kappa=config.kappa)
        learner.weight_P.add_(learner.trace_P, alpha=step_size * error)
        if ended or (config.trace_reset == "after" and not is_greedy):
            learner.trace_P.zero_()
        self.updates += 1
        learner.add_metrics(error**2 / 2, value, abs(error), step_size, trace_norm)


def train(config: Config, run: Run, resources: Resources) -> str:
    """Train from the current step to the end of the run. Return the closing message.

    Raises:
        UserError: the checkpoint cannot be read, or training diverged (the weights contain NaN or Inf).
    """
    training = Training(config, run, resources)
    training.start()  # restores the checkpoint of a resumed run
    if not training.resumed:
        training.observe(training.obs)
    training.print_settings()
    # `iterations` logs, evaluates and saves between iterations; it ends after a signal, when the run has been saved.
    for _ in training.iterations():
        training.iterate()
    return training.closing_message()


def probe_step(config: Config, resources: Resources, batch_size: int) -> Callable[[], object]:
    """Return the passes of the network in one step, which are timed to choose precision and compilation."""
    env, compute = resources.env, resources.compute
    network = make_stream_network(config, env.obs_shape, env.num_actions)
    learner, policy = TraceLearner(network, compute), Policy(network, compute)
    obs = np.zeros((batch_size, *env.obs_shape), env.obs_dtype)

    def step() -> None:
        learner.values(obs).amax().backward()
        policy.values(obs)

    return step


def start(config: Config, callback: LogCallback | None = None) -> None:
    """Start or resume the run of a config: open the run folder, choose the hardware settings, train."""
    start_run(
        config,
        KIND,
        train,
        probe_step,
        batch_size=1,
        updates=config.total_steps,
        divided=(),
        check=check_processes,
        callback=callback,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    start(read_config(argv, __doc__ or ""))


if __name__ == "__main__":
    run_main(main)
