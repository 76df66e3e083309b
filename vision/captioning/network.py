"""NIC: an eye, and an LSTM that puts into words what it sees; and the file in which both are kept.

Vinyals et al. 2015, "Show and Tell: A Neural Image Caption Generator", section 3: the image is the first thing that the
LSTM is shown, once, as if it were a word; then it is given each word and tells the next.

Shapes: B images, F channels of the eye's last map, P sentences, T words of a sentence, E numbers of an embedding,
V words of the vocabulary, K beginnings of a sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.compute import Compute
from zerokara.core.config import UserError
from zerokara.core.models import model_file
from zerokara.vision.captioning.beam_search import Sentence, beam_search
from zerokara.vision.captioning.vocabulary import END, PAD, START, UNKNOWN, Vocabulary

FORMAT = "zerokara-captioner-1"
MODEL_FILE = "model.safetensors"
State = tuple[Tensor, Tensor]  # of the LSTM: (1, K, H) each


@dataclass(frozen=True, kw_only=True)
class CaptionerMetadata:
    """What a file of weights is: enough to build its network, and to feed it."""

    backbone: str
    words: tuple[str, ...]
    image_size: int  # side in pixels
    mean: tuple[float, ...]  # of each channel, in pixels of 0 to 1
    std: tuple[float, ...]
    embedding: int
    hidden: int
    dropout: float
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone
    beams: int = 1
    longest: int = 20  # words
    length_power: float = 0.0
    data: str = ""
    command: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def build(self) -> Captioner:
        """The network without its weights."""
        return Captioner(self)

    def normalize(self, images_BCHW: Tensor) -> Tensor:
        """Images scaled to [0, 1] as the eye expects them."""
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(x, device=images_BCHW.device).view(shape) for x in (self.mean, self.std))
        return (images_BCHW - mean) / std


class Captioner(nn.Module):
    """An eye and a tongue."""

    def __init__(self, metadata: CaptionerMetadata) -> None:
        super().__init__()
        self.metadata, self.vocabulary = metadata, Vocabulary(metadata.words)
        self.backbone = make_backbone(metadata.backbone, len(metadata.mean), metadata.image_size, **metadata.options)
        # Whatever scale the eye's channels have, the LSTM is shown numbers about 1.
        self.norm = nn.BatchNorm1d(self.backbone.out_channels, affine=False)
        self.see = nn.Linear(self.backbone.out_channels, metadata.embedding)
        self.read = nn.Embedding(len(metadata.words), metadata.embedding, padding_idx=PAD)
        self.lstm = nn.LSTM(metadata.embedding, metadata.hidden, batch_first=True)
        self.dropout = nn.Dropout(metadata.dropout)
        self.say = nn.Linear(metadata.hidden, len(metadata.words))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """What the eye sees of normalised images: the mean over its last map (B, F), float32."""
        last: Tensor = self.backbone(x_BCHW)
        return last.float().mean((2, 3))

    def forward(self, features_PF: Tensor, words_PT: Tensor) -> Tensor:
        """Logits (P, T, V) of the word after each of `words_PT`, the first of which is START, padded with PAD."""
        image_P1E = self.see(self.norm(features_PF))[:, None]
        shown = self.dropout(torch.cat([image_P1E, self.read(words_PT)], 1))
        out, _ = self.lstm(shown)
        logits_PTV: Tensor = self.say(self.dropout(out[:, 1:]))  # what it says to the image alone is not asked for
        return logits_PTV

    @torch.no_grad()
    def caption(self, features_1F: Tensor, *, beams: int, longest: int, length_power: float) -> list[Sentence]:
        """Sentences about one image, the best first, in evaluation mode."""
        device = features_1F.device
        _, state = self.lstm(self.see(self.norm(features_1F))[:, None])

        def advance(state: State, parent_K: Tensor, word_K: Tensor) -> tuple[Tensor, State]:
            parent_K, word_K = parent_K.to(device), word_K.to(device)
            state = (state[0][:, parent_K].contiguous(), state[1][:, parent_K].contiguous())
            out, state = self.lstm(self.read(word_K)[:, None], state)
            return F.log_softmax(self.say(out[:, 0]), 1), state

        first_1V, state = advance(state, torch.zeros(1, dtype=torch.int64), torch.tensor([START]))
        return beam_search(
            first_1V,
            state,
            advance,
            beams=beams,
            longest=longest,
            end=END,
            length_power=length_power,
            forbidden=(PAD, START, UNKNOWN),
        )


def caption_loss(logits_PTV: Tensor, next_PT: Tensor) -> Tensor:
    """Mean negative log probability of the words that came, END among them and PAD not (scalar); equation 9."""
    return F.cross_entropy(logits_PTV.flatten(0, 1), next_PT.flatten(), ignore_index=PAD)


@torch.no_grad()
def look(captioner: Captioner, compute: Compute, images_NCHW: Tensor, batch_size: int = 64) -> Tensor:
    """The features (N, F) of uint8 images on any device, in evaluation mode; on the device of `compute`."""
    mode = captioner.training
    captioner.eval()
    seen = []
    for images in images_NCHW.split(batch_size):
        pixels = images.to(compute.torch_device).float() * (1 / 255)
        with compute.autocast():
            seen.append(captioner.features(compute.layout(captioner.metadata.normalize(pixels))))
    captioner.train(mode)
    return torch.cat(seen)


def generate_captions(captioner: Captioner, features_NF: Tensor) -> list[str]:
    """The best sentence about every image, by its features, as its card says that one is searched."""
    metadata, mode = captioner.metadata, captioner.training
    captioner.eval()
    found = [
        captioner.caption(
            features_1F, beams=metadata.beams, longest=metadata.longest, length_power=metadata.length_power
        )
        for features_1F in features_NF.split(1)
    ]
    captioner.train(mode)
    return [captioner.vocabulary.decode(sentences[0].words) for sentences in found]


def save(path: Path, captioner: Captioner, metadata: CaptionerMetadata) -> None:
    """Write weights and card as one whole file.

    Raises:
        UserError: the disk is full or refuses; the old file is as it was.
    """
    model_file.write(path, captioner.state_dict(), dataclasses.asdict(metadata), FORMAT)


def load(word: str) -> Captioner:
    """The captioner of a run's folder or of its file, in evaluation mode, float32 on the CPU.

    Raises:
        UserError: none there, a damaged one, or one of something else.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise UserError(
                f"{path} has no {MODEL_FILE}: give the folder of a run of vision.caption that ended an epoch."
            )
        path /= MODEL_FILE
    fields, weights = model_file.read(path, FORMAT, "captioner")
    metadata = model_file.parse_metadata(CaptionerMetadata, fields, path)
    return model_file.fill(metadata.build(), weights, path)
