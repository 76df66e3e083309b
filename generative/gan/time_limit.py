"""Time limit of a GAN's run: the duration of its updates and evaluations, measured before the first update.

Shapes: B images of a process in an update, C channels, H, W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from zerokara.core.run import Run
from zerokara.core.time_limit import SecondsOf, measure_update
from zerokara.generative.gan.data import Data
from zerokara.generative.gan.learner import Learner
from zerokara.generative.gan.sampler import Sampler
from zerokara.generative.scoring.evaluator import Evaluator

EXTRA_SECONDS = 1.0  # of an evaluation, besides its metrics: images, curves, files of the generator and checkpoints
END_SECONDS = 2.0  # the video


def measure_updates(
    learner: Learner, update: Callable[[Learner, Tensor, Tensor], None], data: Data, evaluator: Evaluator, run: Run
) -> SecondsOf:
    """Measure updates and one whole evaluation of an untrained generator. All processes must call this.

    Args:
        learner: networks that are used for nothing else, since they are trained.
        update: does an update of the learner on real images (B, C, H, W) uint8 and their labels (B,).
        data: training images.
        evaluator: computes the metrics, also in the training.
        run: prints what was measured.

    Returns:
        The function that gives the seconds of a number of updates, with their evaluations and the end of the run.
    """
    config, compute, world = learner.config, learner.compute, learner.world
    number = config.batch_size // world.size
    pixels_BCHW, label_B = (x[:number].to(compute.torch_device) for x in (data.train.images, data.train.labels))

    def timed_update() -> None:
        update(learner, pixels_BCHW, label_B)
        learner.read_metrics()["train/d_loss"].item()  # waits for the device

    update_seconds = measure_update(timed_update, world, compiles=compute.compile, period=config.penalty_every_updates)
    _ = evaluator.real  # extracted once, for the training, too
    start = time.perf_counter()
    names = data.train.classes if learner.classes else ()
    sampler = Sampler(learner.snapshot(), config, learner.shape, names, compute, learner.updates)
    evaluator.scores(sampler, evaluator.num_generated)
    evaluation_seconds = time.perf_counter() - start + EXTRA_SECONDS
    run.print(f"an update takes {update_seconds:.3g} s, an evaluation {evaluation_seconds:.3g} s")
    every = config.eval_every_updates
    return lambda updates: seconds_of(updates, update_seconds, evaluation_seconds, every)


def seconds_of(updates: int, update_seconds: float, evaluation_seconds: float, eval_every_updates: int) -> float:
    """Return the seconds of updates, of evaluations, of which one is at the end, of the floor, and of the video.

    The floor is that of the metrics. It is computed once, in about the time of an evaluation.
    """
    evaluations = -(-updates // eval_every_updates) if eval_every_updates else 1
    return updates * update_seconds + (evaluations + 1) * evaluation_seconds + END_SECONDS
