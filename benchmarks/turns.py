"""Sides of a comparison, each in a process of its own, timed by turns; no program.

A process of its own is what a user gives each of them, and what one sets for the whole process (threads, how numbers
too small are treated) does not change the others.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

Go = Callable[[int], None]  # takes about so many agent steps
Side = Callable[[argparse.Namespace], tuple[Go, str]]  # also says in words how it computes


def add_arguments(parser: argparse.ArgumentParser, *, learn_first: int, steps: int) -> None:
    """The flags that `take_turns` reads."""
    parser.add_argument(
        "--learn-first", type=int, default=learn_first, help="agent steps of each side that are not timed"
    )
    parser.add_argument("--steps", type=int, default=steps, help="agent steps of one stretch")
    parser.add_argument("--repeats", type=int, default=5, help="stretches of each side")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of each side, 0 for all cores")


def take_turns(sides: Mapping[str, Side], arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps per second of each side, and where there are two, the ratio of their medians.

    Args:
        sides: functions that a fresh process can import.
        arguments: what they are given; `add_arguments` has those that are read here.
    """
    spawn = multiprocessing.get_context("spawn")
    orders, how, processes = {}, {}, []
    for name, side in sides.items():  # one learns first, then the other
        orders[name], far_end = spawn.Pipe()
        processes.append(spawn.Process(target=_serve, args=(side, arguments, far_end), daemon=True))
        processes[-1].start()
        far_end.close()
        how[name] = orders[name].recv()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, order in orders.items():
            order.send(arguments.steps)
            rates[name].append(arguments.steps / order.recv())
    for order, process in zip(orders.values(), processes, strict=True):
        order.send(None)
        process.join()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first, *others = medians.values()
    ratio = {"ratio": round(first / others[0], 3)} if len(others) == 1 else {}
    return {
        "arguments": vars(arguments),
        "compute": how,
        "steps_per_s": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "median": {name: round(value, 1) for name, value in medians.items()},
        **ratio,
    }


def _serve(side: Side, arguments: argparse.Namespace, orders: Connection) -> None:
    """A side in its process: told a number of steps, it takes them and answers with the seconds."""
    warnings.simplefilter("ignore")
    go, how = side(arguments)
    go(arguments.learn_first)
    orders.send(how)
    while (steps := orders.recv()) is not None:
        began = time.perf_counter()
        go(steps)
        orders.send(time.perf_counter() - began)
