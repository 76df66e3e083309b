"""A picture of an agent at play: the game, where the network looks, and its Q-values as bars.

Shapes: H, W pixels, A actions, C channels of an observation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BACKGROUND: Colour = (17, 19, 26)
GROOVE: Colour = (34, 38, 50)
BAR: Colour = (86, 108, 150)
CHOSEN: Colour = (255, 180, 60)
RANDOM: Colour = (235, 95, 110)
TEXT: Colour = (226, 230, 240)
FAINT: Colour = (136, 144, 164)

GAME_SIDE = 672  # pixels: games are enlarged by whole numbers, and never beyond this
PANEL_WIDTH = 384
MARGIN = 24
TRACE_HEIGHT = 96
TRACE_STEPS = 240
RANGE_STEPS = 240  # bars are scaled to the spread of so many steps back


class TensorBoardWriter:
    """Draws one game, frame by frame; it remembers the last values, so that the scale does not jump.

    Args:
        title: first line, such as the environment's name; subtitle: the second, in small letters.
        epsilon: probability of a random action.
    """

    def __init__(self, title: str, subtitle: str, action_names: Sequence[str], epsilon: float) -> None:
        self._title, self._subtitle, self._names, self._epsilon = title, subtitle, list(action_names), epsilon
        self._history: deque[np.ndarray] = deque(maxlen=max(RANGE_STEPS, TRACE_STEPS))  # of Q-values (A,)
        self._brightest = 0.0

    def draw(
        self,
        picture: np.ndarray,
        q_A: np.ndarray,
        action: int,
        score: float,
        step: int,
        seen: np.ndarray | None = None,
        saliency_HW: np.ndarray | None = None,
    ) -> np.ndarray:
        """One frame (height, width, 3) uint8 RGB; always of the same size for one game.

        Args:
            picture: the game as people see it, (height, width, 3) uint8.
            action: the one taken; if it is not the best one, chance chose it, and it is marked so.
            seen: newest frame that the network saw, (H, W, 3) uint8; saliency_HW: how much its places matter. Both or
                none.
        """
        self._history.append(q_A)
        parts = [enlarge(picture)]
        if seen is not None and saliency_HW is not None:
            # Relative to the brightest place of the last seconds: a step at which little matters stays dark.
            self._brightest = max(float(saliency_HW.max()), 0.98 * self._brightest)
            glowing = overlay(seen, saliency_HW / (self._brightest or 1.0))
            parts.append(_caption(enlarge(glowing, parts[0].shape[0]), "where the network looks"))
        height = max(self._panel_height(), *(part.shape[0] for part in parts))
        parts.append(self._panel(height, q_A, action, score, step))
        columns = [_pad(part, height) for part in parts]
        gap = np.full((height, MARGIN // 2, 3), BACKGROUND, np.uint8)
        row = np.concatenate([piece for column in columns for piece in (column, gap)][:-1], axis=1)
        frame = np.empty((row.shape[0] + 2 * MARGIN, row.shape[1] + 2 * MARGIN, 3), np.uint8)
        frame[:] = BACKGROUND
        frame[MARGIN:-MARGIN, MARGIN:-MARGIN] = row
        return frame

    def _panel_height(self) -> int:
        return 166 + 24 * len(self._names) + 44 + TRACE_HEIGHT

    def _panel(self, height: int, q_A: np.ndarray, action: int, score: float, step: int) -> np.ndarray:
        """Title, score, a bar for each action, and the best value over time."""
        image = Image.new("RGB", (PANEL_WIDTH, height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        left, right = 12, PANEL_WIDTH - 1
        draw.text((left, 0), _fit(self._title, 26, right - left), TEXT, _font(26))
        draw.text((left, 34), _fit(self._subtitle, 15, right - left), FAINT, _font(15))
        told = ((left, "score", f"{score:,.6g}"), (150, "step", f"{step:,}"), (270, "epsilon", f"{self._epsilon:g}"))
        for x, label, value in told:
            draw.text((x, 66), label, FAINT, _font(15))
            draw.text((x, 84), value, TEXT, _font(30))
        self._bars(draw, 140, height - TRACE_HEIGHT - 44, left, right, q_A, action)
        self._trace(draw, height - TRACE_HEIGHT - 24, height - 1, left, right)
        return np.asarray(image)

    def _bars(
        self, draw: ImageDraw.ImageDraw, top: int, bottom: int, left: int, right: int, q_A: np.ndarray, action: int
    ) -> None:
        """A bar for how much better each action is than the worst, against the widest spread of the last steps.

        The values themselves stand beside: they go up and down together so far that bars of them would all look alike.
        """
        recent = np.stack(self._history)[-RANGE_STEPS:]
        widest = max(float(np.ptp(recent, axis=1).max()), 1e-9)
        draw.text((left, top), "Q-values, as bars above the worst", FAINT, _font(14))
        top += 26
        pitch = min(44.0, (bottom - top) / len(self._names))
        size = int(min(18, 0.62 * pitch))
        names_width = min(150, max(int(_font(size).getlength(name)) for name in self._names) + 14)
        start, end = left + names_width, right - 66
        for i, name in enumerate(self._names):
            y = top + i * pitch
            thick = 0.62 * pitch
            middle = y + thick / 2
            colour = BAR if i != action else CHOSEN if i == int(q_A.argmax()) else RANDOM
            length = float(q_A[i] - q_A.min()) / widest * (end - start)
            ink = TEXT if i == action else FAINT
            draw.text((left, middle), _fit(name.lower(), size, names_width - 10), ink, _font(size), anchor="lm")
            draw.rounded_rectangle((start, y, end, y + thick), 4, GROOVE)
            draw.rounded_rectangle((start, y, start + max(6.0, length), y + thick), 4, colour)
            if i == action and colour == RANDOM:
                draw.text((end - 8, middle), "by chance", TEXT, _font(min(size, 14)), anchor="rm")
            draw.text((right, middle), f"{q_A[i]:.3f}", ink, _font(size), anchor="rm")

    def _trace(self, draw: ImageDraw.ImageDraw, top: int, bottom: int, left: int, right: int) -> None:
        """The best action's value over the last steps, newest at the right."""
        best = [float(q_A.max()) for q_A in self._history][-TRACE_STEPS:]
        low, high = min(best), max(best)
        room = 0.05 * (high - low) or 1.0  # a flat line runs through the middle
        low, high = low - room, high + room
        draw.text((left, top), f"value of the best action, last {TRACE_STEPS} steps", FAINT, _font(14))
        top += 24
        draw.rounded_rectangle((left, top, right, bottom), 6, GROOVE)
        pitch = (right - left - 16) / (TRACE_STEPS - 1)
        points = [
            (right - 8 - (len(best) - 1 - i) * pitch, bottom - 8 - (value - low) / (high - low) * (bottom - top - 16))
            for i, value in enumerate(best)
        ]
        if len(points) > 1:
            draw.line(points, BAR, 2, joint="curve")
        x, y = points[-1]
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), CHOSEN)


def enlarge(picture: np.ndarray, height: int | None = None) -> np.ndarray:
    """A small picture (height, width, 3) larger, its pixels staying squares; a large one smaller, if it must be.

    Args:
        height: exactly this many rows; None: by a whole number, up to GAME_SIDE on the longer side.
    """
    rows, columns = picture.shape[:2]
    if height is None:
        longer = max(rows, columns)
        height = rows * (GAME_SIDE // longer) if longer <= GAME_SIDE else round(rows * GAME_SIDE / longer)
    interpolation = cv2.INTER_NEAREST if height >= rows else cv2.INTER_AREA
    return cv2.resize(picture, (round(columns * height / rows), height), interpolation=interpolation).astype(np.uint8)


def overlay(picture: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8, dimmed, with heat (H, W) from 0 to 1 glowing over it; four times as large each way."""
    size = (4 * picture.shape[1], 4 * picture.shape[0])
    grey_HW1 = picture.mean(axis=2, keepdims=True).repeat(3, axis=2).astype(np.uint8)
    base = 0.75 * cv2.resize(grey_HW1, size, interpolation=cv2.INTER_NEAREST).astype(np.float32)
    heat = np.clip(cv2.resize(heat_HW.astype(np.float32), size, interpolation=cv2.INTER_CUBIC), 0, 1)
    heat = heat**0.6  # so that what matters a little is seen beside what matters most
    glow = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    alpha = 0.85 * heat[..., None]
    mixed: np.ndarray = np.rint((1 - alpha) * base + alpha * glow).astype(np.uint8)
    return mixed


def newest_frame(obs_CHW: np.ndarray, frame_channels: int) -> np.ndarray:
    """The newest frame of an observation as (H, W, 3) uint8 RGB."""
    frame_HWF = obs_CHW[-frame_channels:].transpose(1, 2, 0)
    return frame_HWF if frame_channels == 3 else frame_HWF.repeat(3, axis=2)


def _caption(part: np.ndarray, text: str) -> np.ndarray:
    """Small letters in the upper left corner."""
    image = Image.fromarray(part)
    ImageDraw.Draw(image).text((10, 8), text, TEXT, _font(15), stroke_width=2, stroke_fill=BACKGROUND)
    return np.asarray(image)


def _pad(part: np.ndarray, height: int) -> np.ndarray:
    """In the middle of a column of this height."""
    column = np.empty((height, part.shape[1], 3), np.uint8)
    column[:] = BACKGROUND
    above = (height - part.shape[0]) // 2
    column[above : above + part.shape[0]] = part
    return column


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, so that it looks alike everywhere."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _fit(text: str, size: int, width: float) -> str:
    """The text, or as much of it as fits the width in pixels."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
