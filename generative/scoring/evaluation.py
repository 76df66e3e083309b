"""Evaluation during the training of a GAN: metrics, best weights, sample images, warnings, and the closing message."""

from __future__ import annotations

import numpy as np

from zerokara.core.config import Stopped, format_count
from zerokara.core.programs import program_command
from zerokara.generative.gan.pictures import draw_curves, image_grid
from zerokara.generative.gan.sampler import BEST, weights_file
from zerokara.generative.gan.session import Session, preview_latents
from zerokara.generative.scoring.evaluator import Evaluator, format_scores


def print_protocol(session: Session, evaluator: Evaluator) -> None:
    """Print the number of images and how the metrics are computed."""
    run, data = session.run, session.data
    for message in data.messages:
        run.print(message)
    training, held_out = len(data.train), len(data.held_out)
    run.print(
        f"{data.train.source}: {format_count(training, 'training image')}, {format_count(held_out, 'held-out image')}"
    )
    for line in evaluator.protocol():
        run.print(line)
    for warning in (evaluator.extractor.bias_warning, data.few_images_warning(session.config)):
        if warning:
            run.warn(warning)


def evaluate(session: Session, evaluator: Evaluator) -> None:
    """Evaluate the generator, save its weights, log images and curves, and warn of mode collapse.

    If it is the best generator so far, a checkpoint of the whole run is saved, too. The first evaluation after a start
    or a resume also computes the floor. A signal interrupts the computation of the metrics; the evaluation is then
    repeated after resuming. The processes divide the images and the metrics; the main process does the rest.

    Raises:
        UserError: the weights contain NaN or Inf.
    """
    session.check_finite_weights()
    run, update, name = session.run, session.update, evaluator.extractor.name
    session.evaluation_pending = True
    try:
        with run.interruptible(on=session.world.size == 1):  # several processes stop together
            floor = evaluator.floor  # computed and printed in the first evaluation
            sampler = session.sampler()
            scores = evaluator.scores(sampler, evaluator.num_generated)
    except Stopped:
        return
    session.evaluation_pending = False
    if not session.world.is_main:
        return
    session.scores = scores
    run.log(update, {f"eval/{key}": value for key, value in scores.items()})
    run.log(update, {"speed/hours": session.clock()})
    run.flush()
    best = session.best["score"] if session.best else None
    monitor = session.collapse_monitor
    for warning in (
        monitor.samples(scores["spread"], scores[name], best, update),
        monitor.classes(scores.get("rarest_class"), floor.get("rarest_class"), update),
    ):
        if warning:
            run.warn(warning)
    sampler.scores.update(scores)
    sampler.save(run.path(weights_file("last")))
    if np.isfinite(scores[name]) and (best is None or scores[name] < best):
        session.best = {"update": update, "score": scores[name]}
        sampler.save(run.path(weights_file("best")))
        run.save(run.path(BEST), session.state_dict())
    z_NZ = preview_latents(session.config)
    samples = sampler.generate(z_NZ, sampler.labels(len(z_NZ)))
    run.image("samples", update, image_grid(samples))
    curves = draw_curves(run.folder / "metrics.jsonl")
    if curves is not None:
        run.image("curves", update, curves)
    run.print(f"update {update:,}: {format_scores(scores)}")


def closing_message(session: Session, evaluator: Evaluator) -> str:
    """Return the result of the run, and the command to resume it or to generate images."""
    config, name = session.config, evaluator.extractor.name
    label = "FCD" if name == "fcd" else "distance in a random network's features"
    result = "not evaluated yet"
    if session.best is not None and session.scores:
        result = (
            f"{label} {session.scores[name]:.4g}, best {session.best['score']:.4g} "
            f"(update {session.best['update']:,}), against {evaluator.num_held_out:,} held-out images"
        )
    if session.run.stopped or session.update < config.updates:
        command = session.run.resume_command(program_command("generative.dcgan"))
        return f"{config.data} at update {session.update:,}: {result}; resume with: {command}"
    command = program_command("generative.sample")
    return f"{config.data} at update {session.update:,}: {result}; generate images with: {command} {session.run.folder}"
