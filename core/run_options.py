"""Options that the config of every training program has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from zerokara.core.choices import Background, GradientCompression, Precision
from zerokara.core.command_line import Requirement
from zerokara.core.config import Range
from zerokara.core.tracking import ServiceName

HARDWARE_FIELDS = ("device", "precision", "compile", "threads")
"""Fields of a config that may change on resume in every program that has them."""

DATA_DIR: Requirement = (
    lambda config: config.data != "glyphs",
    "--data and the name of a data set in that folder (a folder of images is itself given as --data)",
)
"""Requirement of the option data_dir in programs whose default data set is generated, see core/command_line.py."""


class FolderOptions(Protocol):
    """Options of a run folder, which every config has whose program writes one and can resume."""

    @property
    def name(self) -> str:
        """Folder under runs/."""

    @property
    def resume(self) -> bool:
        """Resume the run of this name."""

    @property
    def quiet(self) -> bool:
        """Print only warnings and the closing message."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of the run folder and of the hardware. A config class inherits them."""

    name: str = ""
    """Folder under runs/ (none: made of program and main settings)."""
    seed: Annotated[int, Range(0, 10**6)] = 1
    """Seed of all random number generators."""
    resume: bool = False
    """Resume the run of this name from its last checkpoint."""
    quiet: bool = False
    """Print only warnings and the closing message."""
    track: ServiceName = "off"
    """Send metrics, media and settings to wandb (Weights & Biases) or mlflow."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    precision: Precision = "auto"
    """Precision of the networks' arithmetic. auto: the fastest in a short measurement at the start."""
    threads: Annotated[int, Range(0)] = 0
    """Number of CPU threads (0: one per core)."""


@dataclass(frozen=True, kw_only=True)
class NormalizationOptions:
    """Options of programs that train from pretrained weights."""

    published_normalization: bool | None = None
    """Normalize as published weights expect (None: if such a file is given). Published weights are a file of another
    program, such as torchvision: mean and standard deviation of ImageNet, or of the images that the backbone was
    published with. Otherwise images are normalized by the mean and standard deviation of the training images; a loss
    network of style transfer then gets pixels from 0 to 1."""
    published_mean: tuple[float, ...] = ()
    """Mean of each channel that published weights expect. Empty: that of a config.json of timm or a
    preprocessor_config.json of Transformers beside the weights, else that of the backbone's paper."""
    published_std: tuple[float, ...] = ()
    """Standard deviation of each channel that published weights expect."""


@dataclass(frozen=True, kw_only=True)
class BackgroundOptions:
    """Options of programs that train on image files."""

    CHOSEN_AT_START: ClassVar[Mapping[str, Any]] = {"background": "auto"}

    background: Background = "auto"
    """Color behind transparent pixels (auto: contrasting). It is one for all images of a run: black if more of them are
    nearly white than nearly black, else white."""


@dataclass(frozen=True, kw_only=True)
class DataParallelOptions(RunOptions):
    """Options of a run that several processes can train by averaging their gradients."""

    gradient_compression: GradientCompression = "none"
    """Compression of the gradients that several processes exchange. powersgd exchanges matrices of rank 2 (Vogels et
    al. 2019), after the first tenth of the run."""


@dataclass(frozen=True, kw_only=True)
class BatchNormOptions(DataParallelOptions):
    """Options of a run whose network may have BatchNorm layers."""

    sync_batch_norm: bool = False
    """BatchNorm over the images of all processes, on CUDA only. Otherwise each process normalizes by mean and variance
    of its own images."""
