"""Measure DQN with actors against DQN in one process, at the same replay ratio. Prints JSON.

    python -m benchmarks.actors                              # one process; a learner with 1, 2 and 4 actors
    python -m benchmarks.actors --actors 0 1 --seconds 60

Each measurement is a process of its own: it starts its actors, trains until the learner has learned for a while, and is
timed then. The sides alternate, and the medians are compared. The learner has a thread for each core that its actors
leave and one more, as in agents.dqn. Both sides do the same number of updates per agent step, so the slower part sets
the pace.

In the result, steps_per_s are agent steps (transitions made by the actors), learned_per_s transitions in the batches of
the learner, learning the fraction of the time that is updates, update_ms the length of one, blocked the fraction of the
time in which the learner had no transitions left to learn from, and staleness the mean age of the actors' weights in
updates. Requires the extra `cluster`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.result import print_result
from zerokara.agents import dqn
from zerokara.agents.actors import feed, ray_actors
from zerokara.agents.configs.dqn import Config
from zerokara.agents.training.start import Resources, make_env
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.config import run_main
from zerokara.core.distributed import World
from zerokara.core.run import Run
from zerokara.core.training_program import choose_compute

FIGURES = ("steps_per_s", "learned_per_s", "replay_ratio", "learning", "update_ms", "blocked", "staleness")


def measure(actors: int, arguments: argparse.Namespace, compute: Compute | None) -> dict[str, Any]:
    """Train with a number of actors (0: in this process), and measure the speed after the first updates.

    Args:
        actors: number of actors.
        arguments: of the program.
        compute: hardware settings; None: they are chosen, as at the start of a run.
    """
    config = Config(
        env=arguments.env,
        actors=actors,
        num_envs=arguments.num_envs,
        learning_starts=arguments.learning_starts,
        replay_capacity=50_000,
        save_replay=False,
        compile=arguments.compile,
        precision=arguments.precision,
        threads=arguments.threads,
        total_steps=10**9,
    )
    env = make_env(config, World())
    with tempfile.TemporaryDirectory() as folder, ray_actors.connected(config) as hardware:
        timed = TrainStep(
            lambda candidate, size: dqn.probe_step(config, Resources(env, candidate, World()), size), config.batch_size
        )
        compute = compute or choose_compute(hardware, World(), timed)
        compute.apply()
        run = Run(config, kind="benchmark", name="run", resume=False, quiet=True, root=Path(folder))
        training = dqn.Training(config, run, Resources(env, compute, World()))
        side = feed.ActorFeed(config, training, training.replay, training.learn, dqn.dqn_loss) if actors else training
        training.obs = env.reset(1)
        while training.updates < arguments.updates_before:
            side.iterate()
        training.start_interval()
        if isinstance(side, feed.ActorFeed):
            side.metrics()  # starts its interval
        steps, updates, began = training.step, training.updates, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < arguments.seconds:
            side.iterate()
        steps, updates = training.step - steps, training.updates - updates
        more = side.metrics() if isinstance(side, feed.ActorFeed) else {}
        return {
            "compute": compute.to_dict(),
            "steps_per_s": steps / elapsed,
            "learned_per_s": updates * config.batch_size / elapsed,
            "replay_ratio": updates / steps,
            "learning": training.seconds["learn"] / elapsed,
            "update_ms": 1e3 * training.seconds["learn"] / max(1, updates),
            "blocked": training.seconds.get("blocked", 0.0) / elapsed,
            "staleness": more.get("actors/staleness", 0.0),
        }


def _serve(actors: int, arguments: argparse.Namespace, compute: Compute | None, answer: Connection) -> None:
    """Do one measurement in this process and send the result."""
    warnings.simplefilter("ignore")
    answer.send(measure(actors, arguments, compute))


def in_process(actors: int, arguments: argparse.Namespace, compute: Compute | None) -> dict[str, Any]:
    """Do one measurement in a new process."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(actors, arguments, compute, theirs))
    process.start()
    theirs.close()
    result: dict[str, Any] = ours.recv()
    process.join()
    return result


def summarize(results: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return all values and the medians of each side, and steps/s as ratios to the side without actors."""
    sides = {}
    for actors, measured in results.items():
        values = {name: [round(one[name], 4) for one in measured] for name in FIGURES}
        medians = {name: round(statistics.median(one[name] for one in measured), 4) for name in FIGURES}
        sides[actors] = {"median": medians, "values": values, "compute": measured[0]["compute"]["reason"]}
    if 0 in sides:
        alone = sides[0]["median"]["steps_per_s"]
        for side in sides.values():
            side["ratio_to_one_process"] = round(side["median"]["steps_per_s"] / alone, 3)
    return {("one process" if not actors else f"{actors} actors"): side for actors, side in sides.items()}


def main() -> None:
    """Parse the arguments, measure the sides alternately, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[0, 1, 2, 4], help="sides; 0: one process")
    parser.add_argument("--env", default="ALE/Pong-v5", help="environment")
    parser.add_argument("--num-envs", type=int, default=16, help="environments of the process, or of each actor")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a measurement")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each side")
    parser.add_argument("--learning-starts", type=int, default=2_000, help="agent steps before the first update")
    parser.add_argument("--updates-before", type=int, default=500, help="updates before the timing")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="as in agents.dqn")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="as in agents.dqn")
    parser.add_argument("--threads", type=int, default=0, help="of the process or the learner; 0: as in agents.dqn")
    arguments = parser.parse_args()
    results: dict[int, list[dict[str, Any]]] = {actors: [] for actors in arguments.actors}
    for _ in range(arguments.repeats):
        for actors, measured in results.items():
            compute = Compute(**measured[0]["compute"]) if measured else None
            measured.append(in_process(actors, arguments, compute))
    what = "DQN with actors and in one process"
    print_result({"what": what, "arguments": vars(arguments), "sides": summarize(results)})


if __name__ == "__main__":
    run_main(main)
