"""Best agent of a run, selected by its evaluations and kept in agent-best.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zerokara.agents.qlearning.agent_file import BEST, AgentMetadata
from zerokara.core.run import Run


class BestAgent:
    """Score and step of the best evaluation so far, and the file with the weights that were evaluated.

    Score and step belong to a checkpoint. A run that was killed after a better evaluation repeats it, with the same
    score, and writes the same file again.

    Args:
        run: run folder.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.score: float | None = None  # mean raw return
        self.step = 0  # agent steps

    def update(
        self,
        weights: Mapping[str, Tensor],
        figures: Mapping[str, float],
        *,
        num_actions: int,
        obs_shape: tuple[int, int, int],
        step: int,
    ) -> None:
        """Write the file if this evaluation is better than all before; only the main process writes.

        Args:
            weights: of the network that was evaluated.
            figures: results; "eval/return" is the score.
            num_actions: number of actions.
            obs_shape: shape of the observations.
            step: agent steps.

        Raises:
            UserError: the file cannot be written; an existing file is unchanged.
        """
        if self.score is not None and figures["eval/return"] <= self.score:
            return
        self.score, self.step = figures["eval/return"], step
        if not self._run.world.is_main:
            return
        folder = self._run.folder  # its config.json is as it was at the start, so that the same file is written again
        metadata = AgentMetadata.of_run(
            folder, num_actions=num_actions, obs_shape=obs_shape, step=step, figures=figures
        )
        metadata.save(folder / BEST, weights)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"score": self.score, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.score, self.step = state["score"], state["step"]
