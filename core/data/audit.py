"""Counts of files and images that a reader converts, ignores and leaves out, for messages."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from zerokara.core.config import abbreviate

EXAMPLES = 5  # items that a message names


@dataclass
class Audit:
    """Record of one reading; empty if every file was used as it is."""

    converted: Counter[str] = field(default_factory=Counter)
    """Number of images by kind of conversion, such as "of 16 bits, reduced to 8"."""
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
