"""Paint: a generator learns from the eye that tells its images from real ones.

    python -m generative.dcgan --data mnist

Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks";
what came after it is a field of the config (generative/gan/config.py): other losses, penalties, spectral normalisation,
augmentation, averaged weights, labels. Without arguments it learns digits that are drawn here. docs/dcgan.md has
figures.

One turn of the loop: a step of the discriminator, a step of the generator. The best moment, by the Fréchet distance to
images held out, is kept beside the last.

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
from zerokara.generative.gan.collapse_monitor import Watch
from zerokara.generative.gan.config import PRESETS, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import Learner, draw_latents
from zerokara.generative.gan.pictures import FILM_FPS, draw_curves, film, picture
from zerokara.generative.gan.sampler import BEST, KIND, Painter, weights_file
from zerokara.generative.scoring.evaluator import Judge, in_words

# What may differ when a run goes on; everything else would make it another run.
CHANGEABLE = {"resume", "rollback", "quiet", "updates", "film_every_updates"}


class Training:
    """Everything that a checkpoint holds, and the turns of the loop over it."""

    def __init__(self, config: Config, data: Data, compute: Compute, world: World) -> None:
        self.config, self.data, self.compute, self.world = config, data, compute, world
        self.learner = Learner(config, data.train.shape, len(data.train.classes), compute, world)
        self.pixels = data.train.images.to(compute.torch_device)
        self.labels = data.train.labels.to(compute.torch_device)
        self.watch = Watch()
        self.best: dict[str, Any] | None = None  # update and score
        self.scores: dict[str, float] = {}  # of the last evaluation
        self.rollbacks = 0
        self.clock = Stopwatch()
        self._order = (-1, torch.empty(0))  # epoch, and its order of the images

    @property
    def update(self) -> int:
        """Updates that are over."""
        return self.learner.updates

    def turn(self) -> None:
        """One update on the next batch, of which this process takes its share."""
        size = self.config.batch_size
        per_epoch = len(self.pixels) // size
        epoch, place = divmod(self.update, per_epoch)
        if self._order[0] != epoch:
            # A function of seed and epoch, so there is nothing to save; a rollback goes another way.
            shuffle = torch.Generator().manual_seed(self.config.seed * 7_919 + self.rollbacks * 104_729 + epoch)
            self._order = epoch, torch.randperm(len(self.pixels), generator=shuffle)
        index_B = self._order[1][place * size : (place + 1) * size][self.world.rank :: self.world.size]
        index_B = index_B.to(self.compute.torch_device)
        self.learner.update(self.pixels[index_B], self.labels[index_B])

    def painter(self) -> Painter:
        """The generator as it stands, ready to paint."""
        names = self.data.train.classes if self.learner.classes else ()
        shape = self.data.train.shape
        return Painter(self.learner.snapshot(), self.config, shape, names, self.compute, self.update, self.scores)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "learner": self.learner.state_dict(),
            "rng": checkpoint.rng_state(),
            "watch": self.watch.state_dict(),
            "best": self.best,
            "scores": self.scores,
            "rollbacks": self.rollbacks,
            "hours": self.clock(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.learner.load_state_dict(state["learner"])
        checkpoint.set_rng_state(state["rng"])
        self.watch.load_state_dict(state["watch"])
        self.best, self.scores, self.clock.hours = state["best"], state["scores"], state["hours"]
        self.rollbacks = state["rollbacks"]

    def roll_back(self, state: dict[str, Any]) -> None:
        """Go on from the best moment with other random numbers, so that it need not end as it did."""
        rollbacks = self.rollbacks + 1
        self.load_state_dict(state)
        self.rollbacks = max(rollbacks, self.rollbacks + 1)
        self.learner.random.manual_seed(
            self.config.seed * 1_000_003 + self.world.rank + 15_485_863 * self.rollbacks + self.update
        )


def train(config: Config, run: Run, data: Data, compute: Compute, world: World) -> str:
    """The run from wherever it stands to its end. Returns the closing sentence.

    Raises:
        UserError: a checkpoint that cannot be read, weights that are no numbers any more.
    """
    training = Training(config, data, compute, world)
    latest = run.path(f"checkpoint-{world.rank}.pt")
    if not world.any(latest.exists(), compute.torch_device):
        provenance.record(run, config.pretrained_backbone)
    judge = Judge(config, data, run.extra)
    begin(training, run, latest)
    for remark in data.remarks:
        run.print(remark)
    run.print(f"{data.train.source}: {len(data.train):,} to learn from, {len(data.held_out):,} held out to choose on")
    for line in judge.protocol():
        run.print(line)
    if judge.scorer.doubt:
        run.warn(judge.scorer.doubt)
    show = fixed_latents(config)

    def save() -> None:
        check_weights(training, run)
        run.save(latest, training.state_dict())

    def due(every: int) -> bool:
        return every > 0 and training.update % every == 0

    if training.update == 0 and not latest.exists():
        run.image("real", 0, picture(data.train.images[: config.show]))
        save()
    elif config.rollback:
        save()  # what came after the best moment is gone from the metrics too: --resume must not go back to it
    window = Window(training)
    stopping = False
    while training.update < config.updates and not stopping:
        training.turn()
        if due(config.log_every_updates):
            log_metrics(training, run, window)
            window = Window(training)
        if due(config.film_every_updates) and world.is_main:
            write_png(run.path("film", f"{training.update:08}.png"), picture(sketch(training, show)))
        ended = training.update == config.updates
        if due(config.eval_every_updates) or ended:
            if world.is_main:
                evaluate(training, judge, run, save)
            window = Window(training)
        if due(config.checkpoint_every_updates) or ended:
            save()
        stopping = world.any(bool(run.stop_requested), compute.torch_device)
    if stopping:
        run.print(f"{run.stop_requested}: saving")
        save()
    if not world.is_main:
        return ""
    finish(training, run)
    return closing_line(training, judge, run)


def check_weights(training: Training, run: Run) -> None:
    """Stop before weights that are no numbers are scored, shown or kept.

    Raises:
        UserError: they are none.
    """
    if not training.learner.is_finite():
        raise UserError(no_numbers("The weights are no numbers", training, run))


def no_numbers(what: str, training: Training, run: Run) -> str:
    """What happened, and the ways on from there."""
    return (
        f"{what} any more at update {training.update:,}; the last good checkpoint stays in {run.folder}: go on from "
        f"its best moment with --resume --rollback, or start again with lower rates."
    )


def begin(training: Training, run: Run, latest: Path) -> None:
    """Put the run where it stood: at its last checkpoint, at its best, or at its start."""
    config = training.config
    best = run.folder / BEST
    if config.rollback and not (latest.exists() and best.exists()):
        raise UserError(f"{run.folder} has no best moment yet: leave --rollback out.")
    if config.rollback:
        with contextlib.suppress(UserError):  # a damaged last checkpoint is one to go back from
            training.rollbacks = checkpoint.load(latest, KIND)["rollbacks"]
        try:
            going_on = run.restore(best, training.roll_back)
        except UserError as error:
            raise UserError(f"{error} The last moment is kept apart from it: leave --rollback out.") from None
        run.print(f"rolled back to update {training.update:,}")
    else:
        going_on = run.restore(latest, training.load_state_dict)
    told = training.world.broadcast_value({"update": training.update})["update"]
    if training.world.any(training.update != told, training.compute.torch_device):
        raise UserError(
            f"The checkpoints of the processes in {run.folder} are of different updates, since the run was killed "
            f"between them: go on from its best moment with --resume --rollback."
        )
    if going_on:
        for frame in (run.folder / "film").glob("*.png"):
            if int(frame.stem) > training.update:
                frame.unlink()  # it will be painted again, or otherwise
    elif config.pretrained_backbone:
        run.print(
            str(
                load_pretrained_backbone(
                    training.learner.discriminator.backbone, zoo.weights_source(config.pretrained_backbone)
                )
            )
        )


class Window:
    """What the clock said when the stretch began that a line of metrics is about."""

    def __init__(self, training: Training) -> None:
        self.update, self.began = training.update, time.perf_counter()


def log_metrics(training: Training, run: Run, window: Window) -> None:
    """One line of metrics, the progress bar, and a look whether the discriminator has won.

    Raises:
        UserError: a loss is no number.
    """
    images = (training.update - window.update) * training.config.batch_size
    scalars: dict[str, Any] = {name: float(value) for name, value in training.learner.read_metrics().items()}
    scalars |= {
        "speed/images_per_s": images / (time.perf_counter() - window.began),
        "speed/hours": training.clock(),
    }
    run.log(training.update, scalars)
    run.flush()
    if not np.isfinite([scalars["train/d_loss"], scalars["train/g_loss"]]).all():
        raise UserError(no_numbers("The loss is no number", training, run))
    warning = training.watch.discriminator(
        scalars["train/d_accuracy_real"], scalars["train/d_accuracy_fake"], training.update
    )
    if warning:
        run.warn(warning)
    score = next((training.scores[name] for name in ("fcd", "random_fd") if name in training.scores), float("nan"))
    fields = {
        "D loss": scalars["train/d_loss"],
        "G loss": scalars["train/g_loss"],
        "D right on real": scalars["train/d_accuracy_real"],
        "on painted": scalars["train/d_accuracy_fake"],
        "FCD" if "fcd" in training.scores else "distance": score,
        "images/s": scalars["speed/images_per_s"],
    }
    run.progress(training.update, training.config.updates, fields)


def evaluate(training: Training, judge: Judge, run: Run, save: Callable[[], None]) -> None:
    """Score what is painted now, keep it where it is the best so far, show it, and warn of a collapse."""
    check_weights(training, run)
    config, name = training.config, judge.scorer.name
    painter = training.painter()
    training.scores = scores = judge.scores(painter, config.eval_images)
    run.log(training.update, {f"eval/{key}": value for key, value in scores.items()})
    run.log(training.update, {"speed/hours": training.clock()})
    run.flush()
    best = training.best["score"] if training.best else None
    for warning in (
        training.watch.samples(scores["spread"], scores[name], best, training.update),
        training.watch.classes(scores.get("rarest_class"), judge.floor.get("rarest_class"), training.update),
    ):
        if warning:
            run.warn(warning)
    painter.scores.update(scores)
    painter.save(run.path(weights_file("last")))
    if np.isfinite(scores[name]) and (best is None or scores[name] < best):
        training.best = {"update": training.update, "score": scores[name]}
        painter.save(run.path(weights_file("best")))
        run.save(run.path(BEST), training.state_dict())
    save()
    z_NZ = fixed_latents(config)
    samples = painter.paint(z_NZ, painter.labels(len(z_NZ)))
    run.image("samples", training.update, picture(samples))
    curves = draw_curves(run.folder / "metrics.jsonl")
    if curves is not None:
        run.image("curves", training.update, curves)
    run.print(f"update {training.update:,}: {in_words(scores)}")


def fixed_latents(config: Config) -> Tensor:
    """The latents that are shown at every evaluation and in the film."""
    random = torch.Generator().manual_seed(config.seed)
    return draw_latents(config, (config.show, config.latent), random, torch.device("cpu"))


def sketch(training: Training, z_NZ: Tensor) -> Tensor:
    """The fixed latents as the averaged generator paints them, without fitting its statistics first: for the film."""
    learner, config = training.learner, training.config
    names = training.data.train.classes if learner.classes else ()
    generator = learner.generator if learner.ema is None else learner.ema.module
    mode = generator.training
    painter = Painter(generator.eval(), config, learner.shape, names, training.compute, training.update)
    images = painter.paint(z_NZ, painter.labels(len(z_NZ)))
    generator.train(mode)
    return images


def finish(training: Training, run: Run) -> None:
    """The film of the fixed latents over training, and the table of hyperparameters."""
    frames = sorted((run.folder / "film").glob("*.png"))
    if len(frames) > 1:
        run.video("film", training.update, film(frames), FILM_FPS)
    if training.scores:
        run.hparams(to_dict(training.config), {f"hparam/{name}": value for name, value in training.scores.items()})


def closing_line(training: Training, judge: Judge, run: Run) -> str:
    """What was reached, and the command that goes on from there."""
    config, name = training.config, judge.scorer.name
    label = "FCD" if name == "fcd" else "distance in a random network's features"
    score = "not scored yet"
    if training.best is not None and training.scores:
        score = (
            f"{label} {training.scores[name]:.4g} at the end, {training.best['score']:.4g} at its best "
            f"(update {training.best['update']:,}), against {len(judge.real.features_NF):,} held-out images"
        )
    if training.update < config.updates:
        return f"{config.data} at update {training.update:,}: {score}; go on with: {again(config)}"
    look = program_command("generative.sample")
    return f"{config.data} at update {training.update:,}: {score}; look: {look} {run.folder}"


def again(config: Config) -> str:
    """The command that goes on with the run."""
    return f"{program_command('generative.dcgan')} --name {config.name} --resume"


def default_name(config: Config) -> str:
    """dcgan-mnist-fast-1 for --data mnist, preset fast, seed 1."""
    source = Path(config.data.replace(":", "-")).stem.replace(" ", "_")
    return f"{KIND}-{source}-{config.preset}-{config.seed}"


def choose_compute(config: Config, data: Data, world: World) -> Compute:
    """Measure updates on the first images."""
    batch = config.batch_size // world.size

    def train_step(candidate: Compute) -> Callable[[], object]:
        learner = Learner(config, data.train.shape, len(data.train.classes), candidate, World())
        pixels = data.train.images[:batch].to(candidate.torch_device)
        labels = data.train.labels[:batch].to(candidate.torch_device)
        return lambda: learner.update(pixels, labels)

    return probe(config, world, train_step, compile=config.compile)


def main(argv: Sequence[str] | None = None) -> None:
    """The program: config, data, run, compute, loop, closing line."""
    config = configure(
        Config, PRESETS, argv, __doc__ or "", kind=KIND, default_name=default_name, changeable=CHANGEABLE
    )
    if config.rollback and not config.resume:
        raise UserError("--rollback goes back in a run that there is: add --resume and its --name.")
    world = World.from_env(config.device)
    if config.batch_size % (world.size * config.accumulate):
        raise UserError(
            f"{flag('batch_size')} {config.batch_size} cannot be shared by {world.size} processes and "
            f"{flag('accumulate')} {config.accumulate} parts evenly."
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
