"""Train an object detector: Fast R-CNN or R-CNN, on proposals of selective search.

    python -m vision.detect --data bccd
    python -m vision.detect --data bccd --method rcnn

R-CNN (Girshick et al. 2014, "Rich feature hierarchies for accurate object detection and semantic segmentation") warps
each proposal of selective search to a square, computes a feature vector with a CNN, classifies it with linear SVMs,
refines its box by regression, and applies non-maximum suppression. Fast R-CNN (Girshick 2015) runs the CNN once on the
whole image and pools the features of each proposal from the feature map. Both use the same proposals, backbone and
hidden layers; python -m vision.detect_compare compares them. docs/detect.md has the results.

A fifth of the images is the test set, which is used once, after training; a tenth is the validation set.

Shapes: N images, P proposals, K classes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from zerokara.core.command_line import check_command_line
from zerokara.core.config import Stopped, UserError, run_main
from zerokara.core.programs import program_command
from zerokara.vision.detection.config import KIND, Config, read_config, resolve_backbone

if __name__ == "__main__":
    check_command_line(read_config, __doc__)  # before the imports below, which take seconds

import torch

from zerokara.core.backbones.base import on_meta_device
from zerokara.core.compute import Compute, TrainStep
from zerokara.core.data.backgrounds import with_background
from zerokara.core.data.boxes import BoxSet
from zerokara.core.data.sources import image_lumas
from zerokara.core.data_parallel import check_sync_batch_norm
from zerokara.core.distributed import World
from zerokara.core.media import grid, to_uint8
from zerokara.core.models.model_file import MODEL_FILE
from zerokara.core.models.normalization import format_normalization
from zerokara.core.models.weights import load_pretrained_backbone
from zerokara.core.report import read_result, write_json
from zerokara.core.run import Run
from zerokara.core.training_loop import run_updates
from zerokara.core.training_program import check_divisible, choose_compute, open_run
from zerokara.core.zoo import provenance
from zerokara.vision.detection.detector import DetectorMetadata
from zerokara.vision.detection.learner import Data, Training, make_metadata, save_normalization
from zerokara.vision.detection.pictures import sheet, worst_first
from zerokara.vision.detection.proposals import Proposals, coverage, default_folder, find_all
from zerokara.vision.detection.svm import all_vectors, fit

SHOWN_CONFIDENCE = 0.5  # minimum confidence of detections that are drawn


def work(config: Config, run: Run, data: Data, metadata: DetectorMetadata, world: World) -> str:
    """Compute proposals, train, fit R-CNN's SVMs and evaluate. Return the closing message.

    Raises:
        Stopped: a signal stopped the run; its closing line is printed.
    """
    result = run.path("result.json")
    if config.resume and result.exists():  # a finished run is not tested again
        return closing(config, read_result(result, "validation_map_50")["figures"])
    batch_size = config.regions_per_update if config.method == "rcnn" else config.images_per_update
    timed = TrainStep(partial(probe_step, config, data), batch_size // world.size)
    compute = run.compute(lambda: choose_compute(config, world, timed, config.updates), config.updates)
    training = None
    try:
        proposals = find(config, run, data.train, "training images", world)
        validation = find(config, run, data.validation, "validation images", world)
        training = Training(config, metadata, data.train, proposals, compute, world)
        train(config, run, data, training, validation)
        evaluating = training.evaluating
        if not world.is_main and evaluating.size == 1:
            return ""
        with run.interruptible(on=evaluating.size == 1):  # several processes stop together, during an evaluation
            last_stage(config, run, training, data, proposals)
            return finish(config, run, training, data, validation)
    except Stopped:
        run.close(stopped_message(config, run, training))
        raise


def find(config: Config, run: Run, boxes: BoxSet, which: str, world: World) -> list[Proposals]:
    """Read proposals from the cache or compute them, and log their coverage. `which` names the images in messages.

    Raises:
        Stopped: a signal to stop arrived.
        UserError: the cache folder cannot be written.
    """
    folder = Path(config.proposal_cache).expanduser() if config.proposal_cache else default_folder()

    def progress(done: int, total: int) -> None:
        run.progress(done, total, {"proposals": f"of {which}"})
        if run.stop_requested:
            raise Stopped

    processes = int(run.extra["compute"]["threads"])
    limits = config.search(), config.proposals
    with run.interruptible(on=world.size == 1):  # several processes stop together, between two exchanges
        found = find_all(boxes, *limits, folder, processes=processes, progress=progress, world=world)
    run.print(f"{len(boxes):,} {which}: {coverage(boxes, found)}")
    return found


def train(config: Config, run: Run, data: Data, training: Training, validation: list[Proposals]) -> None:
    """Train the network from the current update to the last one.

    Raises:
        Stopped: a signal to stop arrived.
        UserError: the checkpoint cannot be read, or training diverged (NaN or Inf in the weights).
    """
    resumed = run.restore(run.checkpoint_path, training.load_state_dict, training.load_processes)
    if not resumed and (path := config.backbone_weights_path()) is not None:
        run.print(str(load_pretrained_backbone(training.detector.net.backbone, path)))
        training.world.broadcast(training.detector)
        provenance.record(run, config.pretrained_backbone)
    if not resumed:
        pixels = training.example().pixels[:16]
        run.image("learnt_from", 0, grid(Compute.to_host(to_uint8(pixels))))
        training.save(run)
    if run_updates(training, run, training.update, lambda: validate(training, run, data.validation, validation)):
        raise Stopped


def stopped_message(config: Config, run: Run, training: Training | None) -> str:
    """Return the closing message of a run that was stopped by a signal."""
    updates, last_map = (training.updates, training.last_map) if training is not None else (0, None)
    score = "not validated yet" if last_map is None else f"validation mAP {percent(last_map)}"
    return (
        f"{config.data} at update {updates:,} of {config.updates:,}: {score}; resume with: "
        f"{run.resume_command(program_command('vision.detect'))}"
    )


def validate(training: Training, run: Run, boxes: BoxSet, proposals: Sequence[Proposals]) -> dict[str, float]:
    """Evaluate on the validation images, log images and weights, and save the model. Return the metrics.

    The processes divide the images; the main process does the rest.
    """
    scored = training.score_in_processes(run, boxes, proposals)
    training.last_map = scored.precision.map_50
    metrics = {"map_50": scored.precision.map_50, "map_50_95": scored.precision.map_50_95}
    if not run.world.is_main:
        return metrics
    by_class = {f"ap_50_{name}": value for name, value in scored.precision.by_class.items()}
    run.log(training.updates, {f"val/{name}": value for name, value in (metrics | by_class).items()})
    run.image("validation", training.updates, sheet(boxes, scored.found, confidence=SHOWN_CONFIDENCE))
    for name, parameter in training.detector.named_parameters():
        run.histogram(f"weights/{name}", training.updates, parameter)
    training.detector.metadata.save(run.path(MODEL_FILE), training.detector.state_dict())
    return metrics


def last_stage(config: Config, run: Run, training: Training, data: Data, proposals: Sequence[Proposals]) -> None:
    """Fit R-CNN's SVMs and box regressions on the vectors of the training regions. Fast R-CNN has no such stage.

    Raises:
        Stopped: a signal to stop arrived; on resume this stage starts again.
    """
    svm = training.detector.svm
    if svm is None:
        return

    def progress(done: int, total: int) -> None:
        run.progress(done, total, {"features": "of training images, for the SVMs"})

    training.detector.eval()
    vectors = all_vectors(config, training.detector, data.train, proposals, training.compute, progress)
    negatives = fit(config, svm, vectors, training.metadata.classes)
    run.print(
        "SVMs trained with " + ", ".join(f"{number:,} negatives for {name}" for name, number in negatives.items())
    )


def finish(config: Config, run: Run, training: Training, data: Data, validation: Sequence[Proposals]) -> str:
    """Evaluate on the test set, write model.safetensors and result.json. Return the closing message.

    The processes divide the images; the main process does the rest.
    """
    scores = validate(training, run, data.validation, validation)
    results = {f"validation_{name}": value for name, value in scores.items()}
    if config.test:
        results |= test(config, run, training, data.test)
    if not run.world.is_main:
        return ""
    run.log_results(training.updates, config, results)
    training.detector.metadata = replace(training.metadata, figures=results)
    training.detector.metadata.save(run.path(MODEL_FILE), training.detector.state_dict())
    protocol = {
        "method": config.method,
        "train_pictures": len(data.train),
        "validation_pictures": len(data.validation),
        "test_pictures": len(data.test),
        "split_seed": config.split_seed,
        "seed": config.seed,
        "updates": training.updates,
        "compute": training.compute.to_dict(),
        "hours": training.stopwatch(),
        "remarks": [
            f"no true boxes in the {split} images: their mAP is null"
            for split in ("validation", "test")
            if math.isnan(results.get(f"{split}_map_50", 0.0))
        ],
    }
    write_json(run.path("result.json"), {"figures": results, "protocol": protocol})
    return closing(config, results)


def test(config: Config, run: Run, training: Training, boxes: BoxSet) -> dict[str, float]:
    """Evaluate on the test set and log images of its best and worst results. Return the metrics."""
    proposals = find(config, run, boxes, "test images", training.evaluating)
    scored = training.score_in_processes(run, boxes, proposals)
    order = worst_first(boxes, scored.found, SHOWN_CONFIDENCE)
    for tag, indices in (("test_worst", order[:4]), ("test_best", order[::-1][:4])):
        found = [scored.found[index] for index in indices]
        run.image(tag, training.updates, sheet(boxes.take(indices), found, confidence=SHOWN_CONFIDENCE))
    covered = coverage(boxes, proposals)
    return {
        "test_map_50": scored.precision.map_50,
        "test_map_50_95": scored.precision.map_50_95,
        **{f"test_ap_50_{name}": value for name, value in scored.precision.by_class.items()},
        "test_recall_50": covered.recall_50,
        "test_proposals": covered.number,
        "proposal_seconds": statistics.median(each.seconds for each in proposals),
        "network_seconds": scored.network_seconds,
    }


def percent(score: float) -> str:
    """Format a score from 0 to 1; NaN stands for one that cannot be measured."""
    return "not measured" if math.isnan(score) else f"{score:.1%}"


def closing(config: Config, results: dict[str, float]) -> str:
    """Return the closing message of a finished run."""
    message = f"{config.data}, {config.method}: validation mAP {percent(results['validation_map_50'])}"
    if math.isnan(results["validation_map_50"]):
        message += " (no true boxes in the validation images)"
    if "test_map_50" in results:
        unknown = " (no true boxes in the test images)" if math.isnan(results["test_map_50"]) else ""
        message += (
            f", test mAP {percent(results['test_map_50'])} at IoU 0.5 and {percent(results['test_map_50_95'])} at 0.5 "
            f"to 0.95{unknown}; per image {results['proposal_seconds']:.2f} s for proposals and "
            f"{results['network_seconds']:.3f} s for the network"
        )
    return f"{message}; try it with: {program_command('vision.detect_predict')} runs/{config.name} <image>"


def probe_step(config: Config, data: Data, compute: Compute, batch_size: int) -> Callable[[], object]:
    """Return an update on the first images with random proposals, which is timed to choose the hardware settings.

    Args:
        batch_size: images of the update; for R-CNN, whose network gets crops, regions.
    """
    if config.method == "rcnn":
        config = replace(config, regions_per_update=batch_size)
    else:
        regions = max(1, config.regions_per_update * batch_size // config.images_per_update)
        config = replace(config, images_per_update=batch_size, regions_per_update=regions)
    few = data.train.take(range(min(max(8, config.images_per_update), len(data.train))))
    random_proposals = [Proposals(_random_boxes(few, config.regions_per_update), 0.0) for _ in range(len(few))]
    return Training(config, make_metadata(config, few, None), few, random_proposals, compute, World()).update


def _random_boxes(boxes: BoxSet, number: int) -> torch.Tensor:
    """Return random boxes (number, 4) with a quarter of the height and width of the images, for measurements."""
    height, width = boxes.images.shape[2:]
    corner_N2 = torch.rand(number, 2) * torch.tensor([width * 0.75, height * 0.75])
    return torch.cat([corner_N2, corner_N2 + torch.tensor([width * 0.25, height * 0.25])], 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read config and data, open the run, train, evaluate, print the closing message."""
    config = read_config(argv, __doc__ or "")
    if not config.data:
        raise UserError("No data set was given: type --data bccd, or a folder or zip of images with boxes.")
    config, pretrained = resolve_backbone(config)
    world = World.from_env(config.device)
    check_divisible(config, world, "images_per_update")
    check_sync_batch_norm(config, world)
    config, lines = with_background(config, partial(image_lumas, config.data))
    data = Data.load(config)
    metadata = make_metadata(config, data.train, pretrained)
    with on_meta_device():  # invalid networks are refused before the run folder is created
        detector = metadata.build()
    if not config.resume and (path := config.backbone_weights_path()) is not None:  # and so are weights that do not fit
        load_pretrained_backbone(detector.net.backbone, path)
    with open_run(config, KIND, world) as run:
        save_normalization(run, metadata)
        for line in (*lines, *data.messages(config)):
            run.print(line)
        if config.published_normalization:
            run.print(format_normalization(config))
        run.close(work(config, run, data, metadata, world))


if __name__ == "__main__":
    run_main(main)
