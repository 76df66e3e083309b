"""Export a trained agent to safetensors and ONNX, and check the files.

    python -m agents.export runs/pong
    python -m agents.export runs/pong --out pong.onnx
    python -m agents.export pong                        # an agent of the zoo

Without --out, or with a folder as --out, two files are written: <name>.safetensors has the weights and, as metadata,
the settings of agent and environment, and is loaded like a run (`python -m agents.play pong.safetensors`). <name>.onnx
has the input `observations` (N, C, H, W), for any N, as the environment of the training returns them: uint8 stacked
frames, oldest first, or float32 vectors with H = W = 1. Its output is `q_values` (N, A); the action is the index of the
largest one, and the names of the actions are in the metadata of the file.

Before the files are put in place, both are run on observations of episodes that the agent plays, in one batch and
alone, and compared with the original network: Q-values and actions.

ONNX needs three further packages: pip install onnx onnxscript onnxruntime.

Shapes: N observations, C channels, H, W pixels, A actions.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from zerokara.agents.viewing.choices import Which
from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.programs import program_command

MAX_DIFFERENCE = 1e-4  # of a Q-value, as a fraction of the largest absolute Q-value
MAX_DIFFERENCE_HALF = 0.02  # with weights rounded to float16
EPSILON = 0.1  # of the episodes whose observations are compared
SUFFIXES = (".safetensors", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of agents.export."""

    agent: Annotated[str, Positional("runs/<name>")] = ""
    """Run folder, model file, or name of an agent in the zoo."""
    which: Which = "best"
    """Weights of a run: those of its best evaluation, or of its last checkpoint."""
    out: str = ""
    """Output folder, or one file *.onnx or *.safetensors; empty: export/ in the run folder, or the current folder."""
    onnx: bool = True
    """Write an ONNX file as well."""
    half: bool = False
    """Save the weights of the safetensors file as float16, which halves its size."""
    observations: Annotated[int, Range(1, 10_000)] = 256
    """Number of observations for the check."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor, nn

from zerokara.agents.qlearning.agent_file import AgentMetadata
from zerokara.agents.qlearning.network import QNetwork
from zerokara.agents.qlearning.policy import Exploration, RecurrentPolicy
from zerokara.agents.viewing.loading import Agent, evaluation_seed, find_agent, load_agent
from zerokara.core.models import onnx_file
from zerokara.core.models.exporting import Function, compare, put_in_place
from zerokara.core.report import run_folders
from zerokara.envs import VectorEnv


class DeployedAgent(nn.Module):
    """Q-network from observations (N, C, H, W), uint8 or float32 of vectors, to Q-values (N, A) float32."""

    def __init__(self, network: QNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> Tensor:
        """Return Q-values (N, A)."""
        is_image = not observations.is_floating_point()
        q_values: Tensor = self.network(observations.float() * (1 / 255) if is_image else observations)
        return q_values


class SlicedMaxPool(nn.Module):
    """Adaptive max pooling by slices, with the windows of `nn.AdaptiveMaxPool2d`, which the ONNX exporter lacks.

    Args:
        size: height and width of the output.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the maxima (B, C, size, size)."""
        for dimension in (2, 3):
            length = x_BCHW.shape[dimension]
            windows = [(i * length // self.size, -(-(i + 1) * length // self.size)) for i in range(self.size)]
            parts = [x_BCHW.narrow(dimension, low, high - low).amax(dimension, keepdim=True) for low, high in windows]
            x_BCHW = torch.cat(parts, dimension)
        return x_BCHW


def exportable(network: QNetwork) -> QNetwork:
    """Return a copy of a network without layers that the ONNX exporter lacks."""
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        # Other sizes than a number are left to the exporter, which reports them.
        if isinstance(module, nn.AdaptiveMaxPool2d) and isinstance(module.output_size, int):
            network.set_submodule(name, SlicedMaxPool(module.output_size))
    return network


def as_function(network: QNetwork) -> Function:
    """Return a network as a function from observations to Q-values."""
    deployed = DeployedAgent(network).eval()

    @torch.no_grad()
    def values(observations: Tensor) -> np.ndarray:
        return np.asarray(deployed(observations).numpy())

    return values


def record_observations(agent: Agent, env: VectorEnv, number: int) -> Tensor:
    """Play with the agent and return the first observations (number, C, H, W)."""
    exploration, obs = Exploration(env.num_envs, env.num_actions, 0), env.reset(evaluation_seed(0))
    recorded = [obs]
    while len(recorded) * env.num_envs < number:
        recorded.append(env.step(agent.policy.act(recorded[-1], EPSILON, exploration)).obs)
    return torch.from_numpy(np.concatenate(recorded)[:number])


def output_paths(options: Options, agent: Agent) -> list[Path]:
    """Return the files to write: one if --out names a file, otherwise both in a folder.

    Raises:
        UserError: a file would replace the one that is exported, or is excluded by another option.
    """
    out = Path(options.out)
    if out.suffix in SUFFIXES:
        if out.suffix == ".onnx" and not options.onnx:
            raise UserError(f"--out {out} is an ONNX file, and --no-onnx leaves it out: remove one of the two options.")
        paths = [out]
    else:
        folder = out if options.out else (agent.source / "export" if agent.source.is_dir() else Path())
        paths = [folder / f"{agent.name}{suffix}" for suffix in SUFFIXES if suffix != ".onnx" or options.onnx]
    for path in paths:
        if path.resolve() == agent.source.resolve():
            raise UserError(f"{path} is the file to be exported: give another folder with --out.")
    return paths


def write_onnx(agent: Agent, env: VectorEnv, example: Tensor, path: Path) -> None:
    """Write an ONNX file with a variable batch size."""
    texts = {
        "actions": json.dumps(env.action_names),
        "environment": json.dumps({"id": agent.config.env, **agent.metadata.environment}),
        "card": json.dumps(dataclasses.asdict(agent.metadata)),
    }
    onnx_file.write(
        DeployedAgent(exportable(agent.policy.network)).eval(), {"observations": example}, "q_values", path, texts
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: load the agent, play, write the files, check them, put them in place."""
    options = parse(Options, {}, argv, __doc__ or "")
    (source,) = run_folders((options.agent,), program_command("agents.export"), find_agent)
    agent = load_agent(source, which=options.which)
    paths = output_paths(options, agent)
    if any(path.suffix == ".onnx" for path in paths):
        if isinstance(agent.policy, RecurrentPolicy):
            raise UserError(
                f"{agent.source} has an LSTM, whose state an ONNX file of zerokara does not carry: pass --no-onnx, or "
                f"--out with a name that ends in .safetensors."
            )
        onnx_file.check_packages()
    original = as_function(agent.policy.network)
    with closing(agent.make_env(min(options.observations, 8))) as env:
        obs_NCHW = record_observations(agent, env, options.observations)
        q_NA = original(obs_NCHW)
        scale, best = max(float(np.abs(q_NA).max()), 1e-6), q_NA[0].argmax()
        print(
            f"{agent.source}: {agent.config.env}, weights {agent.weights}, at step {agent.step:,}; "
            f"checked on {len(obs_NCHW):,} observations; "
            f"for the first one the action is {best} ({env.action_names[best]})"
        )
        with tempfile.TemporaryDirectory() as scratch:
            checked = []
            for path in paths:
                written = Path(scratch) / path.name
                if path.suffix == ".onnx":
                    write_onnx(agent, env, obs_NCHW[:1].repeat(2, 1, 1, 1), written)
                    exported, max_difference = onnx_file.load(written), MAX_DIFFERENCE
                else:
                    agent.metadata.save(written, agent.policy.network.state_dict(), half=options.half)
                    exported = as_function(AgentMetadata.load(written)[0])
                    max_difference = MAX_DIFFERENCE_HALF if options.half else MAX_DIFFERENCE
                compared = compare(exported, original, obs_NCHW, max_difference * scale, "Q-value")
                checked.append((written, path, *compared))
            for written, path, largest, changed in checked:
                put_in_place(written, path)
                print(
                    f"{path}: {path.stat().st_size / 1e3:,.0f} kB, largest difference of a Q-value {largest:.1e}, "
                    f"{len(obs_NCHW) - changed:,} of {len(obs_NCHW):,} actions are the same"
                )


if __name__ == "__main__":
    run_main(main)
