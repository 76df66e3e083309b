"""Parts of an algorithm with a state that belongs to a checkpoint, such as the learner and the replay buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from zerokara.core.checkpoint import later_seed, restore_generator


class Stateful(Protocol):
    """Part of an algorithm with a state that belongs to a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Restore the state that `state_dict` returned."""

    def load_processes(self, states: Mapping[int, dict[str, Any]], rank: int, step: int) -> object:
        """Restore what is useful of the states of other processes; random numbers are drawn anew.

        Args:
            states: states by rank, that of the first process among them.
            rank: rank of this process.
            step: agent step, for `later_seed`.
        """


Part = Stateful | torch.Generator


def part_states(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return the states of parts by name, as tensors and plain values."""
    return {
        name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
        for name, part in parts.items()
    }


def close_files(parts: Mapping[str, Part]) -> None:
    """Close the files of the parts that have any. These parts cannot be used then."""
    for part in parts.values():
        if close := getattr(part, "close_files", None):
            close()


def load_parts(parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    """Restore the states that `part_states` returned."""
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            restore_generator(part, state[name])
        else:
            part.load_state_dict(state[name])


def load_parts_of_processes(
    parts: Mapping[str, Part], states: Mapping[int, Mapping[str, Any]], rank: int, step: int
) -> None:
    """Restore parts from the states of other processes, by rank, as `Stateful.load_processes` describes it."""
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            part.manual_seed(later_seed(part.initial_seed(), step))
        else:
            part.load_processes({saved: state[name] for saved, state in states.items()}, rank, step)
