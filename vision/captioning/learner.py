"""Training of a captioner: encoded captions, the network with its optimizer, and the update.

Shapes: N images, B batch, b the part of it on this process, C channels, F features, P captions (all captions of the
images in a batch), T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zerokara.core import schedules
from zerokara.core.augment import Augment
from zerokara.core.compute import Compute
from zerokara.core.data.captions import CaptionSet
from zerokara.core.distributed import World
from zerokara.core.eager_optim import AdamW
from zerokara.core.programs import command
from zerokara.core.run import Run
from zerokara.core.sharding import evaluate_shards
from zerokara.vision.captioning.config import Config
from zerokara.vision.captioning.inputs import BackboneSource, Data
from zerokara.vision.captioning.network import (
    Captioner,
    CaptionerMetadata,
    caption_loss,
    extract_features,
    generate_captions,
)
from zerokara.vision.captioning.vocabulary import PAD, Vocabulary
from zerokara.vision.training.epochs import EpochTraining

AUGMENT = Augment(shift=0.06, scale=0.08, flip=True, brightness=0.1, contrast=0.1)  # used if the backbone is trained
LOSS_BATCH = 64  # batch size in images for the validation loss


class EncodedCaptions:
    """All captions of a set of images as token indices."""

    def __init__(self, captions: Sequence[Sequence[str]], vocabulary: Vocabulary, max_length: int) -> None:
        rows = [vocabulary.encode(caption, max_length) for of_image in captions for caption in of_image]
        counts = torch.tensor([len(of_image) for of_image in captions])
        self.first_N = counts.cumsum(0) - counts
        self.count_N = counts
        self.tokens_PT = torch.full((len(rows), max_length + 2), PAD, dtype=torch.int64)
        for index, row in enumerate(rows):
            self.tokens_PT[index, : len(row)] = torch.tensor(row)

    def batch(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return all captions of a batch of images.

        Returns:
            Token indices (P, T), where T is the length of the longest of these captions, and for each caption (P,) the
            position of its image in the batch.
        """
        counts = self.count_N[index_B]
        image_P = torch.repeat_interleave(torch.arange(len(index_B)), counts)
        within_P = torch.arange(len(image_P)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        tokens_PT = self.tokens_PT[self.first_N[index_B][image_P] + within_P]
        return tokens_PT[:, : int((tokens_PT != PAD).sum(1).max())], image_P

    def num_tokens(self, index_B: Tensor) -> int:
        """Return the number of tokens that the captions of these images have, as targets."""
        return int((self.batch(index_B)[0][:, 1:] != PAD).sum())


class Training(EpochTraining[Captioner]):
    """Training state of a captioner and its update."""

    config: Config
    data: Data

    def __init__(self, config: Config, data: Data, compute: Compute, world: World) -> None:
        """Build the network with random weights.

        Raises:
            UserError: the backbone does not exist or does not fit the image size; else as `BackboneSource.from_config`.
        """
        self.metadata = make_metadata(config, data, BackboneSource.from_config(config, data.train))
        names = ("train/loss", "train/grad_norm")
        super().__init__(config, data, compute, world, lambda: Captioner(self.metadata), names)
        self.network.backbone.requires_grad_(config.trains_backbone)
        self.optimizer = AdamW(self._parameter_groups(), lr=config.learning_rate, fused=True)
        self.captions = EncodedCaptions(data.train.captions, self.network.vocabulary, config.max_length)
        self.images = data.train.images.to(compute.torch_device)
        self._frozen_features: Tensor | None = None  # features of all training images, if the backbone is frozen

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters of decoder and backbone, each with and without weight decay."""
        config, backbone = self.config, set(self.network.backbone.parameters())
        groups = []
        for in_backbone, factor in ((False, 1.0), (True, config.backbone_learning_rate / config.learning_rate)):
            part = [p for p in self.network.parameters() if (p in backbone) == in_backbone and p.requires_grad]
            for decays in (True, False):
                parameters = [p for p in part if (p.ndim >= 2) == decays]
                decay = config.weight_decay if decays else 0.0
                groups.append({"params": parameters, "lr_factor": factor, "weight_decay": decay})
        return [group for group in groups if group["params"]]

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update, for the decoder."""
        factor = schedules.warmup_cosine(self.updates + 1, self.updates_per_epoch, self.total_updates)
        return self.config.learning_rate * factor

    def format_metric(self, metric: float) -> str:
        """Format a validation metric: the loss if it selects the weights, else BLEU-4."""
        return f"loss {metric:.3f}" if self.config.select == "loss" else f"BLEU-4 {metric:.2f}"

    def update(self, index_B: Tensor) -> None:
        """Do one gradient step on all captions of a batch of images; each process uses its shard of the images."""
        self.set_learning_rates()
        index_b = index_B[self.world.rank :: self.world.size]
        self.network.train()
        if not self.config.trains_backbone:
            self.network.backbone.eval()  # the BatchNorm statistics of a frozen backbone must not change either
        loss = self.parallel.forward(self._forward, index_b)
        self.optimizer.zero_grad(set_to_none=True)
        # The mean over the tokens of this process, weighted: its mean over the processes is that over all tokens.
        loss = loss * (self.captions.num_tokens(index_b) * self.world.size / self.captions.num_tokens(index_B))
        self.parallel.backward(loss)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, self.config.max_grad_norm)
        self.optimizer.step()
        self.end_update(loss, norm)

    def _forward(self, index_b: Tensor) -> Tensor:
        """Compute the mean loss (scalar) over the tokens of all captions of training images."""
        return self.loss(self.batch_features(index_b), self.captions, index_b)

    def batch_features(self, index_b: Tensor) -> Tensor:
        """Return the features (b, F) of training images. Images are augmented if the backbone is trained."""
        index_b = index_b.to(self.compute.torch_device)
        if not self.config.trains_backbone:
            if self._frozen_features is None:
                self._frozen_features = extract_features(self.network, self.compute, self.images)
            return self._frozen_features[index_b]
        pixels = AUGMENT(self.images[index_b].float() * (1 / 255), self.generator, index_B=index_b, epoch=self.epoch)
        with self.compute.autocast():
            return self.network.features(self.compute.layout(self.metadata.normalize(pixels.clamp(0, 1))))

    def loss(self, features_bF: Tensor, captions: EncodedCaptions, index_b: Tensor) -> Tensor:
        """Compute the mean loss (scalar) over the tokens of all captions of images."""
        tokens_PT, image_P = (x.to(features_bF.device) for x in captions.batch(index_b))
        return caption_loss(self.network(features_bF[image_P], tokens_PT[:, :-1]), tokens_PT[:, 1:])

    def generate_in_processes(self, run: Run, images: CaptionSet) -> tuple[list[str], Tensor]:
        """Generate the best caption of each image by the main process's network, each process those of its shard.

        Returns:
            The captions, and the features (N, F) on the CPU.

        Raises:
            Stopped: a signal interrupted the evaluation in one of the processes.
        """

        def generate(shard: slice) -> tuple[list[str], Tensor]:
            features_nF = extract_features(self.network, self.compute, images.images[shard])
            return generate_captions(self.network, features_nF), self.compute.to_host(features_nF)

        self.world.broadcast(self.network)
        parts = evaluate_shards(self.world, run, len(images), generate)
        return [caption for captions, _ in parts for caption in captions], torch.cat(
            [features for _, features in parts]
        )

    def features_in_processes(self, run: Run, images_NCHW: Tensor) -> Tensor:
        """Extract the features (N, F) of images, each process those of its shard. Returns them on the CPU."""

        def extract(shard: slice) -> Tensor:
            return self.compute.to_host(extract_features(self.network, self.compute, images_NCHW[shard]))

        return torch.cat(evaluate_shards(self.world, run, len(images_NCHW), extract))

    def validation_loss(self, run: Run, features_NF: Tensor, images: CaptionSet) -> float:
        """Compute the mean loss over the tokens of all captions of images, each process those of its shard."""

        @torch.no_grad()
        def evaluate(shard: slice) -> tuple[float, float]:
            captions = EncodedCaptions(images.captions[shard], self.network.vocabulary, self.config.max_length)
            features_nF = features_NF[shard].to(self.compute.torch_device)
            self.network.eval()
            total = num_tokens = 0.0
            for index_b in torch.arange(len(features_nF)).split(LOSS_BATCH):
                number = float(captions.num_tokens(index_b))
                total += float(self.loss(features_nF[index_b.to(features_nF.device)], captions, index_b)) * number
                num_tokens += number
            return total, num_tokens

        parts = evaluate_shards(self.world, run, len(images), evaluate)
        return sum(total for total, _ in parts) / sum(number for _, number in parts)


def make_metadata(config: Config, data: Data, source: BackboneSource) -> CaptionerMetadata:
    """Return the metadata of a new network. Its vocabulary is built from the training captions only."""
    captions = (caption for of_image in data.train.captions for caption in of_image)
    return CaptionerMetadata(
        backbone=source.backbone,
        options=dict(source.options),
        words=Vocabulary.from_captions(captions, config.min_word_count).words,
        image_size=config.image_size,
        mean=source.mean,
        std=source.std,
        embedding=config.embedding_dim,
        hidden=config.hidden_units,
        dropout=config.dropout,
        beams=config.beam_size,
        longest=config.max_length,
        length_power=config.length_penalty,
        background=config.background,
        data=data.train.source,
        command=command(),
    )
