"""World: two Gloo processes on this machine as started by torchrun, and a single process."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from tests.programs import start_processes
from zerokara.core import rendezvous
from zerokara.core.config import EXIT_STOPPED, UserError
from zerokara.core.distributed import Votes, World, collective_timeout
from zerokara.core.programs import is_restarted, restarting_since

ROOT = Path(__file__).parents[2]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

PROGRAM = """
import torch
from pathlib import Path
from torch import nn
from zerokara.core.distributed import World

world = World.from_env("cpu")
rank = world.rank
assert (world.size, world.local_rank, world.is_main) == (2, rank, rank == 0)

torch.manual_seed(rank)
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
network[1].running_mean += rank
before = network[0].weight.detach().clone()
world.broadcast(network)
torch.manual_seed(0)
same_seed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
for tensor, expected in zip(network.state_dict().values(), same_seed.state_dict().values(), strict=True):
    assert torch.equal(tensor, expected)
assert torch.equal(before, network[0].weight) == (rank == 0)
assert network[0].weight.is_contiguous(memory_format=torch.channels_last)

for index, parameter in enumerate(network.parameters()):
    if index == 1:
        continue  # as a frozen parameter: no gradient
    values = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape)
    grad = (values + index) * (1 if rank == 0 else 3)
    parameter.grad = grad.to(memory_format=torch.channels_last) if grad.ndim == 4 else grad
world.mean_gradients(network.parameters())
for index, parameter in enumerate(network.parameters()):
    if index == 1:
        assert parameter.grad is None
        continue
    values = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape)
    assert torch.equal(parameter.grad, (values + index) * 2)  # the mean of 1x and 3x

with torch.no_grad():
    network[0].weight.fill_(rank)
    network[1].running_var.fill_(4.0 * rank)
    network[1].num_batches_tracked.fill_(rank)
world.mean_weights(network)
assert (network[0].weight == 0.5).all() and (network[1].running_var == 2).all()
assert network[1].num_batches_tracked == rank  # not a floating-point number

value = torch.tensor([1.0, 10.0]) * (rank + 1)
assert world.mean(value).tolist() == [1.5, 15.0]
assert value.tolist() == [1.0 + rank, 10.0 * (rank + 1)]  # unchanged
assert world.any(rank == 1) is True
assert world.any(False) is False
assert world.max([rank, 5 - rank]) == [1.0, 5.0]
assert [world.shard(number) for number in (0, 1, 7)] == [
    [slice(0, 0), slice(0, 0), slice(0, 3)], [slice(0, 0), slice(0, 1), slice(3, 7)]
][rank]
assert world.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]

from dataclasses import dataclass
from zerokara.core.run import Run
@dataclass(frozen=True)
class Config:
    preset: str = "fast"
with Run(Config(), kind="dqn", name="both", resume=False, quiet=False, root=Path("runs"), world=world) as run:
    run.log(1, {"train/loss": torch.tensor(1.0 + rank)})
    run.progress(1, 2, {"rank": rank})
    run.print(f"print {rank}")
    run.warn(f"warn {rank}")
    run.text("a", "b")
    state = run.state_dict()
    run.resume_from(state)
    run.close(f"done {rank}")
world.barrier()
world.close()
"""


def test_two_processes(tmp_path: Path) -> None:
    processes = start_processes(tmp_path, 2, "-c", PROGRAM)
    (out_0, err_0), (out_1, err_1) = (process.communicate(timeout=120) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err_0 + err_1
    # Only the main process writes files and prints.
    assert out_0.splitlines() == ["step 1/2  eta -  rank 0", "print 0", "done 0"]
    assert out_1 == ""
    assert "warning: warn 0" in err_0
    assert "warn 1" not in err_1
    assert (tmp_path / "runs/both/metrics.jsonl").read_text(encoding="utf-8") == '{"step": 1, "train/loss": 1.0}\n'


def test_single_process_needs_no_communication(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    world = World.from_env()
    assert world == World(0, 1, 0)
    assert world.is_main
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)
    world.mean_gradients(layer.parameters())
    world.broadcast(layer)
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]
    value = torch.tensor([2.0])
    mean = world.mean(value)
    mean += 1
    assert value.item() == 2.0
    assert [world.any(True), world.any(False)] == [True, False]
    assert world.gather("x") == ["x"]
    assert world.max([2.0, 3.0]) == [2.0, 3.0]
    assert world.shard(7) == slice(0, 7)
    with pytest.raises(UserError, match="alone"), world.raising_together():
        raise UserError("alone")
    world.barrier()
    world.close()
    assert not torch.distributed.is_initialized()


def test_the_number_of_processes_of_this_machine_is_that_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert World.from_env().local_size == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert World.from_env().local_size == 1
    assert World(rank=2, size=3).local_size == 3


def test_votes_come_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, votes_at = 0.0, []
    monkeypatch.setattr("time.perf_counter", lambda: clock)

    class Two(World):
        def max(self, values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
            votes_at.append(round(10 * clock))
            return list(values)

    votes = Votes(Two(0, 2))
    for call in range(1, 26):
        clock = call / 10
        assert votes(False) == (False,)
    assert votes_at == [1, 11, 21]
    assert votes(True) == (False,)
    assert votes(False, now=True) == (False,)
    assert votes(True, False, now=True) == (True, False)
    assert len(votes_at) == 5
    votes_at.clear()
    limited = Votes(Two(0, 2), most_calls=4)
    for call in range(30, 43):
        clock = call / 10
        limited(False)
    assert votes_at == [30, 32, 36, 40]  # the first call comes half a second after the last vote


def test_a_single_process_stops_at_once() -> None:
    votes = Votes(World())
    assert [votes(flag, not flag) for flag in (False, True)] == [(False, True), (True, False)]


@pytest.mark.parametrize(
    "variables", [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}]
)
def test_incomplete_torchrun_variables_are_an_error(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun"):
        World.from_env("cpu")


def test_require_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("", "1"):
        monkeypatch.setenv("WORLD_SIZE", size)
        World.require_single_process("python -m vision.depth")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torchrun started several: start it with python -m vision\.depth\."):
        World.require_single_process("python -m vision.depth")


LOSES = """
import os, sys, time
import torch
from zerokara.core.config import run_main
from zerokara.core.distributed import World

def main():
    world = World.from_env("cpu")
    assert world.any(False) is False
    if world.rank == 1:
        print("ready", flush=True)
        if sys.argv[1] == "dies":
            os.kill(os.getpid(), 9)
        time.sleep(100)
    world.mean(torch.ones(3))

run_main(main)
"""


@pytest.mark.parametrize("other", ["dies", "hangs"])
def test_a_process_that_has_ended_or_hangs_ends_the_others_with_one_sentence(tmp_path: Path, other: str) -> None:
    first, second = start_processes(tmp_path, 2, "-c", LOSES, other, ZEROKARA_COLLECTIVE_TIMEOUT="8")
    out, err = first.communicate(timeout=100)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    assert first.returncode == EXIT_STOPPED, err
    assert out == ""
    assert err.startswith("error: Another process of this run has ended, or did not answer within 8 s (")
    assert err.count("\n") == 1
    assert "--resume" in err


def test_a_process_that_never_joins_is_reported(tmp_path: Path) -> None:
    first, second = start_processes(tmp_path, 2, "-c", LOSES, "dies", ZEROKARA_COLLECTIVE_TIMEOUT="5")
    second.send_signal(signal.SIGKILL)
    _, err = first.communicate(timeout=100)
    second.communicate()
    assert first.returncode == EXIT_STOPPED, err
    assert err.startswith(
        ("error: Another process of this run has ended", "error: The processes of this run could not")
    )


FAILS = """
import os, sys
from zerokara.core.config import UserError, run_main
from zerokara.core.distributed import World

def main():
    if os.environ["RANK"] == sys.argv[1]:
        raise UserError("The option is wrong.")
    World.from_env("cpu")

run_main(main)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_with_an_error_at_the_start_ends_the_others(tmp_path: Path, failing: int) -> None:
    processes = start_processes(tmp_path, 2, "-c", FAILS, str(failing))
    (_, own), (_, other) = (processes[rank].communicate(timeout=100) for rank in (failing, 1 - failing))
    assert (processes[failing].returncode, own) == (2, "error: The option is wrong.\n")
    assert processes[1 - failing].returncode == EXIT_STOPPED
    assert other.startswith("error: Another process of this run has ended with an error before the run began")
    assert other.count("\n") == 1


def test_a_process_with_an_error_at_the_start_ends_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "REPORT_SECONDS", 0.2)
    for name, value in zip(VARIABLES, ("1", "2", "1", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    rendezvous.report_failure()
    monkeypatch.delenv("MASTER_ADDR")
    rendezvous.report_failure()


@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan", "inf"])
def test_the_time_limit_must_be_a_number_of_seconds(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROKARA_COLLECTIVE_TIMEOUT", value)
    with pytest.raises(UserError, match=r"ZEROKARA_COLLECTIVE_TIMEOUT is .*, expected seconds above 0: set it to 1800"):
        collective_timeout()


def test_the_time_limit_is_half_an_hour_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROKARA_COLLECTIVE_TIMEOUT", "")
    assert collective_timeout() == 1800


def test_a_restart_by_torchrun_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, expected in (("", False), ("0", False), ("2", True)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert is_restarted() == expected
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert restarting_since() is None
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    since = restarting_since()
    assert since is not None
    assert since < datetime.now(UTC)


def test_restarts_on_several_machines_with_one_store_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their agents may count restarts differently, so that the number of the restart cannot be a prefix of keys."""
    more = {"TORCHELASTIC_MAX_RESTARTS": "3", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    values = dict(zip(VARIABLES, ("0", "2", "0", "127.0.0.1", "1"), strict=True))
    for name, value in (values | more).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each of them"):
        World.from_env("cpu")
