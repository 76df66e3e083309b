"""Evaluate: what a trained agent scores over whole games.

    python -m agents.evaluate runs/dqn-Pong-v5-fast-1 --episodes 30
    python -m agents.evaluate runs/dqn-Pong-v5-fast-1 --protocol nature

Raw scores of whole games, as many in each environment, since the first N games to end would be the short ones. The
protocol is printed with the score, for without it the score means little: settings of the environment, epsilon, seeds,
and where games are cut. The scale of human-normalised scores is that of Mnih et al. 2015: random play is 0, a
professional tester 1 (agents/benchmarking/atari_scores.py). The games begin from seeds that training has not seen.

The table goes to the terminal, everything to runs/<name>/evaluation-<step>.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.agents.benchmarking.atari_scores import human_normalised, reference
from zerokara.agents.configs.common import ProtocolName
from zerokara.agents.configs.protocols import OVERRIDES, PROTOCOLS
from zerokara.agents.training.evaluation import Scores, evaluate
from zerokara.agents.viewing.loading import Agent, evaluation_seed, load_agent
from zerokara.core.command_line import parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.machine import describe_versions
from zerokara.core.programs import program_command
from zerokara.core.report import run_folders, write_json

MAX_ENVS = 32  # more at once hardly play faster


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to play, and how."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Folders of the runs whose last checkpoints play."""
    protocol: ProtocolName | None = None
    """Play by a protocol (agents/configs/protocols.py), whatever the agent was trained by; None: by that of the run."""
    episodes: Annotated[int | None, Range(1, 100_000)] = None
    """Whole games of each agent; None: the protocol's, or 30."""
    num_envs: Annotated[int, Range(0, 1024)] = 0
    """Environments that share the games evenly; 0: as many as do, up to 32."""
    epsilon: Annotated[float | None, Range(0, 1)] = None
    """Probability of a random action; None: the protocol's, or that of the run's own evaluations."""
    max_steps: Annotated[int | None, Range(1)] = None
    """Agent steps after which a game is cut and counts as it stands; None: as epsilon."""
    seed: Annotated[int, Range(0, 10**6)] = 0
    """Which games are played: the same seed plays the same ones."""
    json: bool = False
    """Print JSON, one line for each run, in place of the table."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def evaluate_agent(agent: Agent, options: Options) -> dict[str, Any]:
    """Play, and say everything that somebody needs who wants to play the same games again: plain values for JSON.

    Raises:
        UserError: games that the environments cannot share evenly, or an environment that cannot be made.
    """
    games_per_env, num_envs = share(games_asked(options), options.num_envs)
    rules = overrides(options)
    epsilon = rules.get("eval_epsilon", agent.config.eval_epsilon) if options.epsilon is None else options.epsilon
    max_steps = options.max_steps or rules.get("eval_max_steps", agent.config.eval_max_steps)
    env = agent.make_env(num_envs, protocol=options.protocol)
    scores = evaluate(
        agent.policy,
        env,
        episodes_per_env=games_per_env,
        epsilon=epsilon,
        max_steps=max_steps,
        seed=evaluation_seed(options.seed),
    )
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in env.settings.items()}
    env.close()
    return {
        "run": agent.name,
        "env": agent.config.env,
        "step": agent.step,
        **summary(agent.config.env, scores),
        "training": {"games": len(agent.returns), "mean": float(np.mean(agent.returns))} if agent.returns else None,
        "protocol": {
            "name": options.protocol,
            "settings": settings,
            "epsilon": epsilon,
            "max_steps": max_steps,
            "num_envs": num_envs,
            "games_per_env": games_per_env,
            "seed": options.seed,
            "env_seed": evaluation_seed(options.seed),
            "device": agent.policy.compute.device,
            "precision": agent.policy.compute.precision,
        },
        "returns": list(scores.returns),
        "lengths": list(scores.lengths),
        "versions": describe_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def overrides(options: Options) -> Mapping[str, Any]:
    """What the protocol says in place of the run's config: nothing where none is asked for."""
    return OVERRIDES[options.protocol] if options.protocol else {}


def games_asked(options: Options) -> int:
    """How many games are asked for."""
    return options.episodes or int(overrides(options).get("eval_episodes", 30))


def share(episodes: int, num_envs: int) -> tuple[int, int]:
    """Games of each environment, and environments: as many as asked for, or (0) the most that share evenly.

    Raises:
        UserError: they cannot be shared evenly.
    """
    if not num_envs:
        num_envs = max(n for n in range(1, MAX_ENVS + 1) if episodes % n == 0)
    if episodes % num_envs:
        more = -(-episodes // num_envs) * num_envs
        raise UserError(
            f"--episodes {episodes} cannot be shared by --num-envs {num_envs} evenly, and short games would count "
            f"more often: ask for {more} games, or leave --num-envs out."
        )
    return episodes // num_envs, num_envs


def summary(env_id: str, scores: Scores) -> dict[str, Any]:
    """Raw returns and lengths (agent steps) in numbers; human-normalised where a human was ever measured."""
    returns, scale = np.array(scores.returns), reference(env_id)
    return {
        "games": len(returns),
        "mean": scores.mean,
        "standard_error": scores.standard_error,
        "median": float(np.median(returns)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "mean_length": float(np.mean(scores.lengths)),
        "cut": scores.cut,
        "human_normalised": human_normalised(env_id, scores.mean),
        "random_score": scale[0] if scale else None,
        "human_score": scale[1] if scale else None,
    }


def protocol_lines(result: Mapping[str, Any]) -> list[str]:
    """Under which circumstances the score was made, in words."""
    protocol = result["protocol"]
    settings = ", ".join(f"{key} {value}" for key, value in protocol["settings"].items())
    lines = [
        f"{result['run']}: {result['env']} at step {result['step']:,}",
        f"  environment: {settings}",
        f"  games: {result['games']}, {protocol['games_per_env']} in each of {protocol['num_envs']} environments",
        f"  seed: {protocol['seed']}, which environments know as {protocol['env_seed']}",
        f"  play: epsilon {protocol['epsilon']}, games cut after {protocol['max_steps']:,} steps",
        f"  network: {protocol['precision']} on {protocol['device']}",
    ]
    if result["human_normalised"] is None:
        lines.append(f"  no human-normalised score: nobody measured people at {result['env']}")
    else:
        lines.append(f"  human-normalised: random play {result['random_score']} is 0, human {result['human_score']} 1")
    if result["cut"]:
        lines.append(f"  {result['cut']} of {result['games']} games were cut, and count as they stood")
    if (training := result["training"]) is not None:
        lines.append(f"  in training: mean raw return {training['mean']:.2f} over the last {training['games']} games")
    if protocol["name"] is not None:
        rules = PROTOCOLS[protocol["name"]]
        lines.append(f"  protocol {protocol['name']}: {rules.source}; its score: {rules.score}")
    return lines


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each run."""
    table = Table(box=box.SIMPLE_HEAD, caption="raw returns; human: 0 is random play, 1 a person")
    table.add_column("run", overflow="fold")
    for column in ("games", "mean ± s.e.", "median", "min", "max", "steps", "human"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        normalised = result["human_normalised"]
        table.add_row(
            result["run"],
            str(result["games"]),
            f"{result['mean']:,.2f} ± {result['standard_error']:.2f}",
            *(f"{result[key]:,.6g}" for key in ("median", "min", "max")),
            f"{result['mean_length']:,.0f}",
            "-" if normalised is None else f"{normalised:.3f}",
        )
    return table


def save(result: Mapping[str, Any], folder: Path) -> Path:
    """Write folder/evaluation-<step>.json, whole or not at all. Returns where."""
    return write_json(folder / f"evaluation-{result['step']}.json", result)


def main(argv: Sequence[str] | None = None) -> None:
    """Every agent plays; what it did is saved before the next one begins."""
    options = parse(Options, {}, argv, __doc__ or "")
    folders = run_folders(options.runs, program_command("agents.evaluate"))
    share(games_asked(options), options.num_envs)  # a mistake here should not wait for the first agent
    agents = [load_agent(folder, device=options.device, threads=options.threads) for folder in folders]
    console, remarks = Console(), Console(stderr=True)
    results = []
    for agent in agents:
        with remarks.status(f"{agent.name}: {games_asked(options)} whole games of {agent.config.env}"):
            result = evaluate_agent(agent, options)
        path = save(result, agent.folder)
        results.append(result)
        if options.json:
            print(json.dumps(result, allow_nan=False), flush=True)
        else:
            for line in [*protocol_lines(result), f"  saved: {path}"]:
                console.print(line, soft_wrap=True, highlight=False, markup=False)
    if not options.json:
        console.print(table(results))


if __name__ == "__main__":
    run_main(main)
