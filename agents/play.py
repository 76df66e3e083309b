"""Play: watch a trained agent, with its Q-values beside the game.

    python -m agents.play runs/dqn-Pong-v5-fast-1
    python -m agents.play runs/dqn-Pong-v5-fast-1 --attention --epsilon 0 --seed 3
    python -m agents.play runs/dqn-Pong-v5-fast-1 --window

One game, by the last checkpoint, as a film in runs/<name>/media/play-<step>.mp4 or in a window. A bar stands for each
action; amber is the one taken, red one that chance took. Below is the value of the best action over time: what the
agent expects to gain. With --attention a second picture shows what the network sees, bright where it looks
(agents/viewing/saliency.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from zerokara import envs
from zerokara.agents.training.pictures import EpisodeStep, frames_per_second, play_episode
from zerokara.agents.viewing.drawing import TensorBoardWriter, newest_frame
from zerokara.agents.viewing.loading import Agent, game_seed, load_agent
from zerokara.agents.viewing.saliency import saliency
from zerokara.core.command_line import parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.media import write_mp4, write_png
from zerokara.core.programs import program_command
from zerokara.core.progress import Progress
from zerokara.core.report import run_folders


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to show, and how."""

    run: Annotated[str, Positional("runs/<name>")] = ""
    """Folder of the run whose last checkpoint plays."""
    window: bool = False
    """Show the game live in a window, at its real speed, instead of filming it; q or Esc closes it."""
    attention: bool = False
    """Show where the network looks. It takes up to 300 looks of the network for each step."""
    frames: str = ""
    """Folder for the game's own pictures as PNG, one for each step; empty: not kept."""
    epsilon: Annotated[float | None, Range(0, 1)] = None
    """Probability of a random action; None: that of the run's own evaluations."""
    seed: Annotated[int, Range(0, 10**6)] = 0
    """Which game is played: the same seed plays the same one."""
    max_steps: Annotated[int, Range(1)] = 3_000
    """Agent steps after which the game is cut; 3,000 are 200 s of an Atari game."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


class Game:
    """One game as it is being watched: an iterator over frames that keeps the score."""

    def __init__(self, agent: Agent, env: envs.VectorEnv, options: Options, frames: Path | None) -> None:
        self.score, self.steps = 0.0, 0
        self._agent, self._env, self._options, self._frames = agent, env, options, frames

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames (height, width, 3) uint8 RGB, one for each step, each with the score before its action."""
        agent, env, options = self._agent, self._env, self._options
        epsilon = agent.config.eval_epsilon if options.epsilon is None else options.epsilon
        board = TensorBoardWriter(env.id, f"{agent.name} at step {agent.step:,}", env.action_names, epsilon)
        seed = game_seed(options.seed)
        for moment in play_episode(agent.policy, env, epsilon=epsilon, max_steps=options.max_steps, seed=seed):
            if self._frames is not None:
                write_png(self._frames / f"frame-{self.steps:06}.png", moment.picture)
            yield self._draw(board, moment)
            self.score += moment.reward
            self.steps += 1

    def _draw(self, board: TensorBoardWriter, moment: EpisodeStep) -> np.ndarray:
        seen = heat_HW = None
        if self._options.attention:
            seen = newest_frame(moment.obs, self._env.frame_channels)
            heat_HW = saliency(self._agent.policy.values, moment.obs)
        return board.draw(moment.picture, moment.q_A, moment.action, self.score, self.steps, seen, heat_HW)


def film(game: Game, path: Path, fps: float, max_steps: int) -> None:
    """Write the game as mp4, saying how far it is."""
    progress = Progress(silent=False)

    def watched() -> Iterator[np.ndarray]:
        for frame in game:
            progress.show(game.steps, max_steps, {"score": game.score})
            yield frame

    path.parent.mkdir(exist_ok=True)
    try:
        write_mp4(path, watched(), fps)
    finally:
        progress.close()


def show(game: Game, title: str, fps: float) -> None:
    """Play in a window, at the game's own speed if the network keeps up with it."""
    cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE)
    try:
        for frame in game:
            cv2.imshow(title, frame[..., ::-1])
            key = cv2.waitKey(max(1, round(1000 / fps)))
            if key in (27, ord("q")) or cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
                return
    finally:
        cv2.destroyAllWindows()


def check_window() -> None:
    """Make sure that windows can be opened, in a process of its own: Qt ends the one in which it finds no display.

    Raises:
        UserError: there is no display, or OpenCV was built without windows.
    """
    attempt = "import cv2; cv2.namedWindow('zerokara'); cv2.waitKey(1)"
    done = subprocess.run([sys.executable, "-c", attempt], capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise UserError(
            "--window needs a display and an OpenCV with windows (opencv-python, not opencv-python-headless), and no "
            "window could be opened here: leave the flag out to get a film instead."
        )


def frames_folder(name: str) -> Path | None:
    """The folder for pictures, made; None where none is wanted.

    Raises:
        UserError: it is a file, or holds pictures of another game.
    """
    if not name:
        return None
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--frames {folder} is a file, and pictures need a folder: give another name.")
    if any(folder.glob("frame-*.png")):
        raise UserError(f"--frames {folder} holds pictures of another game already: give an empty or a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """One game, watched."""
    options = parse(Options, {}, argv, __doc__ or "")
    (folder,) = run_folders((options.run,), program_command("agents.play"))
    if options.window:
        check_window()
    agent = load_agent(folder, device=options.device, threads=options.threads)
    env = agent.make_env(1, render=True)
    game = Game(agent, env, options, frames_folder(options.frames))
    fps = frames_per_second(env)
    if options.window:
        show(game, f"zerokara: {env.id}", fps)
        kept = "watched"
    else:
        path = folder / "media" / f"play-{agent.step}.mp4"
        film(game, path, fps, options.max_steps)
        kept = str(path)
    env.close()
    cut = f", cut by --max-steps {options.max_steps}" if game.steps == options.max_steps else ""
    print(f"{env.id}: score {game.score:,.6g} in {game.steps:,} steps{cut}; {kept}", flush=True)


if __name__ == "__main__":
    run_main(main)
