"""Captioner: a convolutional backbone as encoder and an LSTM as decoder; and the metadata of its model file.

Vinyals et al. 2015, "Show and Tell: A Neural Image Caption Generator" (NIC), section 3. The embedding of the image is
the first input of the LSTM, and is used only once. The following inputs are the embeddings of the words; each output
predicts the next word.

Shapes: B, N images, H hidden units, F channels of the last feature map, P captions, T tokens of a caption, E dimension
of the embeddings, V tokens of the vocabulary, K partial captions of beam search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerokara.core.backbones.registry import make_backbone
from zerokara.core.choices import Background
from zerokara.core.compute import Compute
from zerokara.core.models.model_file import NormalizedMetadata
from zerokara.vision.captioning.beam_search import Hypothesis, beam_search
from zerokara.vision.captioning.vocabulary import END, PAD, START, UNKNOWN, Vocabulary

State = tuple[Tensor, Tensor]  # hidden state and cell state of the LSTM, (1, K, H) each


class Captioner(nn.Module):
    """Convolutional encoder and LSTM decoder.

    The attribute names of the layers are keys of saved weights: `see` embeds the image, `read` embeds words, and `say`
    maps the output of the LSTM to logits.
    """

    def __init__(self, metadata: CaptionerMetadata) -> None:
        super().__init__()
        self.metadata, self.vocabulary = metadata, Vocabulary(metadata.words)
        self.backbone = make_backbone(metadata.backbone, len(metadata.mean), metadata.image_size, **metadata.options)
        # Features of any scale are standardized, because the LSTM needs inputs of order 1.
        self.norm = nn.BatchNorm1d(self.backbone.out_channels, affine=False)
        self.see = nn.Linear(self.backbone.out_channels, metadata.embedding)
        self.read = nn.Embedding(len(metadata.words), metadata.embedding, padding_idx=PAD)
        self.lstm = nn.LSTM(metadata.embedding, metadata.hidden, batch_first=True)
        self.dropout = nn.Dropout(metadata.dropout)
        self.say = nn.Linear(metadata.hidden, len(metadata.words))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the spatial mean (B, F) of the last feature map of normalized images, float32."""
        last: Tensor = self.backbone(x_BCHW)
        return last.float().mean((2, 3))

    def forward(self, features_PF: Tensor, tokens_PT: Tensor) -> Tensor:
        """Return the logits (P, T, V) of the token after each of `tokens_PT`, which begin with START."""
        image_P1E = self.see(self.norm(features_PF))[:, None]
        inputs = self.dropout(torch.cat([image_P1E, self.read(tokens_PT)], 1))
        out, _ = self.lstm(inputs)
        logits_PTV: Tensor = self.say(self.dropout(out[:, 1:]))  # the output after the image alone is not used
        return logits_PTV

    @torch.no_grad()
    def caption(
        self, features_1F: Tensor, *, beam_size: int, max_length: int, length_penalty: float
    ) -> list[Hypothesis]:
        """Generate captions of one image by beam search, the best first. Requires evaluation mode."""
        device = features_1F.device
        _, state = self.lstm(self.see(self.norm(features_1F))[:, None])

        def advance(state: State, parent_K: Tensor, token_K: Tensor) -> tuple[Tensor, State]:
            parent_K, token_K = parent_K.to(device), token_K.to(device)
            state = (state[0][:, parent_K].contiguous(), state[1][:, parent_K].contiguous())
            out, state = self.lstm(self.read(token_K)[:, None], state)
            return F.log_softmax(self.say(out[:, 0]), 1), state

        first_1V, state = advance(state, torch.zeros(1, dtype=torch.int64), torch.tensor([START]))
        return beam_search(
            first_1V,
            state,
            advance,
            beam_size=beam_size,
            max_length=max_length,
            end=END,
            length_penalty=length_penalty,
            forbidden=(PAD, START, UNKNOWN),
        )


@dataclass(frozen=True, kw_only=True)
class CaptionerMetadata(NormalizedMetadata[Captioner]):
    """Metadata of a captioner's model file: everything needed to build the network and to prepare its inputs."""

    FORMAT = "zerokara-captioner-1"
    NETWORK = "captioner"
    PROGRAM = "vision.caption"

    backbone: str
    words: tuple[str, ...]  # of the vocabulary, special tokens included
    image_size: int  # height and width in pixels
    embedding: int  # dimension of the embeddings
    hidden: int  # hidden units of the LSTM
    dropout: float
    options: Mapping[str, Any] = field(default_factory=dict)  # of the backbone
    beams: int = 1  # beam size
    longest: int = 20  # maximum number of words in a caption
    length_power: float = 0.0  # length penalty of beam search
    background: Background = "auto"  # color behind transparent pixels of the training images

    def build(self) -> Captioner:
        """Build the network with random weights."""
        return Captioner(self)


def caption_loss(logits_PTV: Tensor, target_PT: Tensor) -> Tensor:
    """Mean negative log probability of the target tokens (scalar); END counts, PAD does not. Equation 9."""
    return F.cross_entropy(logits_PTV.flatten(0, 1), target_PT.flatten(), ignore_index=PAD)


@torch.no_grad()
def extract_features(captioner: Captioner, compute: Compute, images_NCHW: Tensor, batch_size: int = 64) -> Tensor:
    """Compute the features (N, F) of uint8 images in evaluation mode.

    Args:
        images_NCHW: on any device.

    Returns:
        The features, on the device of `compute`.
    """
    training = captioner.training
    captioner.eval()
    features = []
    for images in images_NCHW.split(batch_size):
        x_BCHW = compute.layout(captioner.metadata.normalize_uint8(images.to(compute.torch_device)))
        with compute.autocast():
            features.append(captioner.features(x_BCHW))
    captioner.train(training)
    return torch.cat(features)


def generate_captions(captioner: Captioner, features_NF: Tensor) -> list[str]:
    """Generate the best caption of each image from its features, with the beam search settings of the metadata."""
    metadata, training = captioner.metadata, captioner.training
    captioner.eval()
    hypotheses = [
        captioner.caption(
            features_1F,
            beam_size=metadata.beams,
            max_length=metadata.longest,
            length_penalty=metadata.length_power,
        )
        for features_1F in features_NF.split(1)
    ]
    captioner.train(training)
    return [captioner.vocabulary.decode(of_image[0].tokens) for of_image in hypotheses]
