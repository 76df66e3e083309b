"""Trained networks before they are added to the zoo: their metadata and weights, and how each kind is scored.

    candidate = read_candidate(Path("runs/dqn-Pong-v5-fast-1"), compute)
    candidate.metadata.save(path, candidate.weights, half=True)
    result = candidate.score(path)

Every kind is scored from a model file, so that the file in float32 and the rounded one are scored in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from zerokara.agents import evaluate
from zerokara.agents.qlearning.agent_file import ALGORITHMS
from zerokara.agents.viewing.loading import load_agent
from zerokara.core.compute import Compute
from zerokara.core.config import UserError, from_dict, to_dict
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.core.models.model_file import Metadata, run_origin
from zerokara.core.progress import Progress
from zerokara.core.run import Run
from zerokara.core.run_config import stem
from zerokara.core.zoo import registry as zoo
from zerokara.generative import metrics
from zerokara.generative.gan.config import KIND as GENERATOR_RUN
from zerokara.generative.gan.sampler import Sampler
from zerokara.vision.classification.config import Config
from zerokara.vision.classification.learner import Data
from zerokara.vision.classification.scoring import score

# Maximum increase of a classifier's validation error by rounding; at least one image is allowed.
MAX_ERROR_INCREASE = 0.001
# Maximum relative decrease of an agent's mean return, if it is larger than two standard errors of the difference. Where
# most episodes are alike, as in Pong, standard errors are nearly 0 although one other action changes the episode.
MAX_RETURN_DECREASE = 0.02
# Maximum relative increase of a generator's Fréchet distance, and decrease of its accuracy.
MAX_DISTANCE_INCREASE = 0.05
MAX_ACCURACY_DECREASE = 0.005
EPISODES = 30  # of an agent's evaluation
EVALUATION_SEED = 100  # differs from the default of agents.evaluate, so that its episodes are independent ones
IMAGES = 10_000  # generated images, and test images, of a generator's evaluation
GENERATOR_METRICS = ("accuracy", "confident", "precision", "recall", "coverage")  # beside the Fréchet distance


@dataclass(frozen=True)
class Result:
    """Metrics of a model file, and the conditions under which they were measured."""

    figures: Mapping[str, float]
    protocol: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A trained network that may be added to the zoo.

    Attributes:
        kind: folder in the zoo.
        metadata: for its file, without private paths.
        weights: for its file.
        score: function that scores a model file.
        loss: function of the results before and after rounding; says what got worse, "" if nothing did.
    """

    kind: zoo.Kind
    metadata: Metadata[Any]
    weights: Mapping[str, Tensor]
    score: Callable[[Path], Result]
    loss: Callable[[Result, Result], str]


def read_candidate(run: Path, compute: Compute, data: str = "") -> Candidate:
    """Read the trained network of a run.

    Args:
        run: folder of a run of vision.classify, agents.dqn, agents.pqn, agents.stream or generative.dcgan.
        compute: device.
        data: description of the training data; empty: that of the run.

    Raises:
        UserError: the run is missing, of another kind, or has no trained network yet.
    """
    content = Run.read_config(run)
    kind = content["kind"]
    if kind == "classify":
        candidate = read_classifier(run, content, compute)
    elif kind in ALGORITHMS:
        candidate = read_agent(run, content, compute)
    elif kind == GENERATOR_RUN:
        candidate = read_generator(run, content, compute)
    else:
        raise UserError(
            f"{run} holds a run of {kind}: the zoo takes those of classify, {', '.join(ALGORITHMS)} and "
            f"{GENERATOR_RUN}."
        )
    return replace(candidate, metadata=replace(candidate.metadata, data=data)) if data else candidate


def read_classifier(run: Path, content: Mapping[str, Any], compute: Compute) -> Candidate:
    """Read the classifier of a finished run. It is scored on the validation images of the run."""
    config = from_dict(Config, content["config"], str(run / "config.json"))
    metadata, weights = ClassifierMetadata.read(run)
    if not metadata.figures:
        raise UserError(f"{run} is not finished and has no results yet: resume it with --resume.")
    validation = Data.load(config).validation

    def error(path: Path) -> Result:
        classifier, described = ClassifierMetadata.load(path)
        scores = score(compute.module(classifier), described, compute, validation, views=config.tta_views)
        return Result({"validation_error": scores.error})

    def loss(before: Result, after: Result) -> str:
        old, new = (result.figures["validation_error"] for result in (before, after))
        if round((new - old) * len(validation)) <= max(1, MAX_ERROR_INCREASE * len(validation)):  # in images
            return ""
        return (
            f"a validation error of {new:.2%} instead of {old:.2%}: train it again with a lower --learning-rate or "
            f"more --weight-decay"
        )

    return Candidate("classifiers", replace(metadata, data=stem(config.data)), weights, error, loss)


def read_agent(run: Path, content: Mapping[str, Any], compute: Compute) -> Candidate:
    """Read the agent of a run. It is scored by its mean return over episodes of seeds that training did not use."""
    agent = load_agent(run)
    config = {**content["config"], "pretrained_backbone": stem(content["config"].get("pretrained_backbone") or "")}
    env, versions = agent.config.env, content["versions"]
    package = "ale_py" if env.startswith("ALE/") else "zerokara" if env.startswith("zerokara/") else "gymnasium"
    metadata = replace(
        agent.metadata,
        config=config,
        data=f"{env}, played by the agent itself ({package} {versions[package]})",
        command=content["command"],
        figures={},  # those of the evaluation that selected the weights
        origin=tuple(run_origin(run)),
    )

    def mean_return(path: Path) -> Result:
        options = evaluate.Options(episodes=EPISODES, seed=EVALUATION_SEED)
        result = evaluate.evaluate_agent(load_agent(path, threads=compute.threads), options)
        figures = {"return": result["mean"], "standard_error": result["standard_error"]}
        return Result(figures, {**result["protocol"], "episodes": result["games"], "cut": result["cut"]})

    def loss(before: Result, after: Result) -> str:
        old, new = before.figures, after.figures
        errors = 2 * math.hypot(old["standard_error"], new["standard_error"])
        if new["return"] >= old["return"] - max(errors, MAX_RETURN_DECREASE * abs(old["return"])):
            return ""
        return f"a mean return of {new['return']:.4g} instead of {old['return']:.4g}: choose another run"

    return Candidate("agents", metadata, agent.policy.network.state_dict(), mean_return, loss)


def read_generator(run: Path, content: Mapping[str, Any], compute: Compute) -> Candidate:
    """Read the best generator of a run. It is scored against the test images, as generative.metrics does."""
    sampler, settings = Sampler.load(run), content["config"]
    # Paths of data and classifier are private; the evaluation still needs them.
    private = {key: settings[key] for key in ("data", "data_dir", "classifier")}
    public = {key: _without_folder(value) for key, value in private.items()}
    metadata = replace(
        sampler.metadata(),
        config={**to_dict(sampler.config), **public, "data_dir": ""},
        data=stem(settings["data"]),
        command=content["command"],
        origin=tuple(run_origin(run)),
    )

    def distance(path: Path) -> Result:
        options = metrics.Options(run=str(path), images=IMAGES)
        loaded = Sampler.load(path, threads=compute.threads)
        loaded = replace(loaded, config=replace(loaded.config, **private))
        result = metrics.report(options, loaded, Progress(silent=True))
        scores = result["scores"]["painted"]
        protocol = {**result["protocol"], "floor": result["scores"]["floor"]}
        # Without the path of the data, which is private.
        protocol["real"] = f"{protocol['real_images']:,} images of {metadata.data}, {protocol['split']} split"
        names = ("fcd" if "fcd" in scores else "random_fd", *GENERATOR_METRICS)
        return Result({name: scores[name] for name in names if name in scores}, protocol)

    def loss(before: Result, after: Result) -> str:
        name = "fcd" if "fcd" in before.figures else "random_fd"
        old, new = before.figures, after.figures
        if new[name] > (1 + MAX_DISTANCE_INCREASE) * old[name]:
            return f"a Fréchet distance of {new[name]:.4g} instead of {old[name]:.4g}: train it again"
        if new.get("accuracy", 1) < old.get("accuracy", 0) - MAX_ACCURACY_DECREASE:
            return f"an accuracy of {new['accuracy']:.2%} instead of {old['accuracy']:.2%}: train it again"
        return ""

    return Candidate("generators", metadata, sampler.generator.state_dict(), distance, loss)


def _without_folder(value: str) -> str:
    """Return the last part of an existing path; other values, such as names of data sets, are unchanged."""
    return stem(value) if len(Path(value).parts) > 1 and Path(value).exists() else value
