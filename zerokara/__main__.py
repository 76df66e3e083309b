"""The console command `zerokara`: list the programs, or run one of them.

zerokara                      # list the programs
zerokara dqn --env ALE/Pong-v5   # the same as: python -m zerokara.agents.dqn --env ALE/Pong-v5
zerokara generative.export runs/digits   # two programs are called export
"""

from __future__ import annotations

import runpy
import sys
from difflib import get_close_matches

from zerokara.core import programs


def main() -> None:
    """Run the program that the first word names, with the words after it."""
    names = {short: module for module, short in programs.short_names().items()}
    names |= {module: module for module in programs.PROGRAMS}
    if len(sys.argv) < 2 or sys.argv[1] in {"-h", "--help", "help"}:
        print(overview())
        return
    word = sys.argv.pop(1)
    if word not in names:
        near = [short for short in names if short.split(".")[-1] == word] or get_close_matches(word, names, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "zerokara --help lists the programs."
        print(f"error: There is no program {word!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    programs.by_console_command = True
    # alter_sys: the program is __main__ for everyone, so that processes which it spawns can import it.
    runpy.run_module(f"zerokara.{names[word]}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """The programs, by package, with what each does."""
    short = programs.short_names()
    width = max(map(len, short.values()))
    lines = ["zerokara <program> [options]; zerokara <program> --help explains one."]
    for package in dict.fromkeys(module.split(".")[0] for module in programs.PROGRAMS):
        lines += ["", f"{package}:"]
        lines += [
            f"  {short[module]:{width}}  {text}"
            for module, text in programs.PROGRAMS.items()
            if module.split(".")[0] == package
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
