"""Counts of files and images that a reader converts, ignores and leaves out, for messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from zerokara.core.config import UserError, abbreviate
from zerokara.core.data.reading_rules import active_rules

EXAMPLES = 5  # items that a message names
FEW = 10  # images that may always be left out
MAX_FRACTION = 0.1  # of the images may be left out


@dataclass
class Audit:
    """Record of one reading; empty if every file was used as it is."""

    converted: Counter[str] = field(default_factory=Counter)
    """Number of images, or of annotations, by kind of conversion, such as "of 16 bits, reduced to 8"."""
    left_out: list[str] = field(default_factory=list)
    """One sentence for each item that cannot be used."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of files by suffix that are not images."""
    notes: list[str] = field(default_factory=list)
    """Further remarks for the user, one sentence each."""

    def messages(self) -> tuple[str, ...]:
        """Return the lines to print."""
        lines = list(self.notes)
        if self.converted:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.converted.items()))
            lines.append(f"converted: {kinds}")
        if self.ignored:
            most = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))[:EXAMPLES]
            lines.append("ignored: " + ", ".join(f"{number:,} {suffix}" for suffix, number in most))
        if self.left_out:
            more = f" And {len(self.left_out) - EXAMPLES:,} more." if len(self.left_out) > EXAMPLES else ""
            lines.append(f"{len(self.left_out):,} left out: {' '.join(self.left_out[:EXAMPLES])}{more}")
        return tuple(abbreviate(line) for line in lines)

    def check_left_out(self, first: int, used: int, where: str) -> None:
        """Check that most of the images could be used.

        Args:
            first: number of items in `left_out` before the images were read.
            used: number of images that were read.
            where: the folder or archive, for the message.

        Raises:
            UserError: more than a tenth of the images, and more than ten, were left out.
        """
        check_fraction(self.left_out[first:], used, where)


def check_fraction(left_out: Sequence[str], used: int, where: str) -> None:
    """Check that most of the images can be used.

    Args:
        left_out: one sentence for each image that cannot be used.
        used: number of the others.
        where: the folder or archive, for the message.

    Raises:
        UserError: more than a tenth of the images, and more than ten, are left out, and no run is resumed.
    """
    number = len(left_out)
    if active_rules().is_limited and number > max(FEW, MAX_FRACTION * (used + number)):
        raise UserError(
            f"{number:,} of {used + number:,} images in {where} cannot be used, and at most a tenth may be left out: "
            f"repair or remove them. {' '.join(left_out[:EXAMPLES])}"
        )
