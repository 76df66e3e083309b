"""Session: state of a GAN's training run, order of its images, checkpoints, logged metrics and the training video.

The loop is in generative/dcgan.py; evaluations are in generative/scoring/evaluation.py.

Shapes: N images, B batch, Z latent dimension, C channels, H, W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerokara.core import checkpoint
from zerokara.core.config import UserError, to_dict
from zerokara.core.epoch_order import EpochOrder
from zerokara.core.media import write_png
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.progress import format_duration
from zerokara.core.run import Run
from zerokara.core.stopwatch import LogInterval, Stopwatch
from zerokara.core.zoo import provenance
from zerokara.core.zoo import registry as zoo
from zerokara.generative.gan.collapse_monitor import CollapseMonitor
from zerokara.generative.gan.config import KIND, Config
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import Learner, draw_latents
from zerokara.generative.gan.pictures import VIDEO_FPS, evenly_spaced, image_grid, video_frames
from zerokara.generative.gan.sampler import BEST, Sampler

ESTIMATE_INTERVAL = 2  # log interval after which the duration is estimated; the first includes start-up costs
ESTIMATE_MINUTES = 15


class Session:
    """State of a training run, which checkpoints hold, and what is saved and logged."""

    def __init__(self, run: Run, data: Data, learner: Learner) -> None:
        """Move the training images to the device, and record the origin of a pretrained backbone."""
        self.config, self.run, self.data, self.learner = learner.config, run, data, learner
        self.compute, self.world = learner.compute, learner.world
        self.pixels = data.train.images.to(self.compute.torch_device)
        self.labels = data.train.labels.to(self.compute.torch_device)
        self.collapse_monitor = CollapseMonitor()
        self.best: dict[str, Any] | None = None  # update and score of the best evaluation
        self.scores: dict[str, float] = {}  # of the last evaluation
        self.intervals = 0  # logged since the run was started or resumed
        self.evaluation_pending = False  # True in the main process after an interrupted evaluation
        self.rollbacks = 0
        self.clock = Stopwatch()
        self.latest = run.checkpoint_path
        self.order = EpochOrder(len(self.pixels), self.config.batch_size, self.config.seed)
        if run.checkpoints.saved is None:
            provenance.record(run, self.config.pretrained_backbone)

    @property
    def update(self) -> int:
        """Number of updates done."""
        return self.learner.updates

    def is_due(self, every_updates: int) -> bool:
        """Return True if this update is a multiple of `every_updates`; False if that is 0."""
        return every_updates > 0 and self.update % every_updates == 0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return real images (B, C, H, W) uint8 and labels (B,): this process's shard of the next batch."""
        index_B = self.order.batch(self.update, self.rollbacks)[self.world.batch_shard].to(self.compute.torch_device)
        return self.pixels[index_B], self.labels[index_B]

    def start(self) -> None:
        """Restore the last checkpoint (the best one with --rollback), or start the run and save its first checkpoint.

        Raises:
            UserError: no checkpoint to roll back to, or an unreadable one.
        """
        resumed = self._restore()
        if not resumed and self.config.pretrained_backbone:
            source = zoo.find_weights(self.config.pretrained_backbone)
            self.run.print(str(load_pretrained_backbone(self.learner.discriminator.backbone, source)))
        if not resumed:
            self.run.image("real", 0, image_grid(evenly_spaced(self.data.train.images, self.config.preview_images)))
            self.save()
        elif self.config.rollback:
            # The metrics after the best checkpoint are already deleted, so --resume must not return to the last one.
            self.save()
        self.start_interval()

    def _restore(self) -> bool:
        """Restore a checkpoint. Returns False if there is none."""
        run, best, saved = self.run, self.run.folder / BEST, self.run.checkpoints.saved
        if self.config.rollback:
            if saved is None or not best.exists():
                raise UserError(f"{run.folder} has no best checkpoint yet: remove --rollback.")
            # The last checkpoint may be damaged; the best one is restored. All processes read that of the first one.
            with contextlib.suppress(UserError, KeyError):
                self.rollbacks = checkpoint.load(saved.paths[0], KIND)["rollbacks"]
            try:
                resumed = run.restore(best, self.roll_back)
            except UserError as error:
                raise UserError(f"{error} The last checkpoint is a separate file: remove --rollback.") from None
            run.print(f"rolled back to update {self.update:,}")
        else:
            resumed = run.restore(self.latest, self.load_state_dict, self.load_processes)
        if resumed and self.world.is_main:
            for frame in (run.folder / "film").glob("*.png"):
                if int(frame.stem) > self.update:
                    frame.unlink()  # the update will be repeated
        return resumed

    def roll_back(self, state: dict[str, Any]) -> None:
        """Restore the best checkpoint and change the random numbers, so that training takes another course."""
        rollbacks = self.rollbacks + 1
        self.load_state_dict(state)
        self.rollbacks = max(rollbacks, self.rollbacks + 1)
        self.learner.random.manual_seed(
            self.world.process_seed(self.config.seed) + 15_485_863 * self.rollbacks + self.update
        )

    def save(self) -> None:
        """Save the last checkpoint.

        Raises:
            UserError: the weights contain NaN or Inf.
        """
        self.check_finite_weights()
        self.run.save(self.latest, self.state_dict())

    def check_finite_weights(self) -> None:
        """Check that all weights are finite before they are evaluated or saved.

        Raises:
            UserError: they contain NaN or Inf.
        """
        if not self.learner.has_finite_weights():
            raise self.divergence_error("the weights contain NaN or Inf")

    def divergence_error(self, reason: str) -> UserError:
        """Return the error that describes a divergence and how to continue."""
        return UserError(
            f"Training diverged at update {self.update:,}: {reason}. The last good checkpoint stays in "
            f"{self.run.folder}: resume from the best one with --resume --rollback, or start a new run with lower "
            f"learning rates."
        )

    def start_interval(self) -> None:
        """Start the interval that the next log entry covers."""
        self.interval = LogInterval(self.update)

    def log_metrics(self) -> None:
        """Log the metrics of an interval, show progress, warn if the discriminator is perfect; start the next one.

        Raises:
            UserError: a loss is NaN or Inf.
        """
        scalars: dict[str, Any] = {name: float(value) for name, value in self.learner.read_metrics().items()}
        scalars |= {
            "speed/images_per_s": self.interval.per_second(self.update) * self.config.batch_size,
            "speed/hours": self.clock(),
        }
        self.run.log(self.update, scalars)
        self.run.flush()
        if not np.isfinite([scalars["train/d_loss"], scalars["train/g_loss"]]).all():
            raise self.divergence_error("a loss is NaN or Inf")
        warning = self.collapse_monitor.discriminator(
            scalars["train/d_accuracy_real"], scalars["train/d_accuracy_fake"], self.update
        )
        if warning:
            self.run.warn(warning)
        score = next((self.scores[name] for name in ("fcd", "random_fd") if name in self.scores), float("nan"))
        fields = {
            "D loss": scalars["train/d_loss"],
            "G loss": scalars["train/g_loss"],
            "D accuracy real": scalars["train/d_accuracy_real"],
            "fake": scalars["train/d_accuracy_fake"],
            "FCD" if "fcd" in self.scores else "distance": score,
            "images/s": scalars["speed/images_per_s"],
        }
        self.run.progress(self.update, self.config.updates, fields)
        self.intervals += 1
        if self.intervals == ESTIMATE_INTERVAL and self.update < self.config.updates:
            rate, remaining = self.interval.per_second(self.update), self.config.updates - self.update
            self.run.print(format_estimate(rate, remaining, is_limited=self.config.minutes > 0))
        self.start_interval()

    def sampler(self) -> Sampler:
        """Return a sampler of the current generator."""
        names = self.data.train.classes if self.learner.classes else ()
        shape = self.data.train.shape
        return Sampler(self.learner.snapshot(), self.config, shape, names, self.compute, self.update, self.scores)

    def save_video_frame(self) -> None:
        """Save the preview images as a frame, without recalibrating BatchNorm, which would take longer."""
        learner, z_NZ = self.learner, preview_latents(self.config)
        names = self.data.train.classes if learner.classes else ()
        generator = learner.generator if learner.ema is None else learner.ema.module
        mode = generator.training
        sampler = Sampler(generator.eval(), self.config, learner.shape, names, self.compute, self.update)
        images = sampler.generate(z_NZ, sampler.labels(len(z_NZ)))
        generator.train(mode)
        write_png(self.run.path("film", f"{self.update:08}.png"), image_grid(images))

    def finish(self) -> None:
        """Write the training video and the table of hyperparameters."""
        frames = sorted((self.run.folder / "film").glob("*.png"))
        if len(frames) > 1:
            self.run.video("film", self.update, video_frames(frames), VIDEO_FPS)
        if self.scores:
            self.run.hparams(to_dict(self.config), [f"eval/{name}" for name in self.scores])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint needs, as tensors and plain values."""
        return {
            "learner": self.learner.state_dict(),
            "rng": checkpoint.rng_state(),
            "watch": self.collapse_monitor.state_dict(),
            "best": self.best,
            "scores": self.scores,
            "evaluation_pending": self.evaluation_pending,
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
        self.evaluation_pending = self.world.is_main and state.get("evaluation_pending", False)  # new in 0.2

    def load_processes(self, states: Mapping[int, dict[str, Any]]) -> str:
        """Restore the state from checkpoints of other processes, as `Run.restore` describes it.

        Latent vectors and augmentation are drawn anew, because a process has other images than those that saved.
        """
        with checkpoint.drawn_anew(self.learner.random, lambda: self.update):
            self.load_state_dict(states.get(self.world.rank, states[0]))
        return checkpoint.DRAWN_ANEW


def format_estimate(updates_per_s: float, updates: int, *, is_limited: bool) -> str:
    """Describe how long updates take; if --minutes does not limit the run, also how many take ESTIMATE_MINUTES."""
    duration = format_duration(updates / updates_per_s)
    estimate = f"{updates:,} updates remain, which take about {duration} without evaluations"
    if is_limited:
        return f"{estimate}."
    return (
        f"{estimate}; {updates_per_s * 60 * ESTIMATE_MINUTES:,.0f} take {ESTIMATE_MINUTES} minutes. --updates sets the "
        f"number of all updates, also of a run that is resumed."
    )


def preview_latents(config: Config) -> Tensor:
    """Return the fixed latent vectors (N, Z) of the preview images."""
    random = torch.Generator().manual_seed(config.seed)
    return draw_latents(config, (config.preview_images, config.latent_dim), random, torch.device("cpu"))
