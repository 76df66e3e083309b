"""Video frames of an agent that plays: the game, a saliency map, and the Q-values as bars and as a curve.

Shapes: H, W pixels, A actions, C channels of an observation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import cache, lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zerokara.core.config import format_count

Color = tuple[int, int, int]

BACKGROUND: Color = (17, 19, 26)
EMPTY_BAR: Color = (34, 38, 50)
BAR: Color = (86, 108, 150)
GREEDY: Color = (255, 180, 60)  # the action taken, if it is the best one
RANDOM: Color = (235, 95, 110)  # the action taken, if it is not the best one
TEXT: Color = (226, 230, 240)
FAINT: Color = (136, 144, 164)

GAME_SIDE = 672  # pixels: games are enlarged by an integer factor up to this size
PANEL_WIDTH = 384
PANEL_LEFT = 12
MARGIN = 24
CURVE_HEIGHT = 96
CURVE_STEPS = 240
BAR_SCALE_STEPS = 240  # bars are scaled by the widest range of Q-values over this number of steps
MAX_BARS = 18  # the number of actions of Atari; of more actions, only the best ones are drawn
SALIENCY_DECAY = 0.98  # per step, of the saliency that is drawn brightest


class EpisodeRenderer:
    """Draw the frames of one episode, one after another; scales depend on the last frames, so that they do not jump.

    Of more than MAX_BARS actions, those with the highest Q-values have bars, the best one first, and the action taken.

    Args:
        title: first line, such as the name of the environment.
        subtitle: second line, in a smaller font.
        epsilon: probability of a random action, which is displayed.
    """

    def __init__(self, title: str, subtitle: str, action_names: Sequence[str], epsilon: float) -> None:
        self._title, self._subtitle, self._names, self._epsilon = title, subtitle, list(action_names), epsilon
        self._ranges: deque[float] = deque(maxlen=BAR_SCALE_STEPS)  # highest minus lowest Q-value of the last steps
        self._best: deque[float] = deque(maxlen=CURVE_STEPS)  # highest Q-value of the last steps
        self._background = np.empty((0, 0, 3), np.uint8)
        self._max_saliency = 0.0

    def draw(
        self,
        picture: np.ndarray,
        q_A: np.ndarray,
        action: int,
        score: float,
        step: int,
        input_frame: np.ndarray | None = None,
        saliency_HW: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return a frame (height, width, 3) uint8 RGB. All frames of an episode have the same size.

        Args:
            picture: the rendered game, (height, width, 3) uint8.
            action: the action taken; if it is not the best one, it was random and gets another color.
            input_frame: newest frame of the observation, (H, W, 3) uint8; needs saliency_HW.
            saliency_HW: saliency of each pixel of the observation, >= 0; needs input_frame.
        """
        self._ranges.append(float(np.ptp(q_A)))
        self._best.append(float(q_A.max()))
        parts = [enlarge(picture)]
        if input_frame is not None and saliency_HW is not None:
            # Relative to the maximum of the last seconds, so that a step with a low saliency everywhere stays dark.
            self._max_saliency = max(float(saliency_HW.max()), SALIENCY_DECAY * self._max_saliency)
            heatmap = enlarge(overlay(input_frame, saliency_HW / (self._max_saliency or 1.0)), parts[0].shape[0])
            parts.append(_caption(heatmap, saliency_caption(self._max_saliency)))
        height = max(self._panel_height(), *(part.shape[0] for part in parts))
        parts.append(self._panel(height, q_A, action, score, step))
        return self._join(parts, height)

    def _join(self, parts: Sequence[np.ndarray], height: int) -> np.ndarray:
        """Return a frame with images beside one another, each of them centered vertically."""
        width = sum(part.shape[1] + MARGIN // 2 for part in parts) - MARGIN // 2
        shape = (height + 2 * MARGIN, width + 2 * MARGIN, 3)
        if self._background.shape != shape:
            self._background = np.full(shape, BACKGROUND, np.uint8)
        frame = self._background.copy()
        left = MARGIN
        for part in parts:
            above = MARGIN + (height - part.shape[0]) // 2
            frame[above : above + part.shape[0], left : left + part.shape[1]] = part
            left += part.shape[1] + MARGIN // 2
        return frame

    def _panel_height(self) -> int:
        return 166 + 24 * min(MAX_BARS, len(self._names)) + 44 + CURVE_HEIGHT

    def _panel(self, height: int, q_A: np.ndarray, action: int, score: float, step: int) -> np.ndarray:
        """Draw title, score, a bar for each action, and the curve of the maximum Q-value."""
        image = Image.new("RGB", (PANEL_WIDTH, height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        left, right = PANEL_LEFT, PANEL_WIDTH - 1
        draw_text(draw, (left, 0), _fit(self._title, 26, right - left), TEXT, 26)
        draw_text(draw, (left, 34), _fit(self._subtitle, 15, right - left), FAINT, 15)
        numbers = ((left, "score", f"{score:,.6g}"), (150, "step", f"{step:,}"), (270, "epsilon", f"{self._epsilon:g}"))
        for x, label, value in numbers:
            draw_text(draw, (x, 66), label, FAINT, 15)
            draw_text(draw, (x, 84), value, TEXT, 30)
        self._bars(draw, 140, height - CURVE_HEIGHT - 44, left, right, q_A, action)
        self._curve(draw, height - CURVE_HEIGHT - 24, height - 1, left, right)
        return np.asarray(image)

    def _bars(
        self, draw: ImageDraw.ImageDraw, top: int, bottom: int, left: int, right: int, q_A: np.ndarray, action: int
    ) -> None:
        """Draw a bar of Q(s, a) - min Q(s, .) for each action, and the Q-value beside it.

        Bars of the Q-values themselves would all look alike: their differences are small compared with their level.
        """
        full_bar = max(*self._ranges, 1e-9)
        shown = drawn_actions(q_A, action)
        draw.text((left, top), bars_caption(full_bar, len(self._names)), FAINT, _font(14))
        top += 26
        pitch = min(44.0, (bottom - top) / len(shown))
        size = int(min(18, 0.62 * pitch))
        names_width = min(150, max(int(_width(self._names[i], size)) for i in shown) + 14)
        start, end = left + names_width, right - 66
        for row, i in enumerate(shown):
            name = self._names[i]
            y = top + row * pitch
            thickness = 0.62 * pitch
            middle = y + thickness / 2
            color = BAR if i != action else GREEDY if i == int(q_A.argmax()) else RANDOM
            length = float(q_A[i] - q_A.min()) / full_bar * (end - start)
            text_color = TEXT if i == action else FAINT
            draw_text(draw, (left, middle), _fit(name.lower(), size, names_width - 10), text_color, size, "lm")
            draw.rounded_rectangle((start, y, end, y + thickness), 4, EMPTY_BAR)
            draw.rounded_rectangle((start, y, start + max(6.0, length), y + thickness), 4, color)
            if i == action and color == RANDOM:
                draw_text(draw, (end - 8, middle), "random", TEXT, min(size, 14), "rm")
            draw.text((right, middle), f"{q_A[i]:.3f}", text_color, _font(size), anchor="rm")

    def _curve(self, draw: ImageDraw.ImageDraw, top: int, bottom: int, left: int, right: int) -> None:
        """Draw the maximum Q-value of the last steps, the newest at the right."""
        best = self._best
        low, high = min(best), max(best)
        draw.text((left, top), curve_caption(low, high, len(best)), FAINT, _font(14))
        margin = 0.05 * (high - low) or 1.0  # a constant curve is drawn in the middle
        low, high = low - margin, high + margin
        top += 24
        draw.rounded_rectangle((left, top, right, bottom), 6, EMPTY_BAR)
        pitch = (right - left - 16) / (CURVE_STEPS - 1)
        points = [
            (right - 8 - (len(best) - 1 - i) * pitch, bottom - 8 - (value - low) / (high - low) * (bottom - top - 16))
            for i, value in enumerate(best)
        ]
        if len(points) > 1:
            draw.line(points, BAR, 2, joint="curve")
        x, y = points[-1]
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), GREEDY)


def drawn_actions(q_A: np.ndarray, action: int) -> list[int]:
    """Return the actions that have bars, in the order of the bars: all, or the best ones and the action taken."""
    if len(q_A) <= MAX_BARS:
        return list(range(len(q_A)))
    best: list[int] = np.argsort(-q_A, kind="stable")[:MAX_BARS].tolist()
    return best if action in best else [*best[:-1], action]


def bars_caption(full_bar: float, actions: int) -> str:
    """Return the caption of the bars: their quantity, and the value of a bar of full length."""
    if actions > MAX_BARS:
        return f"bars: Q minus lowest, best {MAX_BARS} of {actions:,}, full = {full_bar:.3g}"
    return f"bars: Q(s,a) minus the lowest, full bar = {full_bar:.3g}"


def curve_caption(low: float, high: float, steps: int) -> str:
    """Return the caption of the curve: its quantity, its lowest and highest value, and the steps that it covers."""
    return f"curve: max Q, from {low:.3g} to {high:.3g}, last {format_count(steps, 'step')}"


def saliency_caption(brightest: float) -> str:
    """Return the caption of the saliency map: its quantity and the value of its brightest color."""
    return f"saliency: change of Q where blurred, brightest = {brightest:.3g}"


def enlarge(picture: np.ndarray, height: int | None = None) -> np.ndarray:
    """Enlarge an image (height, width, 3) without interpolation, or reduce it if it is too large.

    Args:
        height: height of the result; None: enlarge by an integer factor, up to GAME_SIDE on the longer side.
    """
    rows, columns = picture.shape[:2]
    if height is None:
        longer = max(rows, columns)
        height = rows * (GAME_SIDE // longer) if longer <= GAME_SIDE else round(rows * GAME_SIDE / longer)
    interpolation = cv2.INTER_NEAREST if height >= rows else cv2.INTER_AREA
    size = (round(columns * height / rows), height)
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.uint8)


def overlay(picture: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """Blend a heatmap (H, W) from 0 to 1 over a dimmed grayscale image (H, W, 3) uint8; returns (4 H, 4 W, 3)."""
    size = (4 * picture.shape[1], 4 * picture.shape[0])
    gray_HW1 = picture.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)
    base = 0.75 * cv2.resize(gray_HW1, size, interpolation=cv2.INTER_NEAREST).astype(np.float32)
    heat = np.clip(cv2.resize(heat_HW.astype(np.float32), size, interpolation=cv2.INTER_CUBIC), 0, 1)
    heat = heat**0.6  # make small values visible beside the largest
    colored = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    alpha = 0.85 * heat[..., None]
    mixed: np.ndarray = np.rint((1 - alpha) * base + alpha * colored).astype(np.uint8)
    return mixed


def newest_frame(obs_CHW: np.ndarray, frame_channels: int) -> np.ndarray:
    """Return the newest frame of an observation as (H, W, 3) uint8 RGB."""
    frame_HWF = obs_CHW[-frame_channels:].transpose(1, 2, 0)
    return frame_HWF if frame_channels == 3 else frame_HWF.repeat(3, axis=2)


def _caption(part: np.ndarray, text: str) -> np.ndarray:
    """Write small text in the upper left corner."""
    image = Image.fromarray(part)
    ImageDraw.Draw(image).text((10, 8), text, TEXT, _font(15), stroke_width=2, stroke_fill=BACKGROUND)
    return np.asarray(image)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that is part of Pillow, so that videos look the same on all machines."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache(maxsize=1024)
def _text_mask(text: str, size: int, anchor: str, fraction: tuple[float, float]) -> tuple[Image.Image, tuple[int, int]]:
    """Return the opacity of the pixels of a text, mode L, and the position of its upper left corner from the anchor.

    Args:
        fraction: of the anchor's coordinates, from 0 to 1.
    """
    left, top, right, bottom = (round(bound) for bound in _font(size).getbbox(text, anchor=anchor))
    left, top, right, bottom = left - 2, top - 2, right + 2, bottom + 2
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((fraction[0] - left, fraction[1] - top), text, 255, _font(size), anchor=anchor)
    return mask, (left, top)


def draw_text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, color: Color, size: int, anchor: str = "la"
) -> None:
    """Draw text as `ImageDraw.text` does, with the same pixels. Its mask is cached: most texts are in every frame."""
    (x_fraction, x), (y_fraction, y) = (math.modf(coordinate) for coordinate in xy)
    mask, (left, top) = _text_mask(text, size, anchor, (x_fraction, y_fraction))
    draw.bitmap((int(x) + left, int(y) + top), mask, color)


@lru_cache(maxsize=1024)
def _width(text: str, size: int) -> float:
    """Return the width of a text in pixels."""
    return _font(size).getlength(text)


@lru_cache(maxsize=1024)
def _fit(text: str, size: int, width: float) -> str:
    """Shorten a text to a width in pixels."""
    if _width(text, size) <= width:
        return text
    while text and _font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
