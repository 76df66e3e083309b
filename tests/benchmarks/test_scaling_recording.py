"""Tests of the recordings of benchmarks.scaling: what jobs communicate, and its repetition with sleeps."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks.scaling.jobs import JOBS
from benchmarks.scaling.recording import Event, Recording, Replay, buckets, phases, record
from zerokara.core.compute import Compute
from zerokara.core.distributed import World

MIB = 1 << 20
GIVEN = Recording(
    items=64,
    networks={"network": [100, MIB, 300], "12 elements": [8, 4]},
    events=(
        Event("backward", (0.5, 0.25, 0.125), "network", (2, 1, 0)),
        Event("any", (1.0,)),
        Event("mean_gradients", (2.0,), "12 elements"),
        Event("end", (4.0,)),
    ),
)


def options(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(
        batch_size=4,
        image_size=32,
        width=0.125,
        env="zerokara/Catch-v0",
        num_envs=4,
        gradient_compression="none",
        folder=str(folder),
    )


def test_buckets_are_those_of_ddp() -> None:
    """A bucket is closed when it has 1 MiB (the first) or 25 MiB; 4 MiB each, from the last parameter to the first."""
    assert buckets([MIB] * 9) == [[8], [7, 6, 5, 4, 3, 2, 1], [0]]
    assert buckets([5, MIB // 8, MIB // 8, 7]) == [[3, 2, 1], [0]]


def test_phases_of_a_recording() -> None:
    """Buckets: parameters 2 and 1 (300 + 2^20 floats, ready after 0.75 s), then parameter 0 (100, after 0.875 s)."""
    backward, vote, gradients, end = phases(GIVEN)
    assert backward.seconds == 0.875
    assert backward.messages == ((0.75, 4 * (300 + MIB)), (0.875, 400))
    assert (vote.seconds, vote.messages) == (1.0, ((1.0, 8),))
    assert (gradients.seconds, gradients.messages) == (2.0, ((2.0, 48),))
    assert (end.seconds, end.messages) == (4.0, ())
    assert GIVEN.seconds == 7.875


def test_a_recording_survives_json() -> None:
    assert Recording.from_dict(GIVEN.to_dict()) == GIVEN


@pytest.mark.parametrize("job", ["classify", "dcgan"])
def test_gradients_of_images_are_averaged_in_the_backward_pass(job: str, tmp_path: Path) -> None:
    recording = record(JOBS[job], options(tmp_path), Compute(), repeats=1, before=0)
    names = {"classify": ["network"], "dcgan": ["discriminator", "generator"]}[job]
    assert [(event.kind, event.network) for event in recording.events] == [
        *(("backward", name) for name in names),
        ("end", ""),
    ]
    for event in recording.events[:-1]:
        assert sorted(event.order) == list(range(len(recording.networks[event.network])))
        assert len(event.seconds) == len(event.order)
        assert min(event.seconds) >= 0
    assert recording.items == 4


@pytest.mark.parametrize(
    ("job", "kind", "number"),
    [
        ("pqn-minibatch", "mean_gradients", 64),
        ("pqn-rollout", "mean_weights", 1),
        ("dqn", "mean_gradients", 1),
    ],
)
def test_agents_average_and_vote(job: str, kind: str, number: int, tmp_path: Path) -> None:
    """PQN averages in 2 epochs of 32 minibatches, or once a rollout; DQN in an update for 4 steps of a process.

    An iteration has one vote if it takes a second, and at most one.
    """
    recording = record(JOBS[job], options(tmp_path), Compute(), repeats=1, before=0)
    kinds = [event.kind for event in recording.events]
    assert kinds.count(kind) == number
    assert kinds.count("max") <= 1
    assert {*kinds, "max"} == {kind, "max", "end"}
    assert recording.items == (4 * 32 if job.startswith("pqn") else 4)


def test_the_replay_sleeps_and_averages_in_one_process() -> None:
    recording = Recording(
        1,
        {"network": [3, 4], "2 elements": [2]},
        (
            Event("backward", (0.02, 0.03), "network", (1, 0)),
            Event("mean_gradients", (0.01,), "2 elements"),
            Event("mean_weights", (0.0,), "2 elements"),
            Event("any", (0.0,)),
            Event("max", (0.0,)),
            Event("end", (0.01,)),
        ),
    )
    replay = Replay(recording, World())
    start = time.perf_counter()
    replay.update()
    assert time.perf_counter() - start >= 0.07


def test_the_replay_sleeps_until_each_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients become ready in the recorded order, each after its sleep."""
    now, slept, ready = [100.0], [], []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    recording = Recording(1, {"network": [3, 4, 5]}, (Event("backward", (0.5, 0.25, 1.0), "network", (2, 0, 1)),))
    replay = Replay(recording, World())
    for parameter in replay._networks["network"].parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: ready.append((p.numel(), now[0])))
    replay.update()
    assert slept == [0.5, 0.25, 1.0]
    assert ready == [(5, 100.5), (3, 100.75), (4, 101.75)]


def test_two_processes_exchange_the_recorded_buckets(tmp_path: Path) -> None:
    """In a process group of one, DistributedDataParallel reports the buckets that it has made."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sizes = [300, MIB, 5, MIB // 2, 7]
        recording = Recording(1, {"network": sizes}, (Event("backward", (0.0,) * 5, "network", (4, 3, 2, 1, 0)),))
        replay = Replay(recording, World(size=2))  # connects as several processes do
        replay.update()
        replay.update()
        ddp = replay._parallel["network"]._ddp
        assert ddp is not None
        reported = [int(text) for text in ddp._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(", ")]
        assert reported == [4 * sum(sizes[index] for index in bucket) for bucket in buckets(sizes)]
        assert all(p.grad is not None and not p.grad.any() for p in replay._networks["network"].parameters())
    finally:
        dist.destroy_process_group()


def test_the_pause_is_the_identity() -> None:
    from benchmarks.scaling.recording import _Pause

    parameter = torch.nn.Parameter(torch.ones(3))
    total = _Pause.apply(torch.ones((), requires_grad=True), parameter, 0.0)  # type: ignore[no-untyped-call]
    total.backward()
    assert total.item() == 1
    assert parameter.grad is not None
    assert not parameter.grad.any()
