"""Play: a video of a trained agent, with its Q-values beside the game.

    python -m agents.play pong                                  # a trained agent that ships with zerokara
    python -m agents.play runs/dqn-Pong-v5-fast-1
    python -m agents.play runs/dqn-Pong-v5-fast-1 --attention --epsilon 0 --seed 3
    python -m agents.play runs/dqn-Pong-v5-fast-1 --window

Plays one episode with the weights of the best evaluation (--which last: of the last checkpoint), and writes
runs/<name>/media/play-<step>.mp4 (of an agent of the zoo, runs/outputs-<name>/media/play-<step>.mp4) or opens a window.
Each action has a bar of its Q-value minus the lowest Q-value; the action taken is amber, or red if it was random and
not the best one. The curve below is the maximum Q-value, which estimates the discounted return from here on. Captions
give the scales of bars and curve. --attention adds the network's input with a saliency map: bright pixels are those
whose blurring changes the Q-values most
(agents/viewing/saliency.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from zerokara.agents.viewing.choices import Which
from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.programs import program_command
from zerokara.core.zoo import registry as zoo

MAX_STEPS = 3_000
ZOO_MAX_STEPS = 240  # a longer video would take longer than ten seconds to compute


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run to play and output."""

    run: Annotated[str, Positional("runs/<name>")] = ""
    """Folder of the run, model file, or name of an agent in the zoo."""
    which: Which = "best"
    """Weights of a run: those of its best evaluation, or of its last checkpoint."""
    window: bool = False
    """Show the game in a window in real time instead of writing a video; q or Esc closes it."""
    attention: bool = False
    """Show a saliency map of the network's input. It costs up to 300 forward passes per step."""
    frames: str = ""
    """Folder for the rendered game as PNG files, one per step, without bars and curve; empty: none are written."""
    epsilon: Annotated[float | None, Range(0, 1)] = None
    """Probability of a random action; None: the run's --eval-epsilon."""
    seed: Annotated[int, Range(0, 10**6)] = 0
    """Seed of environment and exploration: the same seed plays the same episode."""
    max_steps: Annotated[int | None, Range(1)] = None
    """Maximum agent steps of the episode; None: 3,000 (200 s of an Atari game), for an agent of the zoo 240 (16 s)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one, which is faster for one observation at a time; one per core with --attention."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import cv2
import numpy as np

from zerokara import envs
from zerokara.agents.qlearning.policy import RecurrentPolicy
from zerokara.agents.training.pictures import EpisodeStep, frames_per_second, play_episode
from zerokara.agents.viewing.drawing import MAX_BARS, EpisodeRenderer, newest_frame
from zerokara.agents.viewing.loading import Agent, evaluation_seed, find_agent, load_agent
from zerokara.agents.viewing.saliency import saliency
from zerokara.core.media import write_mp4, write_png
from zerokara.core.progress import Progress
from zerokara.core.report import run_folders


class Episode:
    """One episode that is played and drawn: an iterator over video frames that counts score and steps."""

    def __init__(
        self, agent: Agent, env: envs.VectorEnv, options: Options, max_steps: int, frames: Path | None
    ) -> None:
        self.score, self.steps, self.max_steps = 0.0, 0, max_steps
        self._agent, self._env, self._options, self._frames = agent, env, options, frames

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield frames (height, width, 3) uint8 RGB, one per step, each with the score before its action."""
        agent, env, options = self._agent, self._env, self._options
        epsilon = agent.config.eval_epsilon if options.epsilon is None else options.epsilon
        renderer = EpisodeRenderer(env.id, f"{agent.name} at step {agent.step:,}", env.action_names, epsilon)
        seed = evaluation_seed(options.seed)
        for moment in play_episode(agent.policy, env, epsilon=epsilon, max_steps=self.max_steps, seed=seed):
            if self._frames is not None:
                write_png(self._frames / f"frame-{self.steps:06}.png", moment.picture)
            yield self._draw(renderer, moment)
            self.score += moment.reward
            self.steps += 1

    def _draw(self, renderer: EpisodeRenderer, moment: EpisodeStep) -> np.ndarray:
        input_frame = saliency_HW = None
        if self._options.attention:
            input_frame = newest_frame(moment.obs, self._env.frame_channels)
            saliency_HW = saliency(self._agent.policy.values, moment.obs)
        return renderer.draw(
            moment.picture, moment.q_A, moment.action, self.score, self.steps, input_frame, saliency_HW
        )


def write_video(episode: Episode, path: Path, fps: float) -> None:
    """Write the episode as mp4, with a progress bar."""
    progress = Progress(silent=False)

    def frames_with_progress() -> Iterator[np.ndarray]:
        for frame in episode:
            progress.show(episode.steps, episode.max_steps, {"score": episode.score})
            yield frame

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_mp4(path, frames_with_progress(), fps)
    finally:
        progress.close()


def show_window(episode: Episode, title: str, fps: float) -> None:
    """Play in a window, in real time if the network is fast enough."""
    cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE)
    try:
        for frame in episode:
            cv2.imshow(title, frame[..., ::-1])
            key = cv2.waitKey(max(1, round(1000 / fps)))
            if key in (27, ord("q")) or cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
                return
    finally:
        cv2.destroyAllWindows()


def check_window() -> None:
    """Check that windows can be opened, in a separate process, because Qt aborts the process if there is no display.

    Raises:
        UserError: there is no display, or OpenCV was built without window support.
    """
    code = "import cv2; cv2.namedWindow('zerokara'); cv2.waitKey(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise UserError(
            "--window needs a display and an OpenCV with windows (opencv-python, not opencv-python-headless), and no "
            "window could be opened here: leave the flag out to write a video instead."
        )


def frames_folder(name: str) -> Path | None:
    """Create and return the folder for PNG files; None if `name` is empty.

    Raises:
        UserError: it is a file, or it contains the pictures of another episode.
    """
    if not name:
        return None
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--frames {folder} is a file, but it must be a folder: give another name.")
    if any(folder.glob("frame-*.png")):
        raise UserError(f"--frames {folder} contains images of another episode: give an empty or a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Play one episode and write its video, or show it in a window."""
    options = parse(Options, {}, argv, __doc__ or "")
    (folder,) = run_folders((options.run,), program_command("agents.play"), find_agent)
    if options.window:
        check_window()
    threads = options.threads or (0 if options.attention else 1)
    agent = load_agent(folder, which=options.which, device=options.device, threads=threads)
    if options.attention and agent.config.obs_type == "vector":
        raise UserError("--attention blurs parts of an image, and this agent observes vectors: leave the flag out.")
    if options.attention and isinstance(agent.policy, RecurrentPolicy):
        raise UserError("--attention needs an agent without an LSTM, whose Q-values depend on one input: leave it out.")
    max_steps = options.max_steps or (ZOO_MAX_STEPS if options.run in zoo.files("agents") else MAX_STEPS)
    with closing(agent.make_env(1, render=True)) as env:
        episode = Episode(agent, env, options, max_steps, frames_folder(options.frames))
        fps = frames_per_second(env)
        if options.window:
            show_window(episode, f"zerokara: {env.id}", fps)
            output = "shown in a window"
        else:
            path = agent.output_folder / "media" / f"play-{agent.step}.mp4"
            write_video(episode, path, fps)
            output = str(path)
    if env.num_actions > MAX_BARS:
        print(f"bars: the best {MAX_BARS} of {env.num_actions:,} actions at each step, and the action taken")
    cut = f", truncated by --max-steps {max_steps}" if episode.steps == max_steps else ""
    print(f"weights: {agent.weights}{', without any update: an untrained network' if agent.updates == 0 else ''}")
    print(f"{env.id}: score {episode.score:,.6g} in {episode.steps:,} steps{cut}; {output}", flush=True)


if __name__ == "__main__":
    run_main(main)
