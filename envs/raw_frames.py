"""Observations that a person has, converted to the input of an agent's network as the training environments do it.

    reader = FrameReader((4, 84, 84), frame_channels=1)
    obs_1CHW, _ = reader.read(frame)       # of a Gymnasium environment, any size: converted and stacked
    obs_NCHW, _ = reader.read(stacked)     # one or several stacked observations, channels first or last

Shapes: N observations, K stacked frames, F channels per frame (1 grayscale, 3 RGB), C = K * F, H, W pixels;
D numbers of a vector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from zerokara.core.config import UserError
from zerokara.envs.observations import ImageFormat, ObservationError, find_image, make_frame
from zerokara.envs.stacks import Stacks
from zerokara.envs.vectors import VectorFormat


class FrameReader:
    """Converts frames of one environment, which it stacks, and observations that are stacked already.

    Args:
        obs_shape: (C, H, W) of the network's input.
        frame_channels: F.
        obs_key: key of the image in observations that are a Dict; empty: the only image.
        obs_range: values of black and white in the observations; None: those of `declared`, or 0 to 255 for uint8.
        declared: returns the format of the images in training, None if they were rendered. It is called for frames that
            are not uint8, without `obs_range`.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        frame_channels: int,
        *,
        obs_key: str = "",
        obs_range: Sequence[float] | None = None,
        declared: Callable[[], ImageFormat | VectorFormat | None] = lambda: None,
    ) -> None:
        self.obs_shape, self.frame_channels = obs_shape, frame_channels
        self._obs_key, self._declared = obs_key, declared
        self._obs_range = None if obs_range is None else (obs_range[0], obs_range[1])
        self._formats: dict[object, ImageFormat] = {}
        self._stacks = Stacks.blank(1, obs_shape[0] // frame_channels, (frame_channels, *obs_shape[1:]))
        self._first = True
        self.last_frame_size: tuple[int, int] | None = None  # (H, W) of the last frame; None: stacked

    def reset(self) -> None:
        """Forget the frames: the next one starts an episode, as zeros precede it in training."""
        self._first = True

    def read(self, obs: Any, stacked: bool | None = None) -> tuple[np.ndarray, bool]:
        """Convert an observation.

        Args:
            obs: a frame (H, W), (H, W, 1 or 3) or (1 or 3, H, W) of any size, or a Dict that contains one; it is the
                next frame of the episode. Or stacked observations with the size of the network's input: (C, H, W),
                (H, W, C), (K, H, W, F), or a batch (N, ...) of them, integers from 0 to 255.
            stacked: True: stacked observations, False: a frame; None: it follows from the shape.

        Returns:
            The input of the network (N, C, H, W) uint8, and True if `obs` is a batch.

        Raises:
            UserError: another shape, type or range; or an array that can be a frame as well as stacked observations.
        """
        array = None if isinstance(obs, Mapping) else np.asarray(obs)
        as_stack = None if array is None or stacked is False else self._find_stack(array)
        as_frame = array is None or (array.ndim in (2, 3) and stacked is not True)
        if as_stack is not None and as_frame and array is not None and stacked is None:
            if self._is_color_frame(array) and self.frame_channels == 1 and self.obs_shape[0] == 3:
                raise UserError(
                    f"An observation of shape {array.shape} can be one RGB frame or three stacked grayscale frames: "
                    f"say which with stacked=False or stacked=True."
                )
            as_stack = None if self.obs_shape[0] == self.frame_channels else as_stack  # K = 1: a frame is the stack
        if as_stack is not None:
            self.last_frame_size = None
            return _as_uint8(as_stack[0]), as_stack[1]
        if not as_frame:
            channels, height, width = self.obs_shape
            raise UserError(
                f"An observation of shape {None if array is None else array.shape} is neither a frame (H, W), "
                f"(H, W, 3) or (3, H, W), nor stacked: ({channels}, {height}, {width}) or ({height}, {width}, "
                f"{channels}), or several of these."
            )
        frame_FHW = self._read_frame(obs if array is None else array)
        self._stacks = self._stacks.push(frame_FHW[None].copy(), np.array([self._first]))
        self._first = False
        return self._stacks.make(), False

    def _find_stack(self, array: np.ndarray) -> tuple[np.ndarray, bool] | None:
        """Return stacked observations as (N, C, H, W), and True for a batch; None if the shape is another one."""
        channels, height, width = self.obs_shape
        frames = (channels // self.frame_channels, height, width, self.frame_channels)
        for shape in (self.obs_shape, (height, width, channels), frames):
            if array.shape[-len(shape) :] != shape or array.ndim - len(shape) not in (0, 1):
                continue
            batch_NXXX = array.reshape(-1, *shape)
            if shape == frames:
                batch_NXXX = batch_NXXX.transpose(0, 1, 4, 2, 3).reshape(-1, *self.obs_shape)
            elif shape != self.obs_shape:
                batch_NXXX = batch_NXXX.transpose(0, 3, 1, 2)
            return batch_NXXX, array.ndim > len(shape)
        return None

    def _is_color_frame(self, array: np.ndarray) -> bool:
        return array.ndim == 3 and 3 in (array.shape[0], array.shape[2])

    def _read_frame(self, obs: Any) -> np.ndarray:
        """Convert the image in an observation to a frame (F, H, W)."""
        try:
            image = self._format(obs).read(obs)
        except ObservationError as error:
            raise UserError(f"The environment {error}") from None
        self.last_frame_size = (image.shape[0], image.shape[1])
        return make_frame(image, self.obs_shape[1], grayscale=self.frame_channels == 1)

    def _format(self, obs: Any) -> ImageFormat:
        """Return the format of the image in an observation, which is found once for each kind of observation."""
        parts = {key: np.asarray(part) for key, part in obs.items()} if isinstance(obs, Mapping) else {"": obs}
        kind = tuple((key, part.shape, part.dtype) for key, part in parts.items())
        if kind in self._formats:
            return self._formats[kind]
        boxes: dict[str, spaces.Space[Any]] = {
            key: _box(part) for key, part in parts.items() if part.dtype.kind in "uif" and part.ndim
        }
        space = spaces.Dict(boxes) if isinstance(obs, Mapping) else boxes.get("", spaces.Discrete(1))
        obs_range = self._obs_range
        key = self._obs_key if isinstance(obs, Mapping) else ""
        image = find_image(space, key, obs_range or (0.0, 255.0))
        if image is None:
            shapes = {key: part.shape for key, part in parts.items()} if isinstance(obs, Mapping) else parts[""].shape
            raise UserError(
                f"An observation of shape {shapes} contains no image, and the agent plays from pixels: give "
                f"env.render() of an environment with render_mode='rgb_array'."
            )
        if obs_range is None and parts[image.key or ""].dtype != np.uint8:
            image = find_image(space, key, self._declared_range())
            assert image is not None
        self._formats[kind] = image
        return image

    def _declared_range(self) -> tuple[float, float]:
        try:
            declared = self._declared()
        except UserError as error:
            raise UserError(
                f"The values of black and white in frames that are not uint8 are those that the environment of the "
                f"training declares, and it cannot be created here ({str(error).rstrip('.')}): give frames of uint8."
            ) from error
        return (declared.low, declared.high) if isinstance(declared, ImageFormat) else (0.0, 1.0)  # as floats rendered


class VectorReader:
    """Converts vectors of one environment, which it stacks, and batches of vectors.

    Args:
        obs_shape: (C, 1, 1) of the network's input, C = K * D.
        declared: returns the format of the vectors (D,) in training.
    """

    last_frame_size = None

    def __init__(self, obs_shape: tuple[int, int, int], declared: Callable[[], object]) -> None:
        self.obs_shape, self._declared = obs_shape, declared
        self._first = True

    def reset(self) -> None:
        """Forget the vectors: the next one starts an episode, as zeros precede it in training."""
        self._first = True

    @functools.cached_property
    def _format(self) -> VectorFormat:
        declared = self._declared()
        assert isinstance(declared, VectorFormat)
        return declared

    @functools.cached_property
    def _stacks(self) -> Stacks:
        size = self._format.size
        return Stacks.blank(1, self.obs_shape[0] // size, (size, 1, 1), np.float32)

    def read(self, obs: Any, stacked: bool | None = None) -> tuple[np.ndarray, bool]:
        """Convert an observation.

        Args:
            obs: a vector as the environment returned it, which is the next one of the episode; or, without stacked
                vectors (K = 1), several of them.
            stacked: as in `FrameReader.read`; of no importance.

        Returns:
            The input of the network (N, C, 1, 1) float32, and True if `obs` is a batch.

        Raises:
            UserError: another shape or type, NaN or Inf; or the environment of the training cannot be made.
        """
        one_shape = self._format.space.shape
        is_batch = one_shape is not None and not isinstance(obs, Mapping) and np.ndim(obs) == len(one_shape) + 1
        if is_batch and self._format.size != self.obs_shape[0]:
            raise UserError("This agent stacks vectors: give one at a time, as the environment returns them.")
        try:
            vectors_ND = np.stack([self._format.read(each) for each in (obs if is_batch else [obs])])
        except ObservationError as error:
            raise UserError(f"The environment {error}") from None
        if is_batch:
            return vectors_ND[:, :, None, None], True
        self._stacks = self._stacks.push(vectors_ND[:, :, None, None], np.array([self._first]))
        self._first = False
        return self._stacks.make(), False


def _box(array: np.ndarray) -> spaces.Box:
    """Return a space that contains an array of this shape and type."""
    limits = (0, 255) if array.dtype == np.uint8 else (-1, 1)  # of other types, the range is not used
    dtype = array.dtype if array.dtype.kind != "u" or array.dtype == np.uint8 else np.dtype(np.int64)
    return spaces.Box(*limits, array.shape, dtype.type)


def _as_uint8(stack: np.ndarray) -> np.ndarray:
    """Return stacked observations as a contiguous array of uint8.

    Raises:
        UserError: they are not integers from 0 to 255.
    """
    if stack.dtype.kind not in "ui" or stack.min() < 0 or stack.max() > 255:
        raise UserError(
            f"Stacked observations are integers from 0 to 255, got {stack.dtype} from {stack.min():g} to "
            f"{stack.max():g}: convert them, as in (255 * obs).round().astype('uint8') for values from 0 to 1."
        )
    return np.ascontiguousarray(stack, dtype=np.uint8)
