"""Q-network: a convolutional backbone, one or two fully connected streams (dueling), and a head.

Shapes: B batch, C channels, H, W pixels, F features, A actions, X outputs per action (agents/qlearning/heads.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zerokara.agents.configs import dqn, pqn, stream
from zerokara.agents.qlearning.heads import HEADS, ScalarHead
from zerokara.agents.qlearning.normalization import InputNormalization
from zerokara.agents.qlearning.spr import SelfPrediction
from zerokara.core.backbones.registry import BackboneName, is_custom, make_backbone, option_names
from zerokara.core.layers import NoisyLinear, SampleNorm, sparse_init_

WeightInit = Literal["he", "torch", "xavier"]


class QNetwork(nn.Module):
    """Network that maps images to the Q-values of all actions.

    Args:
        obs_shape: (C, H, W).
        num_actions: A.
        backbone: name in `core.backbones`, or a network of one's own as in `core.backbones.registry`.
        width: factor on the number of channels of the backbone; 1 if a network of one's own has no such option.
        hidden_units: units of the hidden layer, in each stream if dueling.
        dueling: separate streams for value and advantages (Wang et al. 2016, "Dueling Network Architectures", equation
            9).
        layer_norm: LayerNorm on the hidden layer before its ReLU (Ba et al. 2016; in Q-learning Gallici et al. 2024).
        backbone_gradient_scale: factor on the gradient from the streams into the backbone (Wang et al. 2016, section
            4.2: 1 / sqrt(2) for two streams).
        noisy_sigma_init: initial noise scale of noisy linear layers (Fortunato et al. 2018); None: linear layers
            without noise.
        head: function that creates the head from the number of features; None: a scalar Q-value per action.
        weight_init: he: He initialization of the hidden layer, outputs near 0; torch: weights and biases uniform within
            1 / sqrt(inputs), as in Torch7 and in PyTorch's layers; xavier: Xavier uniform weights and biases of 0 in
            all layers, except in a network of one's own. Noisy layers are initialized as in their paper.
        backbone_options: further keyword arguments of the backbone.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        *,
        backbone: BackboneName,
        width: float,
        hidden_units: int,
        dueling: bool,
        layer_norm: bool,
        backbone_gradient_scale: float = 1.0,
        noisy_sigma_init: float | None = None,
        head: Callable[[int], ScalarHead] | None = None,
        weight_init: WeightInit = "he",
        backbone_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.backbone_gradient_scale = backbone_gradient_scale
        options = dict(backbone_options or {})
        # True if train() and eval() differ: in eval mode noise is disabled and spectral norm does no power iteration.
        # A network of one's own may have BatchNorm or dropout.
        self.has_custom_backbone = is_custom(backbone)
        self.has_train_mode = (
            noisy_sigma_init is not None or bool(options.get("spectral_norm")) or self.has_custom_backbone
        )
        if width != 1.0 or "width" in option_names(backbone):
            options["width"] = width
        self.backbone = make_backbone(backbone, obs_shape[0], obs_shape[1:], **options)
        features = self.backbone.features
        self.head = ScalarHead() if head is None else head(features)
        outputs = self.head.outputs
        stream = functools.partial(
            _stream,
            features,
            hidden_units,
            layer_norm=layer_norm,
            noisy_sigma_init=noisy_sigma_init,
            init=weight_init,
            make_activation=self.backbone.hidden_activation,
        )
        self.advantage = stream(outputs * num_actions)
        self.value = stream(outputs) if dueling else None
        self.spr: SelfPrediction | None = None  # used in updates only
        if weight_init == "xavier":
            for name, module in self.named_children():
                if name != "backbone" or not self.has_custom_backbone:
                    _init_xavier(module)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Q-values (B, A) in float32 from images in [0, 1]."""
        return self.values(self.features(x_BCHW))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, F) of the backbone."""
        features_BF: Tensor = self.backbone(x_BCHW).flatten(1)
        if self.backbone_gradient_scale == 1:
            return features_BF
        return torch.lerp(features_BF.detach(), features_BF, self.backbone_gradient_scale)

    def values(self, features_BF: Tensor) -> Tensor:
        """Q-values (B, A) in float32 from features."""
        return self.head.values(self.outputs(features_BF))

    def outputs(self, features_BF: Tensor, tau_BT: Tensor | None = None) -> Tensor:
        """Outputs (B, X, A) of the streams in float32, which the head interprets.

        Args:
            features_BF: features of the backbone.
            tau_BT: quantile fractions for an implicit quantile head; None: evenly spaced fractions.
        """
        x = self.head.embed(features_BF, tau_BT)
        z_BXA: Tensor = self.advantage(x).view(features_BF.shape[0], -1, self.num_actions)
        if self.value is not None:
            z_BXA = z_BXA - z_BXA.mean(dim=2, keepdim=True) + self.value(x).view(features_BF.shape[0], -1, 1)
        return z_BXA.float()


def _stream(
    features: int,
    hidden_units: int,
    outputs: int,
    *,
    layer_norm: bool,
    noisy_sigma_init: float | None,
    init: WeightInit,
    make_activation: Callable[[], nn.Module],
) -> nn.Sequential:
    """Hidden layer and output layer.

    With he, initial outputs are near zero, so that no action is preferred at the start.
    """
    norm = nn.LayerNorm(hidden_units) if layer_norm else nn.Identity()
    if noisy_sigma_init is not None:
        layers = (
            NoisyLinear(features, hidden_units, noisy_sigma_init),
            NoisyLinear(hidden_units, outputs, noisy_sigma_init),
        )
        return nn.Sequential(layers[0], norm, make_activation(), layers[1])
    hidden, out = nn.Linear(features, hidden_units), nn.Linear(hidden_units, outputs)
    if init == "he":
        nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
        nn.init.zeros_(hidden.bias)
        nn.init.normal_(out.weight, std=0.1 / math.sqrt(hidden_units))
        nn.init.zeros_(out.bias)
    return nn.Sequential(hidden, norm, make_activation(), out)


def _init_xavier(module: nn.Module) -> None:
    """Initialize convolutions and linear layers: Xavier uniform weights (Glorot and Bengio 2010), biases of 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            normalized = parametrize.is_parametrized(layer, "weight")  # by spectral normalization
            name = "parametrizations.weight.original" if normalized else "weight"
            nn.init.xavier_uniform_(layer.get_parameter(name))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def make_network(config: dqn.Config, obs_shape: tuple[int, int, int], num_actions: int) -> QNetwork:
    """Create the Q-network of a DQN config."""
    padding = {"same_padding": config.same_padding}
    options: dict[str, dict[str, Any]] = {
        **dict.fromkeys(("nature", "nips", "der"), padding),
        "impala": {"spectral_norm": config.spectral_norm, "pool": config.pool, "pool_size": config.pool_size},
        "dcgan": {"norm": "none"},  # BatchNorm would make Q-values depend on the other observations in the batch
    }
    network = QNetwork(
        obs_shape,
        num_actions,
        backbone=config.backbone,
        width=config.width_multiplier,
        hidden_units=config.hidden_units,
        dueling=config.dueling,
        layer_norm=config.layer_norm,
        backbone_gradient_scale=config.backbone_gradient_scale,
        noisy_sigma_init=config.noisy_sigma_init if config.noisy else None,
        head=functools.partial(HEADS[config.head], config),
        weight_init=config.weight_init,
        backbone_options=options.get(config.backbone),
    )
    if config.spr_weight:
        map_shape = (network.backbone.out_channels, *network.backbone.out_size)
        network.spr = SelfPrediction(map_shape, num_actions, config.hidden_units * (1 + config.dueling))
    return network


NetworkT = TypeVar("NetworkT", bound=QNetwork)


def _plain_network(
    make: type[NetworkT], config: pqn.Config | stream.Config, obs_shape: tuple[int, int, int], num_actions: int
) -> NetworkT:
    """Create a Q-network without dueling streams. The backbone gets `layer_norm`, too, if it has this option."""
    has_layer_norm = "layer_norm" in option_names(config.backbone)
    return make(
        obs_shape,
        num_actions,
        backbone=config.backbone,
        width=config.width_multiplier,
        hidden_units=config.hidden_units,
        dueling=False,
        layer_norm=config.layer_norm,
        backbone_options={"layer_norm": config.layer_norm} if has_layer_norm else None,
    )


class RecurrentNetwork(QNetwork):
    """Q-network with an LSTM between the hidden layer and the outputs (Hausknecht and Stone 2015).

        h_t, c_t = LSTM(x_t, (1 - first_t) h_t-1, (1 - first_t) c_t-1)
        Q(s_t, .) = W h_t + b

    x_t is the output of the hidden layer, first_t is 1 at the first observation of an episode. The LSTM computes in
    float32. Its state is a tensor (2, B, U) of h and c, U units; zeros before the first observation. `forward` takes
    each observation for the first one of an episode.

    Call `add_lstm` once after the construction.
    """

    lstm: nn.LSTMCell

    def add_lstm(self, units: int) -> None:
        """Add the LSTM, with orthogonal weights as in CleanRL, and outputs for its units; biases are 0."""
        self.lstm = nn.LSTMCell(self._out.in_features, units)
        for parameter in self.lstm.parameters():
            nn.init.orthogonal_(parameter) if parameter.ndim == 2 else nn.init.zeros_(parameter)
        self.advantage[-1] = nn.Linear(units, self._out.out_features)
        nn.init.zeros_(self._out.bias)

    @property
    def _out(self) -> nn.Linear:
        """Output layer."""
        return cast(nn.Linear, self.advantage[-1])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Q-values (B, A) of images that are the first ones of their episodes."""
        state_2BU = torch.zeros(2, len(x_BCHW), self.lstm.hidden_size, device=x_BCHW.device)
        return self.values_and_state(x_BCHW, state_2BU)[0]

    def values_and_state(self, x_BCHW: Tensor, state_2BU: Tensor) -> tuple[Tensor, Tensor]:
        """Q-values (B, A) of images, and the state after them, from the state before them."""
        state_2BU = self._next_state(self._lstm_inputs(x_BCHW), state_2BU)
        return self._from_lstm(state_2BU[0]), state_2BU

    def unroll(self, x_BCHW: Tensor, first_TN: Tensor, state_2NU: Tensor) -> Tensor:
        """Q-values (B, A) of sequences, B = T * N images with the step as the slower index.

        Args:
            x_BCHW: images.
            first_TN: 1 if the image is the first one of an episode.
            state_2NU: state before the first images.
        """
        inputs_TNF = self._lstm_inputs(x_BCHW).unflatten(0, first_TN.shape)
        return self._from_lstm(self._recurrence(inputs_TNF, first_TN, state_2NU).flatten(0, 1))

    def _recurrence(self, inputs_TNF: Tensor, first_TN: Tensor, state_2NU: Tensor) -> Tensor:
        """Return h (T, N, U) of all steps."""
        h_TNU = []
        for inputs_NF, first_N in zip(inputs_TNF, first_TN, strict=True):
            state_2NU = self._next_state(inputs_NF, state_2NU * (1 - first_N)[:, None])
            h_TNU.append(state_2NU[0])
        return torch.stack(h_TNU)

    def _lstm_inputs(self, x_BCHW: Tensor) -> Tensor:
        """Outputs (B, F) of the hidden layer."""
        features: Tensor = self.features(x_BCHW)
        for layer in list(self.advantage)[:-1]:
            features = layer(features)
        return features

    def _next_state(self, inputs_BF: Tensor, state_2BU: Tensor) -> Tensor:
        with torch.autocast(inputs_BF.device.type, enabled=False):
            return torch.stack(self.lstm(inputs_BF.float(), (state_2BU[0], state_2BU[1])))

    def _from_lstm(self, h_BU: Tensor) -> Tensor:
        """Q-values (B, A) in float32."""
        q_BA: Tensor = self._out(h_BU.to(self._out.weight.dtype))
        return q_BA.float()


@functools.cache
def exclude_recurrence_from_compilation() -> None:
    """Let the loop of `RecurrentNetwork` run eagerly in compiled functions: unrolled, it takes minutes to compile.

    Not a decorator of the method, which would import the compiler in every program.
    """
    RecurrentNetwork._recurrence = torch.compiler.disable(RecurrentNetwork._recurrence)  # type: ignore[method-assign]


def make_pqn_network(config: pqn.Config, obs_shape: tuple[int, int, int], num_actions: int) -> QNetwork:
    """Create the Q-network of a PQN config, initialized as in the published code (He et al. 2015).

    A backbone of one's own or one with its own initialization keeps it.
    """
    network: QNetwork
    if config.lstm_units:
        network = _plain_network(RecurrentNetwork, config, obs_shape, num_actions)
        network.add_lstm(config.lstm_units)
    else:
        network = _plain_network(QNetwork, config, obs_shape, num_actions)
    keeps_weights = network.has_custom_backbone or network.backbone.has_own_initialization
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d) and not keeps_weights:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    out = network.advantage[-1].get_parameter("weight")
    nn.init.normal_(out, std=(config.lstm_units or config.hidden_units) ** -0.5)
    return network


class StreamNetwork(QNetwork):
    """Q-network with a normalization of its input, whose statistics are buffers (`normalization`)."""

    normalization: nn.Module

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, F) of the backbone."""
        return super().features(self.normalization(x_BCHW))


def make_stream_network(config: stream.Config, obs_shape: tuple[int, int, int], num_actions: int) -> StreamNetwork:
    """Create the Q-network of streaming Q(lambda) (Elsayed et al. 2024): sparse weights, LayerNorm without weights.

    The hidden layer has a leaky ReLU; a backbone has its own activation, which of `stream` is a leaky ReLU, too. A
    backbone of one's own keeps its initialization and its normalization.
    """
    network = _plain_network(StreamNetwork, config, obs_shape, num_actions)
    network.advantage[2] = nn.LeakyReLU()
    for name, module in list(network.named_modules()):
        if name.startswith("backbone") and network.has_custom_backbone:
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            sparse_init_(module.weight, config.init_sparsity)
            nn.init.zeros_(module.get_parameter("bias"))
        elif isinstance(module, nn.LayerNorm):
            parent, _, child = name.rpartition(".")
            network.get_submodule(parent).add_module(child, SampleNorm())
    frame_shape = (obs_shape[0] // config.frame_stack, *obs_shape[1:])
    normalizes, padded = config.normalize_observations, config.frame_stack > 1
    network.normalization = InputNormalization(frame_shape, padded) if normalizes else nn.Identity()
    return network
