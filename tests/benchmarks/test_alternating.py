"""Tests of the alternating timing of several sides in separate processes."""

from __future__ import annotations

import argparse
import os
import statistics
import time

import pytest

from benchmarks import alternating

PARENT = os.getpid()


def waiting(seconds: float) -> tuple[alternating.RunSteps, str]:
    def run_steps(steps: int) -> None:
        time.sleep(steps * seconds)

    return run_steps, f"process {os.getpid()}"


def slow(arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    return waiting(4e-3)


def fast(arguments: argparse.Namespace) -> tuple[alternating.RunSteps, str]:
    return waiting(1e-3)


def test_ratio_is_first_median_over_second() -> None:
    parser = argparse.ArgumentParser()
    alternating.add_arguments(parser, learn_first=1, steps=50)
    figures = alternating.alternate({"fast": fast, "slow": slow}, parser.parse_args(["--repeats", "3"]))
    assert len({f"process {PARENT}", *figures["compute"].values()}) == 3
    assert [len(values) for values in figures["steps_per_s"].values()] == [3, 3]
    medians = {name: statistics.median(values) for name, values in figures["steps_per_s"].items()}
    assert figures["ratio"] == pytest.approx(medians["fast"] / medians["slow"], rel=0.01)
    assert figures["arguments"]["steps"] == 50


def test_one_side_has_no_ratio() -> None:
    parser = argparse.ArgumentParser()
    alternating.add_arguments(parser, learn_first=1, steps=5)
    figures = alternating.alternate({"fast": fast}, parser.parse_args(["--repeats", "1"]))
    assert list(figures["median"]) == ["fast"]
    assert "ratio" not in figures


def test_several_processes_of_a_side_run_at_the_same_time() -> None:
    parser = argparse.ArgumentParser()
    alternating.add_arguments(parser, learn_first=1, steps=50)
    figures = alternating.alternate({"two": [slow, slow], "one": slow}, parser.parse_args(["--repeats", "3"]))
    assert len({*figures["compute"]["two"], figures["compute"]["one"]}) == 3
    assert figures["ratio"] == pytest.approx(2, rel=0.1)
