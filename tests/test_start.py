"""Imports of programs: without PyTorch until it is needed, and other large libraries only where they are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.programs import REPO, run_interpreter
from zerokara.core.backbones.registry import BACKBONES
from zerokara.core.media import png_bytes
from zerokara.core.programs import PROGRAMS

SERVER = Path(__file__).with_name("imported_modules.py")

# Libraries that take a tenth of a second or more to import.
LARGE = frozenset(
    {
        *("torch", "numpy", "scipy", "sklearn", "skimage", "pandas", "matplotlib", "PIL", "cv2", "av", "rich"),
        *("gymnasium", "ale_py", "optuna", "sqlalchemy", "onnx", "onnxruntime", "onnxscript", "tensorboard", "mlflow"),
        *("wandb", "safetensors", "torchmetrics", "faster_coco_eval", "sacrebleu", "lmdb", "yaml", "cloudpickle"),
        *("sympy", "networkx", "functorch"),
    }
)
# Of these, what programs that use a network need.
USED = frozenset({"torch", "numpy", "PIL", "cv2", "rich", "safetensors", "gymnasium", "ale_py", "cloudpickle"})
COMPILER = frozenset({"torch._dynamo", "torch._inductor"})


class Server:
    """Process of tests/imported_modules.py."""

    def __init__(self, *libraries: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", SERVER, *libraries],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, folder: Path, *words: str, lines: int = 0) -> dict[str, Any]:
        """Run a program. Returns its exit status, its output, and the names of the modules that it has imported."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"folder": str(folder), "words": words, "lines": lines}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server that has imported nothing."""
    server = Server()
    yield server
    server.process.communicate()


@pytest.fixture(scope="module")
def torch_server() -> Iterator[Server]:
    """Return a server that has imported PyTorch."""
    server = Server("torch")
    yield server
    server.process.communicate()


def large(modules: Sequence[str]) -> set[str]:
    """Return the large libraries among the names of modules."""
    return {name.split(".")[0] for name in modules} & LARGE | set(modules) & COMPILER


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_mistakes_are_answered_without_large_libraries(server: Server, program: str, tmp_path: Path) -> None:
    answer = server.run(tmp_path, f"zerokara.{program}", "--help")
    assert answer["status"] == 0, answer["output"]
    assert "--help-all" in answer["output"]
    assert large(answer["modules"]) == set()
    answer = server.run(tmp_path, f"zerokara.{program}", "--no-such-option")
    assert answer["status"] == 2, answer["output"]
    assert "no flag --no-such-option" in answer["output"]
    assert large(answer["modules"]) == set()


def test_the_list_of_programs_needs_no_large_library(server: Server, tmp_path: Path) -> None:
    answer = server.run(tmp_path, "zerokara", "--help")
    assert "agents:" in answer["output"]
    assert large(answer["modules"]) == set()


def test_programs_import_large_libraries_only_where_they_are_used(torch_server: Server, tmp_path: Path) -> None:
    """Import what the programs import at their top: all but the search, whose work Optuna does, share a process."""
    programs = [name for name in PROGRAMS if name != "agents.sweep"]
    answer = torch_server.run(tmp_path, "tests.import_programs", *programs)
    assert answer["status"] == 0, answer["output"]
    added = {name: sorted(large(modules) - USED) for name, modules in json.loads(answer["output"]).items()}
    assert added == {name: [] for name in programs}


COMMANDS = {
    "dqn": "agents.dqn --env zerokara/Catch-v0 --total-steps 400 --learning-starts 100 --eval-every-steps 0",
    "pqn": "agents.pqn --env zerokara/Catch-v0 --total-steps 400 --eval-every-steps 0",
    "stream": "agents.stream --env zerokara/Catch-v0 --total-steps 100 --eval-every-steps 0",
    "dcgan": "generative.dcgan --updates 2 --batch-size 8 --eval-every-updates 0 --video-every-updates 0",
    "classify": "vision.classify --epochs 1 --train-images 200 --validation-images 100 --no-test",
}
TRAINING = "--compile off --precision float32 --threads 1 --name run"


@pytest.mark.parametrize("program", COMMANDS)
def test_the_first_line_of_training_needs_no_large_library(server: Server, program: str, tmp_path: Path) -> None:
    words = f"zerokara.{COMMANDS[program]} {TRAINING}".split()
    answer = server.run(tmp_path, *words, lines=1)
    assert answer["output"] == f"python -m {words[0]}: loading PyTorch\n"
    assert large(answer["modules"]) == set()


def test_the_first_line_of_other_programs_is_on_a_terminal_and_not_in_their_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agents.evaluate", "catch", "--episodes", "1", "--json"]
    terminal, device = os.openpty()
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=device, text=True) as process:
        assert process.stdout is not None
        os.close(device)
        with os.fdopen(terminal, "rb", buffering=0) as screen:
            assert screen.readline() == b"python -m agents.evaluate: loading PyTorch\r\n"
            assert json.loads(process.stdout.read())
    piped = run_interpreter(tmp_path, *command[1:])
    assert json.loads(piped.stdout)
    assert "loading PyTorch" not in piped.stderr


@pytest.mark.parametrize("program", COMMANDS)
def test_the_second_line_of_training_needs_no_compiler_and_no_plots(
    torch_server: Server, program: str, tmp_path: Path
) -> None:
    words = f"zerokara.{COMMANDS[program]} {TRAINING}".split()
    answer = torch_server.run(tmp_path, *words, lines=2)
    assert answer["output"].count("\n") >= 2, answer
    assert large(answer["modules"]) <= USED


def test_training_is_quiet_if_asked(torch_server: Server, tmp_path: Path) -> None:
    answer = torch_server.run(tmp_path, "zerokara.agents.dqn", "--quiet", "--env", "Nowhere-v0")
    assert "loading PyTorch" not in answer["output"]


@pytest.mark.parametrize(
    "command",
    [
        "agents.evaluate catch --episodes 1",
        "generative.sample digits --number 4 --out samples.png",
        "vision.predict digits {image}",
    ],
    ids=lambda command: command.split()[0],
)
def test_a_trained_network_is_used_without_the_compiler(torch_server: Server, command: str, tmp_path: Path) -> None:
    image = tmp_path / "digit.png"
    image.write_bytes(png_bytes(np.tri(28, dtype=np.uint8) * 255))
    answer = torch_server.run(tmp_path, *f"zerokara.{command.format(image=image)}".split())
    assert answer["status"] == 0, answer["output"]
    assert large(answer["modules"]) <= USED


def test_no_backbone_imports_the_compiler(torch_server: Server, tmp_path: Path) -> None:
    """Its import takes a second or two, at every start of every program."""
    answer = torch_server.run(tmp_path, "tests.core.backbones.make_all")
    assert answer["status"] == 0, answer["output"]
    assert answer["output"].split() == list(BACKBONES)
    assert {"torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy"} & set(answer["modules"]) == set()


@pytest.mark.parametrize("program", ["dqn", "classify"])
def test_training_without_compilation_does_not_import_the_compiler(
    torch_server: Server, program: str, tmp_path: Path
) -> None:
    answer = torch_server.run(tmp_path, *f"zerokara.{COMMANDS[program]} {TRAINING}".split())
    assert answer["status"] == 0, answer["output"]
    assert large(answer["modules"]) <= USED | {"tensorboard"} | ({"matplotlib"} if program == "classify" else set())


def test_the_table_of_layers_needs_no_compiler(torch_server: Server, tmp_path: Path) -> None:
    """Backbones with all operations but rare ones, which PyTorch computes in Python on the meta device."""
    names = ["hadamax", "deep_cnn", "alexnet", "vgg11_bn", "googlenet", "resnet20", "efficientnet_lite0", "dcgan"]
    answer = torch_server.run(tmp_path, "tests.core.backbones.list_layers", *names)
    assert answer["status"] == 0, answer["output"]
    assert answer["output"].split() == names
    assert large(answer["modules"]) <= USED
