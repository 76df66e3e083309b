"""Train a DCGAN: a generator, and a discriminator that classifies images as real or generated.

    python -m generative.dcgan --data mnist

Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks".
Later methods are options (generative/gan/config.py): other losses, gradient penalties, spectral normalization,
augmentation, averaged weights, class labels. Without arguments it trains on digits that are drawn by the program.
docs/dcgan.md has results.

Each iteration does one step of the discriminator and one of the generator. The last checkpoint is saved, and also the
best one, by the Fréchet distance to held-out images.

Shapes: N images, B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerokara.core import checkpoint
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, flag, run_main, to_dict
from zerokara.core.distributed import World
from zerokara.core.media import write_png
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.probe import probe
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.core.run_config import configure
from zerokara.core.stopwatch import Stopwatch
from zerokara.core.zoo import provenance
from zerokara.core.zoo import registry as zoo
from zerokara.generative.gan.collapse_monitor import CollapseMonitor
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import Learner, draw_latents
from zerokara.generative.gan.pictures import VIDEO_FPS, draw_curves, image_grid, video_frames
from zerokara.generative.gan.sampler import BEST, KIND, Sampler, weights_file
from zerokara.generative.scoring.evaluator import Evaluator, format_scores

# Options that may change when a run is resumed.
CHANGEABLE = {"resume", "rollback", "quiet", "updates", "video_every_updates"}


class Training:
    """State of a training run, which checkpoints hold, and one iteration of its loop."""

    def __init__(self, config: Config, data: Data, compute: Compute, world: World) -> None:
        self.config, self.data, self.compute, self.world = config, data, compute, world
        self.learner = Learner(config, data.train.shape, len(data.train.classes), compute, world)
        self.pixels = data.train.images.to(compute.torch_device)
        self.labels = data.train.labels.to(compute.torch_device)
        self.collapse_monitor = CollapseMonitor()
        self.best: dict[str, Any] | None = None  # update and score of the best evaluation
        self.scores: dict[str, float] = {}  # of the last evaluation
        self.rollbacks = 0
        self.clock = Stopwatch()
        self._order = (-1, torch.empty(0))  # epoch, and its order of the images

    @property
    def update(self) -> int:
        """Number of updates done."""
        return self.learner.updates

    def step(self) -> None:
        """Do one update on this process's shard of the next batch."""
        size = self.config.batch_size
        per_epoch = len(self.pixels) // size
        epoch, batch = divmod(self.update, per_epoch)
        if self._order[0] != epoch:
            # A function of seed and epoch, so it is not saved. A rollback shuffles in another order.
            shuffle = torch.Generator().manual_seed(self.config.seed * 7_919 + self.rollbacks * 104_729 + epoch)
            self._order = epoch, torch.randperm(len(self.pixels), generator=shuffle)
        index_B = self._order[1][batch * size : (batch + 1) * size][self.world.rank :: self.world.size]
        index_B = index_B.to(self.compute.torch_device)
        self.learner.update(self.pixels[index_B], self.labels[index_B])

    def sampler(self) -> Sampler:
        """Return a sampler of the current generator."""
        names = self.data.train.classes if self.learner.classes else ()
        shape = self.data.train.shape
        return Sampler(self.learner.snapshot(), self.config, shape, names, self.compute, self.update, self.scores)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs, as tensors and plain values."""
        return {
            "learner": self.learner.state_dict(),
            "rng": checkpoint.rng_state(),
            "watch": self.collapse_monitor.state_dict(),
            "best": self.best,
            "scores": self.scores,
            "rollbacks": self.rollbacks,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.learner.load_state_dict(state["learner"])
        checkpoint.set_rng_state(state["rng"])
        self.collapse_monitor.load_state_dict(state["watch"])
        self.best, self.scores, self.clock.hours = state["best"], state["scores"], state["hours"]
        self.rollbacks = state["rollbacks"]

    def roll_back(self, state: dict[str, Any]) -> None:
        """Restore the best checkpoint and change the random numbers, so that training takes another course."""
        rollbacks = self.rollbacks + 1
        self.load_state_dict(state)
        self.rollbacks = max(rollbacks, self.rollbacks + 1)
        self.learner.random.manual_seed(
            self.config.seed * 1_000_003 + self.world.rank + 15_485_863 * self.rollbacks + self.update
        )


def train(config: Config, run: Run, data: Data, compute: Compute, world: World) -> str:
    """Train from the current update to the end of the run. Returns the closing message.

    Raises:
        UserError: an unreadable checkpoint, or divergence (NaN or Inf).
    """
    training = Training(config, data, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    if not world.any(latest.exists(), compute.torch_device):
        provenance.record(run, config.pretrained_backbone)
    evaluator = Evaluator(config, data, run.extra)
    start_or_resume(training, run, latest)
    for message in data.messages:
        run.print(message)
    run.print(f"{data.train.source}: {len(data.train):,} training images, {len(data.held_out):,} held-out images")
    for line in evaluator.protocol():
        run.print(line)
    if evaluator.extractor.bias_warning:
        run.warn(evaluator.extractor.bias_warning)
    preview_NZ = preview_latents(config)

    def save() -> None:
        check_finite_weights(training, run)
        run.save(latest, training.state_dict())

    def due(every: int) -> bool:
        return every > 0 and training.update % every == 0

    if training.update == 0 and not latest.exists():
        run.image("real", 0, image_grid(data.train.images[: config.preview_images]))
        save()
    elif config.rollback:
        save()  # the metrics after the best checkpoint are already deleted, so --resume must not return to the last one
    interval = LogInterval(training)
    stopping = False
    while training.update < config.updates and not stopping:
        training.step()
        if due(config.log_every_updates):
            log_metrics(training, run, interval)
            interval = LogInterval(training)
        if due(config.video_every_updates) and world.is_main:
            frame = image_grid(generate_preview(training, preview_NZ))
            write_png(run.path("film", f"{training.update:08}.png"), frame)
        ended = training.update == config.updates
        if due(config.eval_every_updates) or ended:
            if world.is_main:
                evaluate(training, evaluator, run, save)
            interval = LogInterval(training)
        if due(config.checkpoint_every_updates) or ended:
            save()
        stopping = world.any(bool(run.stop_requested), compute.torch_device)
    if stopping:
        run.print(f"{run.stop_requested}: saving")
        save()
    if not world.is_main:
        return ""
    finish(training, run)
    return closing_message(training, evaluator, run)


def check_finite_weights(training: Training, run: Run) -> None:
    """Check that all weights are finite before they are evaluated or saved.

    Raises:
        UserError: they contain NaN or Inf.
    """
    if not training.learner.is_finite():
        raise UserError(divergence_message("the weights contain NaN or Inf", training, run))


def divergence_message(reason: str, training: Training, run: Run) -> str:
    """Describe a divergence and how to continue."""
    return (
        f"Training diverged at update {training.update:,}: {reason}. The last good checkpoint stays in {run.folder}: "
        f"resume from the best one with --resume --rollback, or start a new run with lower learning rates."
    )


def start_or_resume(training: Training, run: Run, latest: Path) -> None:
    """Restore the last checkpoint (the best one with --rollback), or start the run.

    Raises:
        UserError: no checkpoint to roll back to, an unreadable one, or checkpoints of different updates.
    """
    config = training.config
    best = run.folder / BEST
    if config.rollback and not (latest.exists() and best.exists()):
        raise UserError(f"{run.folder} has no best checkpoint yet: remove --rollback.")
    if config.rollback:
        with contextlib.suppress(UserError):  # the last checkpoint may be damaged; the best one is restored
            training.rollbacks = checkpoint.load(latest, KIND)["rollbacks"]
        try:
            resumed = run.restore(best, training.roll_back)
        except UserError as error:
            raise UserError(f"{error} The last checkpoint is a separate file: remove --rollback.") from None
        run.print(f"rolled back to update {training.update:,}")
    else:
        resumed = run.restore(latest, training.load_state_dict)
    main_update = training.world.broadcast_value({"update": training.update})["update"]
    if training.world.any(training.update != main_update, training.compute.torch_device):
        raise UserError(
            f"The checkpoints of the processes in {run.folder} are of different updates, because the run was killed "
            f"while saving: resume from the best checkpoint with --resume --rollback."
        )
    if resumed:
        for frame in (run.folder / "film").glob("*.png"):
            if int(frame.stem) > training.update:
                frame.unlink()  # the update will be repeated
    elif config.pretrained_backbone:
        source = zoo.weights_source(config.pretrained_backbone)
        run.print(str(load_pretrained_backbone(training.learner.discriminator.backbone, source)))


class LogInterval:
    """Update and time at the start of a log interval, to measure its speed."""

    def __init__(self, training: Training) -> None:
        self.update, self.start = training.update, time.perf_counter()


def log_metrics(training: Training, run: Run, interval: LogInterval) -> None:
    """Log the metrics of an interval, show progress, and warn if the discriminator is perfect.

    Raises:
        UserError: a loss is NaN or Inf.
    """
    images = (training.update - interval.update) * training.config.batch_size
    scalars: dict[str, Any] = {name: float(value) for name, value in training.learner.read_metrics().items()}
    scalars |= {
        "speed/images_per_s": images / (time.perf_counter() - interval.start),
        "speed/hours": training.clock(),
    }
    run.log(training.update, scalars)
    run.flush()
    if not np.isfinite([scalars["train/d_loss"], scalars["train/g_loss"]]).all():
        raise UserError(divergence_message("a loss is NaN or Inf", training, run))
    warning = training.collapse_monitor.discriminator(
        scalars["train/d_accuracy_real"], scalars["train/d_accuracy_fake"], training.update
    )
    if warning:
        run.warn(warning)
    score = next((training.scores[name] for name in ("fcd", "random_fd") if name in training.scores), float("nan"))
    fields = {
        "D loss": scalars["train/d_loss"],
        "G loss": scalars["train/g_loss"],
        "D accuracy real": scalars["train/d_accuracy_real"],
        "fake": scalars["train/d_accuracy_fake"],
        "FCD" if "fcd" in training.scores else "distance": score,
        "images/s": scalars["speed/images_per_s"],
    }
    run.progress(training.update, training.config.updates, fields)


def evaluate(training: Training, evaluator: Evaluator, run: Run, save: Callable[[], None]) -> None:
    """Evaluate the generator, save it (also as the best if it is), log images and curves, and warn of mode collapse.

    Raises:
        UserError: the weights contain NaN or Inf.
    """
    check_finite_weights(training, run)
    config, name = training.config, evaluator.extractor.name
    sampler = training.sampler()
    training.scores = scores = evaluator.scores(sampler, config.eval_images)
    run.log(training.update, {f"eval/{key}": value for key, value in scores.items()})
    run.log(training.update, {"speed/hours": training.clock()})
    run.flush()
    best = training.best["score"] if training.best else None
    monitor, rarest_real = training.collapse_monitor, evaluator.floor.get("rarest_class")
    for warning in (
        monitor.samples(scores["spread"], scores[name], best, training.update),
        monitor.classes(scores.get("rarest_class"), rarest_real, training.update),
    ):
        if warning:
            run.warn(warning)
    sampler.scores.update(scores)
    sampler.save(run.path(weights_file("last")))
    if np.isfinite(scores[name]) and (best is None or scores[name] < best):
        training.best = {"update": training.update, "score": scores[name]}
        sampler.save(run.path(weights_file("best")))
        run.save(run.path(BEST), training.state_dict())
    save()
    z_NZ = preview_latents(config)
    samples = sampler.generate(z_NZ, sampler.labels(len(z_NZ)))
    run.image("samples", training.update, image_grid(samples))
    curves = draw_curves(run.folder / "metrics.jsonl")
    if curves is not None:
        run.image("curves", training.update, curves)
    run.print(f"update {training.update:,}: {format_scores(scores)}")


def preview_latents(config: Config) -> Tensor:
    """Return the fixed latent vectors (N, Z) of the preview images."""
    random = torch.Generator().manual_seed(config.seed)
    return draw_latents(config, (config.preview_images, config.latent_dim), random, torch.device("cpu"))


def generate_preview(training: Training, z_NZ: Tensor) -> Tensor:
    """Generate the preview images for the video, without recalibrating BatchNorm, which would take longer."""
    learner, config = training.learner, training.config
    names = training.data.train.classes if learner.classes else ()
    generator = learner.generator if learner.ema is None else learner.ema.module
    mode = generator.training
    sampler = Sampler(generator.eval(), config, learner.shape, names, training.compute, training.update)
    images = sampler.generate(z_NZ, sampler.labels(len(z_NZ)))
    generator.train(mode)
    return images


def finish(training: Training, run: Run) -> None:
    """Write the training video and the table of hyperparameters."""
    frames = sorted((run.folder / "film").glob("*.png"))
    if len(frames) > 1:
        run.video("film", training.update, video_frames(frames), VIDEO_FPS)
    if training.scores:
        run.hparams(to_dict(training.config), {f"hparam/{name}": value for name, value in training.scores.items()})


def closing_message(training: Training, evaluator: Evaluator, run: Run) -> str:
    """Return the result of the run, and the command to resume it or to generate images."""
    config, name = training.config, evaluator.extractor.name
    label = "FCD" if name == "fcd" else "distance in a random network's features"
    result = "not evaluated yet"
    if training.best is not None and training.scores:
        result = (
            f"{label} {training.scores[name]:.4g}, best {training.best['score']:.4g} "
            f"(update {training.best['update']:,}), against {len(evaluator.real.features_NF):,} held-out images"
        )
    if training.update < config.updates:
        return f"{config.data} at update {training.update:,}: {result}; resume with: {resume_command(config)}"
    command = program_command("generative.sample")
    return f"{config.data} at update {training.update:,}: {result}; generate images with: {command} {run.folder}"


def resume_command(config: Config) -> str:
    """Return the command that resumes the run."""
    return f"{program_command('generative.dcgan')} --name {config.name} --resume"


def default_name(config: Config) -> str:
    """Return the default run name: dcgan-mnist-fast-1 for --data mnist, preset fast, seed 1."""
    source = Path(config.data.replace(":", "-")).stem.replace(" ", "_")
    return f"{KIND}-{source}-{config.preset}-{config.seed}"


def choose_compute(config: Config, data: Data, world: World) -> Compute:
    """Choose precision and memory layout by measuring updates on the first images."""
    batch = config.batch_size // world.size

    def train_step(candidate: Compute) -> Callable[[], object]:
        learner = Learner(config, data.train.shape, len(data.train.classes), candidate, World())
        pixels = data.train.images[:batch].to(candidate.torch_device)
        labels = data.train.labels[:batch].to(candidate.torch_device)
        return lambda: learner.update(pixels, labels)

    return probe(config, world, train_step, compile=config.compile)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read the config and the data, train, print the closing message."""
    config = configure(
        Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE
    )
    if config.rollback and not config.resume:
        raise UserError("--rollback needs an existing run: add --resume and its --name.")
    world = World.from_env(config.device)
    if config.batch_size % (world.size * config.accumulation_steps):
        raise UserError(
            f"{flag('batch_size')} {config.batch_size} is not divisible by {world.size} (processes) times "
            f"{flag('accumulation_steps')} {config.accumulation_steps}."
        )
    with (
        Run(config, kind=KIND, name=config.name, resume=config.resume, quiet=config.quiet, world=world) as run,
        run.signals(),
    ):
        data = Data.load(config, lambda what, done, total: run.progress(done, total, {"": what}))
        compute = run.compute(lambda: choose_compute(config, data, world), config.updates)
        run.close(train(config, run, data, compute, world))
    world.close()


if __name__ == "__main__":
    run_main(main)
