"""Evaluate trained agents over complete episodes.

    python -m agents.evaluate runs/dqn-Pong-v5-fast-1 --episodes 30
    python -m agents.evaluate runs/dqn-Pong-v5-fast-1 --protocol nature
    python -m agents.evaluate pong                                          # an agent of the zoo

Returns are raw (not clipped). Every environment contributes the same number of episodes: the first N episodes to end
would overrepresent short ones. The protocol is printed with the score: environment settings, epsilon, seeds, and the
number of steps after which an episode is cut. Human-normalized scores are those of Mnih et al. 2015: 0 is random play,
1 a professional human tester (agents/benchmarking/atari_scores.py).

The weights are those of the best evaluation during training, or with --which last those of the last checkpoint. The
score of the best evaluation is biased upwards, because the weights were selected by it; it is printed beside the score
measured here, on other episodes: the seeds differ from those of training and of its evaluations.

The table is printed; all results are written to runs/<name>/evaluation-<step>.json (of an agent of the zoo, to
runs/outputs-<name>/).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from zerokara.agents.benchmarking.atari_scores import human_normalized, reference_scores
from zerokara.agents.configs.common import ATARI_FIELDS, ProtocolName
from zerokara.agents.configs.protocols import OVERRIDES, PROTOCOLS
from zerokara.agents.viewing.choices import Which
from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, UserError, run_main
from zerokara.core.machine import describe_versions
from zerokara.core.programs import program_command

DEFAULT_EPISODES = 30


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the evaluation."""

    FOREIGN_NAMES: ClassVar[Mapping[str, str]] = {
        "n_eval_episodes": "episodes",
        "eval_episodes": "episodes",
        "num_episodes": "episodes",
        "n_envs": "num_envs",
        "eval_epsilon": "epsilon",
        "epsilon_eval": "epsilon",
        "deterministic": "is --epsilon 0 here.",
        "n_timesteps": "is not an option here: give the number of episodes with --episodes.",
        "render": "is not an option here: the program agents.play shows an agent in a window.",
        "cuda": "is --device cuda here.",
        "num_threads": "threads",
    }

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Run folders, model files, or names of agents in the zoo."""
    which: Which = "best"
    """Weights of a run: those of its best evaluation, or of its last checkpoint."""
    protocol: ProtocolName | None = None
    """Evaluation protocol (agents/configs/protocols.py); None: the settings of the run. No-ops and FIRE that the run
    itself sets are kept."""
    episodes: Annotated[int | None, Range(1, 100_000)] = None
    """Complete episodes of each agent; None: value of the protocol, or 30."""
    num_envs: Annotated[int, Range(0, 1024)] = 0
    """Parallel environments. The number of episodes must be a multiple of it; 0: the largest divisor up to 32."""
    epsilon: Annotated[float | None, Range(0, 1)] = None
    """Probability of a random action; None: value of the protocol or of the run."""
    max_steps: Annotated[int | None, Range(1)] = None
    """Agent steps after which an episode is cut; its return so far counts. None: value of the protocol or the run."""
    seed: Annotated[int, Range(0, 10**6)] = 0
    """Seed of environments and exploration; the same seed gives the same episodes."""
    json: bool = False
    """Print JSON instead of a table. One line for each run."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one for each core."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

import numpy as np
from rich.console import Console
from rich.table import Table

from zerokara import envs
from zerokara.agents.training.evaluation import Scores, evaluate, parallel_episodes
from zerokara.agents.viewing.loading import Agent, evaluation_seed, find_agent, load_agent
from zerokara.core.report import numbered, run_folders, table_console, tables_within, to_json, write_json


def evaluate_agent(agent: Agent, options: Options) -> dict[str, Any]:
    """Evaluate an agent. Returns scores, and all settings that reproduce them, as plain values for JSON.

    Raises:
        UserError: the episodes cannot be distributed evenly over the environments, or an environment cannot be made.
    """
    episodes_per_env, num_envs = distribute_episodes(num_episodes(options), options.num_envs)
    overrides = protocol_overrides(options)
    epsilon = overrides.get("eval_epsilon", agent.config.eval_epsilon) if options.epsilon is None else options.epsilon
    max_steps = options.max_steps or overrides.get("eval_max_steps", agent.config.eval_max_steps)
    with closing(agent.make_env(num_envs, protocol=options.protocol)) as env:
        scores = evaluate(
            agent.policy,
            env,
            episodes_per_env=episodes_per_env,
            epsilon=epsilon,
            max_steps=max_steps,
            seed=evaluation_seed(options.seed),
        )
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in env.settings.items()}
    return {
        "run": agent.name,
        "env": agent.config.env,
        "step": agent.step,
        "weights": agent.weights,
        "selection_return": agent.selection,
        **summarize(agent.config.env, scores),
        "training": {"games": len(agent.returns), "mean": float(np.mean(agent.returns))} if agent.returns else None,
        "protocol": {
            "name": options.protocol,
            "settings": settings,
            "epsilon": epsilon,
            "max_steps": max_steps,
            "num_envs": num_envs,
            "games_per_env": episodes_per_env,
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


def protocol_overrides(options: Options) -> Mapping[str, Any]:
    """Return the config values that --protocol sets; empty without --protocol."""
    return OVERRIDES[options.protocol] if options.protocol else {}


def num_episodes(options: Options) -> int:
    """Return the number of episodes of each agent."""
    return options.episodes or int(protocol_overrides(options).get("eval_episodes", DEFAULT_EPISODES))


def distribute_episodes(episodes: int, num_envs: int) -> tuple[int, int]:
    """Distribute episodes evenly over environments. Returns the episodes of each environment and their number.

    Args:
        num_envs: number of environments; 0: the largest divisor of `episodes` up to 32.

    Raises:
        UserError: `episodes` is not a multiple of `num_envs`.
    """
    if not num_envs:
        num_envs = parallel_episodes(episodes)
    if episodes % num_envs:
        next_multiple = -(-episodes // num_envs) * num_envs
        raise UserError(
            f"--episodes {episodes} is not a multiple of --num-envs {num_envs}, and short episodes would be "
            f"overrepresented: use --episodes {next_multiple}, or omit --num-envs."
        )
    return episodes // num_envs, num_envs


def summarize(env_id: str, scores: Scores) -> dict[str, Any]:
    """Return statistics of raw returns and lengths (agent steps); human-normalized if reference scores are known."""
    returns, references = np.array(scores.returns), reference_scores(env_id)
    return {
        "games": len(returns),
        "mean": scores.mean,
        "standard_error": scores.standard_error,
        "median": float(np.median(returns)),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "mean_length": float(np.mean(scores.lengths)),
        "cut": scores.cut,
        "human_normalised": human_normalized(env_id, scores.mean),
        "random_score": references[0] if references else None,
        "human_score": references[1] if references else None,
    }


def format_protocol(result: Mapping[str, Any]) -> list[str]:
    """Format the conditions of an evaluation as lines of text."""
    protocol = result["protocol"]
    settings = ", ".join(f"{key} {value}" for key, value in protocol["settings"].items())
    lines = [
        f"{result['run']}: {result['env']} at step {result['step']:,}",
        f"  weights: {result['weights']}",
        f"  environment: {settings}",
        f"  episodes: {result['games']}, {protocol['games_per_env']} in each of {protocol['num_envs']} environments",
        f"  seed: {protocol['seed']} (seed of the environments: {protocol['env_seed']})",
        f"  policy: epsilon {protocol['epsilon']}, episodes cut after {protocol['max_steps']:,} steps",
        f"  network: {protocol['precision']} on {protocol['device']}",
    ]
    if result["human_normalised"] is None:
        lines.append(f"  no human-normalized score: no human reference score is known for {result['env']}")
    else:
        scale = f"0 is random play ({result['random_score']}), 1 human ({result['human_score']})"
        lines.append(f"  human-normalized: {scale}")
    if result["cut"]:
        lines.append(f"  {result['cut']} of {result['games']} episodes were cut; their returns so far count")
    if (training := result["training"]) is not None:
        lines.append(f"  training: mean raw return {training['mean']:.2f} over the last {training['games']} episodes")
    if protocol["name"] is not None:
        rules = PROTOCOLS[protocol["name"]]
        lines.append(f"  protocol {protocol['name']}: {rules.source}; score: {rules.score}")
        usual = envs.PROTOCOLS[protocol["name"]]
        own = [f"{key} {v}" for key, v in protocol["settings"].items() if key in ATARI_FIELDS and v != usual[key]]
        if own:
            lines.append(f"  set by the run, unlike the protocol: {', '.join(own)}")
    return lines


def tables(results: Sequence[Mapping[str, Any]], width: int) -> list[Table]:
    """Format tables with a row for each run, within `width` characters."""
    columns = ("run", "episodes", "mean ± s.e.", "median", "min", "max", "steps", "human-normalized")
    rows = []
    for result in results:
        normalized = result["human_normalised"]
        rows.append(
            (
                result["run"],
                str(result["games"]),
                f"{result['mean']:,.2f} ± {result['standard_error']:.2f}",
                *(f"{result[key]:,.6g}" for key in ("median", "min", "max")),
                f"{result['mean_length']:,.0f}",
                "-" if normalized is None else f"{normalized:.3f}",
            )
        )
    return tables_within(columns, rows, width)


def save(result: Mapping[str, Any], folder: Path) -> Path:
    """Write folder/evaluation-<step>.json atomically. Returns its path.

    A result with another protocol (seed, epsilon, episodes) is kept: the file is then evaluation-<step>-2.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"{name}.json" for name in numbered(f"evaluation-{result['step']}"))
    return write_json(next(path for path in paths if _is_free(path, result["protocol"])), result)


def _is_free(path: Path, protocol: Mapping[str, Any]) -> bool:
    """Return True if there is no result at `path`, or one with the same protocol."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["protocol"] == json.loads(json.dumps(protocol)))
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate every agent; each result is saved before the next evaluation starts."""
    options = parse(Options, {}, argv, __doc__ or "")
    distribute_episodes(num_episodes(options), options.num_envs)  # report an error before any agent is loaded
    folders = run_folders(options.runs, program_command("agents.evaluate"), find_agent)
    agents = [
        load_agent(folder, which=options.which, device=options.device, threads=options.threads) for folder in folders
    ]
    console, status_console = table_console(), Console(stderr=True)
    results = []
    for agent in agents:
        with status_console.status(f"{agent.name}: {num_episodes(options)} episodes of {agent.config.env}"):
            result = evaluate_agent(agent, options)
        path = save(result, agent.output_folder)
        results.append(result)
        if options.json:
            print(to_json(result), flush=True)
        else:
            for line in [*format_protocol(result), f"  saved: {path}"]:
                console.print(line, soft_wrap=True, highlight=False, markup=False)
    if not options.json:
        for part in tables(results, console.width):
            console.print(part)
        console.print("raw returns; steps: mean length; human-normalized: 0 is random play, 1 human", style="dim")


if __name__ == "__main__":
    run_main(main)
