"""Make the old runs: run folders of every kind that commit 682d9ba writes, stopped in the middle, and what it says.

    cd <empty folder> && PYTHONPATH=<checkout of 682d9ba> <its python> make.py

Leaves zips/<name>.zip and zips/expected.json. Names of runs as further words make only these and keep the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

LENGTHS = ("steps", "updates", "epochs", "iterations", "trials")
MACHINE = "--device cpu --precision float32 --threads 1"
LOOK = "--device cpu --threads 1"
# A program that gets SIGTERM behind its n-th checkpoint (save:n) or n-th look at the progress bar (progress:n).
STOPPER = """
import os, runpy, signal, sys
from core import checkpoint
from core.run import Run
what, _, number = sys.argv[1].partition(":")
owner = {"save": checkpoint, "progress": Run}[what]
inner, left = getattr(owner, what), [int(number)]
def counted(*args, **options):
    done = inner(*args, **options)
    left[0] -= what == "progress" or args[0].name.startswith("checkpoint")
    if left[0] == 0:
        left[0] = -1
        os.kill(os.getpid(), signal.SIGTERM)
    return done
setattr(owner, what, counted)
module = sys.argv[2]
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


# ---- data


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """A picture (H, W, 3) of a disc (left) and a square (right), its mask (H, W), and both boxes x1 y1 x2 y2."""
    picture = np.full((height, width, 3), (90, 100, 110), np.uint8) + rng.integers(0, 40, dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    boxes = []
    for label, colour in ((1, (210, 60, 50)), (2, (40, 80, 220))):
        side = int(rng.integers(height // 3, height // 2)) | 1
        left = int(rng.integers(1, width // 2 - side)) + (label - 1) * (width // 2)
        top = int(rng.integers(1, height - side - 1))
        part = np.zeros((height, width), np.uint8)
        if label == 1:
            cv2.circle(part, (left + side // 2, top + side // 2), side // 2, 1, -1)
        else:
            part[top : top + side, left : left + side] = 1
        picture[part > 0], mask[part > 0] = colour, label
        boxes.append([left, top, left + side, top + side])
    return picture, mask, boxes


def put(path: Path, pixels: np.ndarray) -> None:
    """A PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, optimize=True)


def draw_data(root: Path) -> None:
    """All data folders."""
    rng = np.random.default_rng(7)
    for name, colour in (("blue", (40, 80, 220)), ("green", (40, 190, 70)), ("red", (210, 60, 50))):
        for place in range(16):
            picture = np.full((16, 16, 3), rng.integers(60, 140), np.uint8)
            left, top = rng.integers(0, 9, 2)
            picture[top : top + 7, left : left + 7] = colour
            put(root / "colours" / name / f"{place:02}.png", picture)
    for split, number in {"train": 12, "val": 3, "test": 3}.items():
        for place in range(number):
            picture, mask, _ = scene(rng, 24, 32)
            put(root / "shapes" / split / f"{place:02}.png", picture)
            put(root / "shapes" / f"{split}annot" / f"{place:02}.png", mask)
    (root / "shapes" / "classes.txt").write_text("ground\ndisc\nsquare")
    for place in range(14):
        picture, _, boxes = scene(rng, 48, 64)
        put(root / "boxes" / "JPEGImages" / f"{place:02}.png", picture)
        rows = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for name, (x1, y1, x2, y2) in zip(("disc", "square"), boxes, strict=True)
        )
        path = root / "boxes" / "Annotations" / f"{place:02}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation>{rows}</annotation>")
    lines = ["image,caption"]
    for place in range(24):
        name, colour = (("red", (220, 30, 30)), ("green", (30, 200, 40)), ("blue", (30, 40, 230)))[place % 3]
        put(root / "said" / "images" / f"{place:02}.png", np.full((18, 20, 3), colour, np.uint8) - place)
        lines += [f"{place:02}.png,A {name} wall stands here .", f"{place:02}.png,This is a {name} picture ."]
    (root / "said" / "captions.txt").write_text("\n".join(lines))
    for place in range(8):
        put(root / "photos" / f"{place}.png", scene(rng, 32, 40)[0])
    put(root / "content.png", scene(rng, 32, 32)[0])
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[::4], stripes[1::4] = (250, 30, 30), (250, 200, 30)
    put(root / "style.png", stripes)
    put(root / "look.png", scene(np.random.default_rng(99), 48, 64)[0])
    seven = np.zeros((28, 28), np.uint8)
    cv2.polylines(seven, [np.array([[7, 6], [20, 6], [12, 22]])], False, 255, 3)
    put(root / "seven.png", seven)


# ---- what is asked of a run


def agent(folder: Path) -> dict[str, Any]:
    """Q-values of the network without noise, for two observations."""
    loaded = import_module("agents.agent").load_agent(folder, threads=1)
    channels, side = loaded.config.stack * (1 if loaded.config.grey else 3), loaded.config.image_size
    ramp = (np.arange(channels * side * side) % 251).astype(np.uint8).reshape(1, channels, side, side)
    shown = {"all_128": np.full_like(ramp, 128), "ramp": ramp}
    return {"q_values": {name: [rounded(q) for q in loaded.policy.values(obs)[0]] for name, obs in shown.items()}}


def painter(folder: Path) -> dict[str, Any]:
    """Four images of latents of seed 0, of the best and of the last generator: mean, and pixels of a corner."""
    load, found = import_module("generative.painter").Painter.load, {}
    for which in ("best", "last"):
        one = load(folder, which, threads=1)
        pixels = one.paint(one.latents(4, 0), one.labels(4)).double()
        middle = pixels[0, 0, pixels.shape[2] // 2, :6]
        found[which] = {"update": one.update, "shape": list(pixels.shape), "mean": rounded(pixels.mean())}
        found[which]["row"] = [rounded(value) for value in middle]
    return {"painted": found}


def packed(folder: Path) -> dict[str, Any]:
    """Logits of a binary network as it was packed, for a ramp."""
    network, card = import_module("vision.binary_network").read_packed(folder / "packed.safetensors")
    count = card.channels * card.image_size[0] * card.image_size[1]
    pixels = (torch.arange(count).float() % 251 / 250).view(1, card.channels, *card.image_size)
    with torch.no_grad():
        return {"packed_logits": [rounded(value) for value in network(pixels)[0].double()]}


def pixels_of(path: str) -> Callable[[Path], dict[str, Any]]:
    """Mean, size and the first pixels of a picture that a program wrote."""

    def look(folder: Path) -> dict[str, Any]:
        pixels = np.asarray(Image.open(path.format(run=folder)))
        where = path.format(run=folder)
        return {where: {"shape": list(pixels.shape), "mean": rounded(pixels.mean()), "first": pixels[0, :2].tolist()}}

    return look


def rounded(value: Any) -> float:
    """Six digits behind the point."""
    return round(float(value), 6)


# ---- the runs


@dataclass
class Old:
    """A run: how it is made and stopped, what lies beside it, what it is asked."""

    name: str
    module: str
    words: str
    stop: str = ""  # "": it ends
    data: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()  # commands; {run} is the folder
    probes: tuple[Callable[[Path], dict[str, Any]], ...] = ()
    resume: str | None = None  # None: --name <name> --resume
    late: bool = False  # asked only when it has ended
    also: tuple[str, ...] = ()  # other commands that go on with it, each from the zip
    without: tuple[str, ...] = ()  # files that are left out of the zip


EVALUATE = "agents.evaluate {run} --episodes 4 --max-steps 100 --seed 0 --json " + LOOK
PLAY = "agents.play {run} --seed 0 --max-steps 12 " + LOOK
SMALL = (
    "--width 0.1 --hidden-units 4 --batch-size 8 --train-every-steps 8 --warmup-steps 40 "
    "--replay-capacity 100 --target-every-steps 40 --log-every-steps 20 --checkpoint-every-steps 40 "
    f"--eval-every-steps 80 --eval-episodes 2 --eval-max-steps 30 --no-video {MACHINE} --compile off"
)


def dqn(name: str, words: str, data: tuple[str, ...] = ()) -> Old:
    """A run of agents.dqn that is stopped at its fourth checkpoint."""
    return Old(
        name,
        "agents.dqn",
        f"{words} {SMALL}",
        "save:4",
        data,
        (EVALUATE, PLAY),
        (agent,),
        also=(f"agents.dqn --name {name} --resume --steps 160",),
    )


DCGAN = (
    "--data glyphs --updates 8 --batch-size 8 --held-out-images 120 --eval-images 100 --show 4 --eval-every-updates 4 "
    "--checkpoint-every-updates 2 --film-every-updates 4 --log-every-updates 2 --latent 4 --generator-width 0.05 "
    f"--discriminator-width 0.05 {MACHINE} --compile off"
)
SAMPLE = "generative.sample {run} --number 4 --seed 0 --out sampled.png " + LOOK
DETECT = (
    "--data data/boxes --proposal-cache kept --image-side 64 --proposals 40 --search-colours rgb --search-scales 50 "
    "--backbone deep_cnn --width 0.1 --stride 4 --bins 2 --units 6 --dropout 0.1 --crop-side 16 "
    "--images-per-update 1 --regions-per-update 16 --warmup-updates 3 --svm-c 0.1 --svm-rounds 2 --svm-proposals 30 "
    f"--updates 12 --validate-every-updates 4 --log-every-updates 2 --checkpoint-every-updates 3 {MACHINE}"
)
SEEN = "vision.detect_predict {run} data/look.png --confidence 0.1 --json --out seen " + LOOK
STYLE = (
    "data/content.png data/style.png --eye random --width 0.1 --size 32 --scales 1 --history 2 --iterations 10 "
    "--log-every-iterations 2 --film-every-iterations 0 --show-every-iterations 0 --checkpoint-every-iterations 2 "
    f"--seed 3 {MACHINE}"
)
BENCHMARK = (
    "--envs zerokara/Catch-v0 --steps 1600 --evaluations 2 --seeds 1 2 --jobs 1 --device cpu --threads 1 --name "
    "benchmark --keep-replays --settings num_envs=2 stack=1 width=0.1 hidden_units=4 log_every_steps=400 "
    "eval_episodes=2 checkpoint_every_steps=80 warmup_steps=100 batch_size=8 train_every_steps=8 replay_capacity=120 "
    "precision=float32 compile=off video=false"
)
SWEEP = (
    "learning_rate=log:1e-4..1e-2 --name sweep --trials 2 --pruner none -- --env zerokara/Catch-v0 "
    "--num-envs 2 --stack 1 --width 0.1 --hidden-units 4 --steps 1600 --warmup-steps 100 --batch-size 8 "
    "--train-every-steps 8 --replay-capacity 120 --eval-every-steps 800 --eval-episodes 2 --eval-max-steps 60 "
    f"--log-every-steps 400 --checkpoint-every-steps 80 --no-video {MACHINE} --compile off"
)
CLASSIFY = f"--checkpoint-every-updates 3 --log-every-updates 2 {MACHINE} --compile off"
GRID = "--validation-images 30 --seeds 1 --precision float32 --device cpu --threads 1"

RUNS = [
    dqn(
        "dqn-q",
        "--env zerokara/Catch-v0 --num-envs 2 --steps 240 --stack 2 --seed 3 --gamma 0.97 --n-step 3 "
        "--epsilon-start 0.9 --epsilon-end 0.05 --epsilon-steps 100 --epsilon-until-steps 200 --max-grad-norm 5 "
        "--optimizer-epsilon 1e-4 --learning-rate 1e-3 --eval-epsilon 0.01 --no-reward-clip",
    ),
    dqn(
        "dqn-c51",
        "--env zerokara/Breaker-v0 --num-envs 1 --steps 240 --stack 1 --no-grey --head c51 --atoms 11 --atom-limit 3 "
        "--noisy --noisy-sigma 0.3 --double --no-dueling --layer-norm --n-step 2 --priority-exponent 0.5 "
        "--priority-weight-start 0.5 --priority-weight-end 0.9 --priority-weight-steps 300 --life-loss-ends "
        "--epsilon-start 0 --epsilon-end 0 --learning-rate 2e-3",
    ),
    dqn(
        "dqn-iqn",
        "--env zerokara/Snake-v0 --num-envs 2 --steps 240 --stack 1 --head iqn --quantiles 4 --target-quantiles 5 "
        "--policy-quantiles 3 --cosines 6 --munchausen --munchausen-scale 0.8 --munchausen-temperature 0.05 "
        "--munchausen-floor -0.5 --backbone impala --spectral-norm --pool-size 2 --updates-at-once 2 "
        "--stream-gradient 0.5 --stop-at-return 1000 --quiet",
    ),
    dqn(
        "dqn-qr",
        "--env zerokara/Shooter-v0 --num-envs 2 --steps 240 --stack 2 --head qr --quantiles 5 --n-step 2 "
        "--n-step-start 5 --gamma 0.95 --gamma-start 0.9 --anneal-updates 10 --reset-every-updates 4 "
        "--reset-eye-share 0.3 --reset-until-updates 12 --epsilon-zeta 2 --learning-rate 2e-3 --learning-rate-end 2e-4 "
        "--learning-rate-steps 100 --init-backbone runs/dqn-q",
    ),
    dqn(
        "dqn-atari",
        "--env ALE/Pong-v5 --preset nature --protocol machado --num-envs 2 --steps 240 --image-size 36 --stack 2 "
        "--sticky 0.3 --noop-max 2 --fire-reset True --frame-skip 3 --full-action-set True --max-episode-frames 300 "
        "--optimizer rmsprop --no-keep-replay --head q",
    ),
    Old(
        "pqn",
        "agents.pqn",
        "--env zerokara/Catch-v0 --num-envs 3 --steps 540 --rollout-steps 6 --epochs 3 --minibatches 3 --trace 0.8 "
        "--gamma 0.97 --backbone nips --width 0.1 --hidden-units 4 --stack 2 --no-layer-norm "
        "--no-reward-clip --no-life-loss-ends --max-grad-norm 5 --learning-rate 1e-3 --learning-rate-end 1e-4 "
        "--learning-rate-steps 300 --epsilon-start 0.9 --epsilon-end 0.05 --epsilon-steps 100 --eval-epsilon 0.01 "
        "--epsilon-zeta 3 --log-every-steps 36 --checkpoint-every-steps 72 --eval-every-steps 144 --eval-episodes 2 "
        f"--eval-max-steps 30 --no-video --seed 4 {MACHINE} --compile off",
        "save:4",
        (),
        (EVALUATE, PLAY),
        (agent,),
    ),
    Old(
        "dcgan",
        "generative.dcgan",
        DCGAN,
        "save:4",
        (),
        (SAMPLE,),
        (painter, pixels_of("sampled.png")),
        also=(
            "generative.dcgan --name dcgan --resume --rollback",
            "generative.dcgan --name dcgan --resume --updates 6",
        ),
    ),
    Old(
        "dcgan-conditional",
        "generative.dcgan",
        f"{DCGAN} --conditional --loss hinge --spectral --generator-norm none --upsample resize --latent-distribution "
        "uniform --diffaugment translation cutout --flip --instance-noise 0.2 --final-instance-noise 0 --beta1 0.4 "
        "--beta2 0.9 --accumulate 2 --ema-half-life-updates 3 --schedule cosine --seed 2",
        "save:4",
        (),
        (SAMPLE, "generative.sample {run} --number 4 --label 3 --seed 5 --which last --out threes.png " + LOOK),
        (painter, pixels_of("sampled.png"), pixels_of("threes.png")),
        without=("best.pt",),
    ),
    Old(
        "dcgan-r3",
        "generative.dcgan",
        f"{DCGAN} --preset r3 --backbone dcgan --discriminator-norm none --ema-half-life-updates 0 "
        "--penalty-every-updates 2 --r1 0.5 --r2 0.25",
        "save:4",
        (),
        (SAMPLE,),
        (pixels_of("sampled.png"),),
        without=("best.pt", "generator-last.safetensors"),
    ),
    Old(
        "classify",
        "vision.classify",
        "--data glyphs --width 0.1 --train-images 60 --validation-images 50 --batch-size 10 --epochs 4 --no-test "
        f"--ema-half-life-updates 3 --seed 5 {CLASSIFY}",
        "save:4",
        ("seven.png",),
        ("vision.predict {run} data/seven.png --top 10 --json " + LOOK,),
    ),
    Old(
        "classify-resnet",
        "vision.classify",
        "--data data/colours --backbone resnet20 --width 0.1 --head pooled --validation-images 9 --batch-size 6 "
        "--epochs 4 --preset photos --optimizer muon --momentum 0.8 --label-smoothing 0.05 --cutout 0.2 --mixup 0.2 "
        f"--cutmix 0.5 --brightness 0.1 --contrast 0.1 --select best --max-grad-norm 5 --tta-views 2 {CLASSIFY}",
        "save:4",
        ("colours", "look.png"),
        ("vision.predict {run} data/look.png --top 3 --json " + LOOK,),
    ),
    Old(
        "classify-ended",
        "vision.classify",
        "--data data/colours --image-size 12 --grey True --preset book --width 0.1 --validation-images 9 "
        f"--batch-size 6 --epochs 3 --patience-epochs 2 --accumulate 2 {CLASSIFY}",
        "",
        ("colours", "look.png"),
        (
            "vision.predict {run} data/look.png --top 3 --json " + LOOK,
            "vision.export {run} --no-onnx --half --images 20 --out exported",
            "vision.predict exported/{name}.safetensors data/look.png --top 3 --json " + LOOK,
        ),
    ),
    Old(
        "binary",
        "vision.binary",
        "--data glyphs --image-size 12 --units 12 --layers 2 --train-images 60 --validation-images 50 --batch-size 10 "
        f"--epochs 4 --loss squared_hinge --no-test --checkpoint-every-updates 3 --log-every-updates 2 {MACHINE}",
        "save:4",
        late=True,
        probes=(packed,),
    ),
    Old(
        "binary-cnn",
        "vision.binary",
        "--data data/colours --preset cnn --width 0.01 --units 4 --validation-images 9 --batch-size 6 --epochs 2 "
        f"--checkpoint-every-updates 3 --log-every-updates 2 {MACHINE}",
        "",
        ("colours",),
        probes=(packed,),
    ),
    Old(
        "segment",
        "vision.segment",
        "--data data/shapes --network fcn2s --backbone deep_cnn --width 0.1 --decoder-channels 4 "
        "--hidden-units 6 --dropout 0.2 --batch-size 4 --epochs 6 --warmup-epochs 1 --balance 1 --learning-rate 0.01 "
        "--ema-half-life-updates 3 --scale-high 1.3 --scale-low 0.8 --rotation-degrees 5 --tta-views 2 "
        f"--validate-every-epochs 1 --checkpoint-every-updates 2 --log-every-updates 2 {MACHINE} --compile off",
        "save:6",
        ("shapes", "look.png"),
        ("vision.segment_predict {run} data/look.png --masks --json --out seen " + LOOK,),
        (pixels_of("seen/look-mask.png"),),
    ),
    Old("detect-fast-rcnn", "vision.detect", f"{DETECT} --method fast-rcnn", "save:4", ("boxes", "look.png"), (SEEN,)),
    Old("detect-rcnn", "vision.detect", f"{DETECT} --method rcnn", "save:4", ("boxes", "look.png"), (SEEN,), late=True),
    Old("detect-rcnn-ended", "vision.detect", f"{DETECT} --method rcnn", "", ("boxes", "look.png"), (SEEN,)),
    Old(
        "caption",
        "vision.caption",
        "--data data/said --image-size 16 --backbone deep_cnn --width 0.1 --validation-images 4 --test-images 4 "
        "--batch-size 4 --epochs 6 --at-least 1 --embedding 8 --hidden 10 --beams 3 --longest 6 --length-power 1.6 "
        "--select loss --learning-rate 0.05 "
        f"--log-every-updates 2 --checkpoint-every-updates 2 {MACHINE}",
        "save:7",
        ("said", "look.png"),
        ("vision.caption_predict {run} data/look.png data/said/images/00.png --json " + LOOK,),
    ),
    Old(
        "style-transfer",
        "generative.style_transfer",
        STYLE,
        "save:2",
        ("content.png", "style.png"),
        probes=(pixels_of("{run}/result.png"),),
        late=True,
    ),
    Old(
        "fast-style",
        "generative.fast_style",
        "--style data/style.png --data data/photos --eye random --width 0.1 --image-size 32 --stylist-width 0.05 "
        "--batch-size 2 --updates 8 --held-out-images 2 --log-every-updates 2 --show-every-updates 4 "
        f"--checkpoint-every-updates 2 {MACHINE}",
        "save:2",
        ("photos", "style.png", "look.png"),
        ("generative.stylise {run} data/look.png --out painted " + LOOK,),
        (pixels_of("painted/look.png"),),
    ),
    Old("sweep", "agents.sweep", SWEEP, "runs/sweep/runs/1-seed-1/metrics.jsonl", resume=SWEEP, late=True),
    Old("benchmark", "agents.benchmark", BENCHMARK, "runs/benchmark-*-2/metrics.jsonl", resume=BENCHMARK, late=True),
    Old(
        "depth",
        "vision.depth",
        f"--data data/colours --pictures photos --part layers --depths 8 --epochs 1 {GRID} --validation-images 9",
        "progress:2",
        ("colours",),
    ),
    Old(
        "augmentation",
        "vision.augmentation",
        f"--data data/colours --pictures photos --sizes 12 --updates 2 {GRID} --validation-images 9",
        "progress:2",
        ("colours",),
    ),
]


# ---- making them, and asking


def python(folder: Path, words: list[str], stop: str = "") -> str:
    """What a program printed that ended well, in a folder. `stop`: see STOPPER, or a file that it is stopped at."""
    head = ["-m"]
    if ":" in stop:
        head = ["-c", STOPPER, stop]
    process = subprocess.Popen([sys.executable, *head, *words], cwd=folder, text=True, stdout=-1, stderr=-1)
    while (
        stop
        and ":" not in stop
        and process.poll() is None
        and not any(path.stat().st_size for path in folder.glob(stop))
    ):
        time.sleep(0.005)
    if stop and ":" not in stop:
        process.terminate()
    out, err = process.communicate(timeout=300)
    if process.returncode and not (stop and words[0] == "agents.benchmark"):  # which then says that it is not through
        raise SystemExit(f"{shlex.join(words)}\n{out}\n{err}")
    return out


def state_of(folder: Path) -> dict[str, Any]:
    """Where the run stands, by its checkpoints, its metrics and its results."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("checkpoint*.pt")):
        state = torch.load(path, weights_only=True)
        learner = state.get("learner", {})
        at = {key: state[key] for key in ("step", "updates", "iteration") if key in state}
        if "step" not in at and "updates" in learner:
            at["updates"] = learner["updates"]
        found[path.relative_to(folder.parent).as_posix()] = at
    return found


def figures_of(folder: Path) -> dict[str, Any]:
    """The figures of a run that has ended."""
    path = folder / "result.json"
    figures = json.loads(path.read_text())["figures"] if path.exists() else {}
    return {"figures": {key: value for key, value in figures.items() if not key.endswith("_seconds")}}


def ask(old: Old, root: Path) -> dict[str, Any]:
    """What the programs say of it."""
    run, answers = Path("runs") / old.name, {}
    for line in old.ask:
        words = line.format(run=run, name=old.name).split()
        out = python(root, words)
        answer: Any = out.strip().splitlines()[-1] if out.strip() else ""
        if "--json" in words:
            answer = json.loads(out)
            if isinstance(answer, dict):
                kept = ("run", "env", "step", "games", "mean", "min", "max", "mean_length", "cut", "returns", "lengths")
                answer = {key: answer[key] for key in kept}
        answers[f"python -m {shlex.join(words)}"] = answer
    return {"commands": answers, "values": values_of(old, root)}


def values_of(old: Old, root: Path) -> dict[str, Any]:
    """What the code that is imported here says of it."""
    values: dict[str, Any] = {}
    with contextlib.chdir(root):
        for probe in old.probes:
            values |= probe(Path("runs") / old.name)
    return values


def pack(old: Old, made: Path, path: Path) -> None:
    """The zip: runs/<name>/ (of a benchmark also the runs that it started), and its data."""
    parts = [*sorted(made.glob(f"runs/{old.name}")), *(made / "data" / name for name in old.data)]
    if old.name == "benchmark":  # whose runs lie beside it
        parts += sorted(made.glob("runs/benchmark-*"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for part in parts:
            for file in sorted([part] if part.is_file() else part.rglob("*")):
                inside = file.relative_to(made)
                if file.is_file() and not left_out(old, inside):
                    stamp = zipfile.ZipInfo(inside.as_posix(), (2020, 1, 1, 0, 0, 0))
                    archive.writestr(stamp, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def left_out(old: Old, inside: Path) -> bool:
    """What no program reads, and what would be too large."""
    if {"tensorboard", "media"} & set(inside.parts) or inside.name in ("lock", *old.without):
        return True
    return (
        inside.suffix == ".png" and inside.parts[0] == "runs" and inside.name != "result.png" and len(inside.parts) == 3
    )


def make(old: Old, here: Path) -> dict[str, Any]:
    """Make it, pack it, unpack it elsewhere, ask, let it go on there, ask what only the end knows."""
    made, checked = here / "made", here / "checked" / old.name
    for folder in (checked, *made.glob(f"runs/{old.name}"), *made.glob(f"runs/{old.name}-zerokara*")):
        shutil.rmtree(folder, ignore_errors=True)
    words = [old.module, *old.words.split()]
    if "--name" not in words:
        words += ["--name", old.name]
    closing = python(made, words, old.stop).strip().splitlines()
    run = made / "runs" / old.name
    for path in run.rglob("config.json"):  # nobody needs to know the machine
        content = json.loads(path.read_text())
        if "machine" in content:
            content["machine"] = {**content["machine"], "system": "", "cpu": ""}
            path.write_text(json.dumps(content, indent=2) + "\n")
    zipped = here / "zips" / f"{old.name}.zip"
    pack(old, made, zipped)
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(checked)
    path = checked / "runs" / old.name / "config.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, Any] = {
        "kind": content.get("kind", old.name),
        "made": f"python -m {shlex.join(words)}",
        "stopped": old.stop or "it ended",
        "closing": closing[-1] if closing else "",
        "state": state_of(checked / "runs"),
        "length": {key: value for key, value in content.get("config", {}).items() if key in LENGTHS},
    }
    if not old.late:
        found |= ask(old, checked)
    if old.stop:
        again = [old.module, *(old.resume or f"--name {old.name} --resume").split()]
        ended = python(checked, again).strip().splitlines()
        after: dict[str, Any] = {"command": f"python -m {shlex.join(again)}", "closing": ended[-1] if ended else ""}
        after |= {"state": state_of(checked / "runs"), **figures_of(checked / "runs" / old.name)}
        if old.late:
            after |= ask(old, checked)
        elif old.probes and old.probes[0] in (agent, painter):
            after["values"] = values_of(dataclasses.replace(old, probes=old.probes[:1]), checked)
        found["resume"] = after
    else:
        found |= figures_of(checked / "runs" / old.name)
    for line in old.also:
        shutil.rmtree(checked)
        with zipfile.ZipFile(zipped) as archive:
            archive.extractall(checked)
        ended = python(checked, line.split()).strip().splitlines()
        told = {"closing": ended[-1], "state": state_of(checked / "runs")}
        found.setdefault("also", {})[f"python -m {line}"] = told
    return found


def main() -> None:
    """All of them, or those that are named."""
    torch.set_num_threads(1)
    here = Path.cwd()
    names = sys.argv[1:]
    for folder in ("made", "checked", "zips"):
        (here / folder).mkdir(exist_ok=True)
    if not (here / "made" / "data").exists():
        draw_data(here / "made" / "data")
    path = here / "zips" / "expected.json"
    expected = json.loads(path.read_text()) if path.exists() else {}
    for old in RUNS:
        if names and old.name not in names:
            continue
        began = time.monotonic()
        try:
            expected[old.name] = make(old, here)
        except SystemExit as error:
            print(f"FAILED {old.name}: {error}", flush=True)
            continue
        size = (here / "zips" / f"{old.name}.zip").stat().st_size
        print(f"{old.name}: {size:,} bytes, {time.monotonic() - began:.0f} s", flush=True)
        path.write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
