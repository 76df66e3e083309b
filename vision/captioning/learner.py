"""What learns to put photographs into words: the sentences as numbers, the network with its optimiser, one update.

Shapes: N photographs, B batch, C colours, F features, P sentences (all those of a batch), T words.
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
from zerokara.core.programs import command
from zerokara.vision.captioning.config import Config, Data, Start
from zerokara.vision.captioning.network import Captioner, CaptionerMetadata, caption_loss, generate_captions, look
from zerokara.vision.captioning.vocabulary import PAD, Vocabulary
from zerokara.vision.training.epochs import EpochTraining

AUGMENT = Augment(shift=0.06, scale=0.08, flip=True, brightness=0.1, contrast=0.1)  # where the eye learns along
CHUNK = 64  # photographs whose validation loss is taken at once


class Sentences:
    """All sentences about some photographs as numbers."""

    def __init__(self, captions: Sequence[Sequence[str]], vocabulary: Vocabulary, longest: int) -> None:
        rows = [vocabulary.encode(sentence, longest) for sentences in captions for sentence in sentences]
        counts = torch.tensor([len(sentences) for sentences in captions])
        self.first_N = counts.cumsum(0) - counts
        self.count_N = counts
        self.words_PT = torch.full((len(rows), longest + 2), PAD, dtype=torch.int64)
        for place, row in enumerate(rows):
            self.words_PT[place, : len(row)] = torch.tensor(row)

    def of(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """All sentences (P, T) of photographs, cut to the longest of them, and which of the B each is about (P,)."""
        counts = self.count_N[index_B]
        which_P = torch.repeat_interleave(torch.arange(len(index_B)), counts)
        within_P = torch.arange(len(which_P)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        words_PT = self.words_PT[self.first_N[index_B][which_P] + within_P]
        return words_PT[:, : int((words_PT != PAD).sum(1).max())], which_P


class Training(EpochTraining[Captioner]):
    """Everything that a checkpoint holds, and one update over it."""

    config: Config
    data: Data

    def __init__(self, config: Config, data: Data, compute: Compute, world: World) -> None:
        """The network with the weights that it begins with.

        Raises:
            UserError: a backbone that does not exist or fit; weights that do not fit.
        """
        start = Start.of(config, data.train)
        self.metadata = make_metadata(config, data, start)
        self.report = "random weights"  # of the eye

        def build() -> Captioner:
            captioner = Captioner(self.metadata)
            if start.fill is not None:
                self.report = str(start.fill(captioner.backbone))
            return captioner

        super().__init__(config, data, compute, world, build, ("train/loss", "train/grad_norm"))
        self.learns_eye = start.fill is None if config.learn_eye is None else config.learn_eye
        self.network.backbone.requires_grad_(self.learns_eye)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.learning_rate, fused=True)
        self.sentences = Sentences(data.train.captions, self.network.vocabulary, config.longest)
        self.images = data.train.images.to(compute.torch_device)
        self._seen: Tensor | None = None  # an eye that does not learn sees the same every time: once is enough

    def _groups(self) -> list[dict[str, Any]]:
        config, eye = self.config, set(self.network.backbone.parameters())
        groups = []
        for of_eye, factor in ((False, 1.0), (True, config.eye_learning_rate / config.learning_rate)):
            mine = [p for p in self.network.parameters() if (p in eye) == of_eye and p.requires_grad]
            for decays in (True, False):
                chosen = [p for p in mine if (p.ndim >= 2) == decays]
                decay = config.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr_factor": factor, "weight_decay": decay})
        return [group for group in groups if group["params"]]

    @property
    def learning_rate(self) -> float:
        """The step size of the next update, for the words."""
        warmed = schedules.warmup_cosine(self.updates + 1, self.updates_per_epoch, self.total_updates)
        return self.config.learning_rate * warmed

    def format_metric(self, figure: float) -> str:
        """The loss of a validation where that is what selects, else its BLEU-4."""
        return f"loss {figure:.3f}" if self.config.select == "loss" else f"BLEU-4 {figure:.2f}"

    def update(self, index_B: Tensor) -> None:
        """One step on all that was said of the photographs `index_B`, of which this process takes its share."""
        self.set_learning_rates()
        index_b = index_B[self.world.rank :: self.world.size]
        self.network.train()
        if not self.learns_eye:
            self.network.backbone.eval()  # its BatchNorm must not move either
        loss = self.loss(self.batch(index_b), self.sentences, index_b)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        learning = [p for p in self.network.parameters() if p.requires_grad]
        self.world.mean_gradients(learning)
        norm = nn.utils.clip_grad_norm_(learning, self.config.max_grad_norm)
        self.optimizer.step()
        self._sums += torch.stack([loss.detach(), norm.detach(), torch.ones_like(loss)])
        self.updates += 1

    def batch(self, index_b: Tensor) -> Tensor:
        """The features (b, F) of training photographs, augmented where the eye learns."""
        index_b = index_b.to(self.compute.torch_device)
        if not self.learns_eye:
            if self._seen is None:
                self._seen = look(self.network, self.compute, self.images)
            return self._seen[index_b]
        pixels = AUGMENT(self.images[index_b].float() * (1 / 255), self.generator, index_B=index_b, epoch=self.epoch)
        with self.compute.autocast():
            return self.network.features(self.compute.layout(self.metadata.normalize(pixels.clamp(0, 1))))

    def loss(self, features_bF: Tensor, sentences: Sentences, index_b: Tensor) -> Tensor:
        """Of all that was said of photographs (scalar)."""
        words_PT, which_P = (x.to(features_bF.device) for x in sentences.of(index_b))
        return caption_loss(self.network(features_bF[which_P], words_PT[:, :-1]), words_PT[:, 1:])

    @torch.no_grad()
    def validation_loss(self, features_NF: Tensor, sentences: Sentences) -> float:
        """The loss of photographs that are not learnt from, in evaluation mode."""
        self.network.eval()
        total = words = 0.0
        for index_b in torch.arange(len(features_NF)).split(CHUNK):
            number = float((sentences.of(index_b)[0][:, 1:] != PAD).sum())
            total += float(self.loss(features_NF[index_b.to(features_NF.device)], sentences, index_b)) * number
            words += number
        return total / words

    def describe(self, photographs: CaptionSet) -> tuple[list[str], Tensor]:
        """The best sentence about each photograph, and its features (N, F)."""
        features_NF = look(self.network, self.compute, photographs.images)
        return generate_captions(self.network, features_NF), features_NF


def make_metadata(config: Config, data: Data, start: Start) -> CaptionerMetadata:
    """What describes the network that a config asks for, its vocabulary made of the training photographs alone."""
    sentences = (sentence for said in data.train.captions for sentence in said)
    copied = ("image_size", "embedding", "hidden", "dropout", "beams", "longest", "length_power")
    return CaptionerMetadata(
        backbone=start.backbone,
        options=dict(start.options),
        words=Vocabulary.of(sentences, config.at_least).words,
        mean=start.mean,
        std=start.std,
        data=data.train.source,
        command=command(),
        **{name: getattr(config, name) for name in copied},
    )
