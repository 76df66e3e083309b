"""Time several implementations alternately, each in a process or processes of its own. Not a program.

With separate processes, process-wide settings (threads, flushing of denormal numbers) do not affect the other sides,
as in normal use.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

RunSteps = Callable[[int], None]  # trains for about this number of agent steps
Side = Callable[[argparse.Namespace], tuple[RunSteps, str]]  # also returns a description of the hardware in use


def add_arguments(
    parser: argparse.ArgumentParser, *, learn_first: int, steps: int, threads: int = 0, unit: str = "agent steps"
) -> None:
    """Add the options that `alternate` reads."""
    parser.add_argument("--learn-first", type=int, default=learn_first, help=f"{unit} per side before the timing")
    parser.add_argument("--steps", type=int, default=steps, help=f"{unit} per timed interval")
    parser.add_argument("--repeats", type=int, default=5, help="timed intervals per side")
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads per side; 0: all cores")


def alternate(sides: Mapping[str, Side | Sequence[Side]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure steps per second of each side. With two sides, also compute the ratio of their medians.

    Args:
        sides: picklable functions that create the stepping function in the new process; several of them run at the
            same time, and the steps per second are the sum of theirs.
        arguments: passed to the sides; must include the options of `add_arguments`.
    """
    spawn = multiprocessing.get_context("spawn")
    orders: dict[str, list[Connection]] = {}
    how: dict[str, Any] = {}
    processes = []
    for name, side in sides.items():  # the sides run their untimed steps one after another
        orders[name] = []
        for each in [side] if callable(side) else side:
            order, far_end = spawn.Pipe()
            processes.append(spawn.Process(target=_serve, args=(each, arguments, far_end), daemon=True))
            processes[-1].start()
            far_end.close()
            orders[name].append(order)
        answers = [order.recv() for order in orders[name]]
        how[name] = answers[0] if callable(side) else answers
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, group in orders.items():
            for order in group:
                order.send(arguments.steps)
            rates[name].append(sum(arguments.steps / order.recv() for order in group))
    for group in orders.values():
        for order in group:
            order.send(None)
    for process in processes:
        process.join()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first, *others = medians.values()
    ratio = {"ratio": round(first / others[0], 3)} if len(others) == 1 else {}
    return {
        "arguments": vars(arguments),
        "compute": how,
        "steps_per_s": {name: [float(f"{value:.4g}") for value in values] for name, values in rates.items()},
        "median": {name: float(f"{value:.4g}") for name, value in medians.items()},
        **ratio,
    }


def _serve(side: Side, arguments: argparse.Namespace, orders: Connection) -> None:
    """Serve one side in its process: receive a number of steps, execute them, and send the time in seconds."""
    warnings.simplefilter("ignore")
    run_steps, how = side(arguments)
    run_steps(arguments.learn_first)
    orders.send(how)
    while (steps := orders.recv()) is not None:
        began = time.perf_counter()
        run_steps(steps)
        orders.send(time.perf_counter() - began)
