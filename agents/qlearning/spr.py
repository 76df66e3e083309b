"""Self-predictive representations (SPR): the network predicts its own features of the next observations.

Schwarzer et al. 2021, "Data-Efficient Reinforcement Learning with Self-Predictive Representations" (arXiv 2007.05929),
section 2; also the core of BBF (Schwarzer et al. 2023). With the backbone f, the transition model h, the projection g,
the predictor q, and f_m and g_m of the target network, a moving average:

    z_0 = f(s_t),    z_k = h(z_k-1, a_t+k-1)
    loss = sum over k = 1, ..., K of 1 - cos(q(g(z_k)), g_m(f_m(s_t+k)))

(the paper has no 1, which changes no gradient). Steps after the end of the episode are left out. The projection is the
first layer of the head, that of both streams in a dueling network, without noise and activation; the predictor is
linear. Feature maps are scaled to [0, 1], each by its minimum and maximum, before and after each transition, and before
the projection of the target. The transition model has two convolutions without normalization, as in BBF; SPR's own code
has BatchNorm between them.

Shapes: B batch, S steps (K above), C channels, H, W pixels of the feature map, F features, P projected features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from zerokara.agents.qlearning.network import QNetwork

EPSILON = 1e-5  # added to the range of a feature map, as in BBF


class SelfPrediction(nn.Module):
    """Transition model and predictor.

    Args:
        map_shape: (C, H, W) of the backbone's feature map.
        num_actions: number of actions, which the transition model gets as one-hot planes.
        projected: P.
    """

    def __init__(self, map_shape: tuple[int, int, int], num_actions: int, projected: int) -> None:
        super().__init__()
        self.map_shape, self.num_actions = map_shape, num_actions
        channels = map_shape[0]
        self.conv1 = nn.Conv2d(channels + num_actions, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.predictor = nn.Linear(projected, projected)
        for layer in (self.conv1, self.conv2, self.predictor):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.get_parameter("bias"))

    def maps(self, features_BF: Tensor) -> Tensor:
        """Feature maps (B, C, H, W), scaled to [0, 1], from flat features."""
        return scale_to_unit(features_BF.unflatten(1, self.map_shape))

    def transition(self, z_BCHW: Tensor, action_B: Tensor) -> Tensor:
        """Predicted feature maps after an action."""
        planes = F.one_hot(action_B, self.num_actions).to(z_BCHW.dtype)[:, :, None, None]
        z = torch.cat([z_BCHW, planes.expand(-1, -1, *z_BCHW.shape[2:])], dim=1)
        return scale_to_unit(F.relu(self.conv2(F.relu(self.conv1(z)))))


def scale_to_unit(z_BCHW: Tensor) -> Tensor:
    """Scale each feature map to [0, 1] by its minimum and maximum."""
    low, high = z_BCHW.amin((1, 2, 3), keepdim=True), z_BCHW.amax((1, 2, 3), keepdim=True)
    return (z_BCHW - low) / (high - low + EPSILON)


def project(network: QNetwork, z_BCHW: Tensor) -> Tensor:
    """Projection (B, P): outputs of the first layers of the streams, without noise."""
    z_BF = z_BCHW.flatten(1)
    streams = (network.advantage,) if network.value is None else (network.value, network.advantage)
    layers = [stream[0] for stream in streams]
    return torch.cat(
        [F.linear(z_BF, layer.get_parameter("weight"), layer.get_parameter("bias")) for layer in layers], dim=1
    )


def spr_loss(
    online: QNetwork, target: QNetwork, features_BF: Tensor, images: Tensor, action_BS: Tensor, inside_BS: Tensor
) -> Tensor:
    """Loss (B,) of the predictions of the next S observations, between 0 and 2 S.

    Args:
        online: network that is trained.
        target: target network.
        features_BF: features of the first observations by the online network.
        images: the next observations (B * S, C, H, W), those of a sample together.
        action_BS: actions before them.
        inside_BS: 1 if the observation is in the same episode, else 0.
    """
    assert online.spr is not None
    assert target.spr is not None
    with torch.no_grad():
        target_BSP = project(target, target.spr.maps(target.features(images))).unflatten(0, action_BS.shape)
    z_BCHW, predicted = online.spr.maps(features_BF), []
    for action_B in action_BS.unbind(dim=1):
        z_BCHW = online.spr.transition(z_BCHW, action_B)
        predicted.append(online.spr.predictor(project(online, z_BCHW)))
    cosine_BS = F.cosine_similarity(torch.stack(predicted, dim=1).float(), target_BSP.float(), dim=2)
    return ((1 - cosine_BS) * inside_BS).sum(dim=1)
