"""Places in a source file where a mutation test changes the code, and the changes.

Not changed are annotations, messages, assertions, progress and log lines, type checks, and code that only measures
time or chooses hardware settings by it: a test of their exact content would copy them.
"""

from __future__ import annotations

import ast
import re
from typing import Any, NamedTuple

OPERATORS = {
    "<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"), "==": ("!=",), "!=": ("==",),
    "is": ("is not",), "is not": ("is",), "in": ("not in",), "not in": ("in",), "and": ("or",), "or": ("and",),
    "+": ("-",), "-": ("+",), "*": ("/",), "/": ("*",), "//": ("*",), "%": ("*",), "**": ("*",),
    "&": ("|",), "|": ("&",), "^": ("|",), "<<": (">>",), ">>": ("<<",),
}  # fmt: skip
_TOKEN = re.compile(r"not\s+in\b|is\s+not\b|\b(?:in|is|and|or)\b|<<|>>|\*\*|//|[<>=!]=|[-+*/%&|^<>]")

_PAIRS = (
    ("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("argmin", "argmax"), ("any", "all"), ("floor", "ceil"),
    ("zeros", "ones"), ("zeros_like", "ones_like"), ("sum", "mean"), ("train", "eval"),
)  # fmt: skip
FUNCTIONS = dict(_PAIRS) | {b: a for a, b in _PAIRS}
SYMMETRIC = frozenset({"min", "max", "minimum", "maximum", "isinstance", "hasattr", "getattr"})  # or a type error

# Functions and classes whose code only formats text, measures time or chooses hardware settings by time.
_SKIPPED_SCOPE = re.compile(
    r"_?(format_|describe_|print_|show_)\w+|\w+_(message|error)|timed|start_interval|LogInterval|choose_compute|"
    r"probe_\w+|progress_fields"
)
_SKIPPED_CALL = re.compile(r"_?(format_|describe_|print_|show_)\w+|print|progress|warn|start_interval|LogInterval")
_TIMING = re.compile(r"perf_counter|stopwatch|Stopwatch|\bclock\b|elapsed|interval|speed/")

KEY = ("file", "function", "original", "mutated")  # fields that identify a change also when lines move


class Mutant(NamedTuple):
    """One small change of a source file."""

    file: str  # relative to the repository
    start: int  # the bytes start:end are replaced
    end: int
    replacement: str
    line: int
    function: str  # qualified name; "" at the top of the module
    operator: str  # kind of change
    original: str  # the changed lines, with single spaces
    mutated: str

    @property
    def key(self) -> tuple[str, ...]:
        """Fields that identify the change also when lines move."""
        return self.file, self.function, self.original, self.mutated

    @property
    def id(self) -> str:
        """File, position and replacement."""
        return f"{self.file}:{self.start}-{self.end}:{self.replacement}:{self.original}"

    def apply(self, source: bytes) -> bytes:
        """Return the source with the change."""
        return source[: self.start] + self.replacement.encode() + source[self.end :]

    def to_dict(self) -> dict[str, Any]:
        """Fields of a line of results."""
        return {"id": self.id, **{name: getattr(self, name) for name in ("line", "operator", *KEY)}}


def find_changes(file: str, source: bytes) -> list[Mutant]:
    """Return all changes of a source file in the order of their positions, those included that do not compile.

    Args:
        file: name of the file, for the mutants.
        source: content of the file.
    """
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    unique = {(mutant.start, mutant.end, mutant.replacement): mutant for mutant in finder.mutants}
    return sorted(unique.values())


def find_mutants(file: str, source: bytes) -> list[Mutant]:
    """Return all mutants of a source file that can be compiled: those of `find_changes`."""
    return [mutant for mutant in find_changes(file, source) if _compiles(mutant.apply(source))]


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    """Collects the mutants of a syntax tree."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.line_starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]
        self.scope: list[str] = []
        self.mutants: list[Mutant] = []

    # ---- positions

    def start(self, node: Any) -> int:
        """Position of the first byte of a node."""
        return self.line_starts[int(node.lineno) - 1] + int(node.col_offset)

    def end(self, node: Any) -> int:
        """Position after the last byte of a node."""
        return self.line_starts[int(node.end_lineno) - 1] + int(node.end_col_offset)

    def text(self, node: Any) -> str:
        """Source code of a node."""
        return self.source[self.start(node) : self.end(node)].decode()

    def add(self, operator: str, start: int, end: int, replacement: str) -> None:
        """Add the mutant in which the bytes start:end are replaced."""
        first = self.source.rfind(b"\n", 0, start) + 1
        last = self.source.find(b"\n", end)
        before, after = self.source[first:start].decode(), self.source[end:last].decode()
        original, mutated = (
            " ".join((before + middle + after).split()) for middle in (self.source[start:end].decode(), replacement)
        )
        line, function = self.source.count(b"\n", 0, start) + 1, ".".join(self.scope)
        self.mutants.append(Mutant(self.file, start, end, replacement, line, function, operator, original, mutated))

    def add_operators(self, left: ast.AST, right: ast.AST) -> None:
        """Replace the operator between two nodes."""
        begin = self.end(left)
        between = self.source[begin : self.start(right)].decode()
        token = _TOKEN.search(between)
        if token and "#" not in between:
            for other in OPERATORS[" ".join(token[0].split())]:
                self.add("operator", begin + token.start(), begin + token.end(), other)

    def add_negation(self, test: ast.expr) -> None:
        """Negate a condition. For a comparison or a negation, another operator does the same."""
        negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        if not negated and not isinstance(test, ast.Compare):
            self.add("negation", self.start(test), self.end(test), f"not ({self.text(test)})")

    # ---- what is left out

    def visit(self, node: ast.AST) -> None:
        """Visit a node unless its code is left out."""
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr | ast.Return) and self.is_timing(
            node
        ):
            return
        if isinstance(node, ast.If | ast.IfExp) and re.search(r"TYPE_CHECKING|__name__", self.text(node.test)):
            return
        if isinstance(node, ast.Call) and _SKIPPED_CALL.fullmatch(self.called_name(node)):
            return
        super().visit(node)

    def is_timing(self, statement: ast.stmt) -> bool:
        """Return True if a simple statement is about time. Of a dictionary, only such items are left out."""
        has_dict = any(isinstance(node, ast.Dict) for node in ast.walk(statement))
        return not has_dict and _TIMING.search(self.text(statement)) is not None

    def called_name(self, call: ast.Call) -> str:
        """Last part of the name of a called function: "print" for run.print()."""
        return self.text(call.func).split(".")[-1]

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if not _TIMING.search((self.text(key) if key else "") + self.text(value)):
                self.visit(value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if _SKIPPED_SCOPE.fullmatch(node.name):
            return
        self.scope.append(node.name)
        for child in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(child)
        self.scope.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if _SKIPPED_SCOPE.fullmatch(node.name) or "Protocol" in map(self.text, node.bases):
            return
        self.scope.append(node.name)
        for child in node.body:
            self.visit(child)
        self.scope.pop()

    # ---- the changes

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, right in zip([node.left, *node.comparators], node.comparators):  # noqa: B905  (one is longer)
            self.add_operators(left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if "None" not in (self.text(node.left), self.text(node.right)):  # None occurs in types: Tensor | None
            self.add_operators(node.left, node.right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:]):  # noqa: B905  (one is longer)
            self.add_operators(left, right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        length = 4 if isinstance(node.op, ast.Not) else 1
        self.add("sign", self.start(node), self.start(node) + length, "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add("constant", self.start(node), self.end(node), str(not value))
        elif isinstance(value, int):
            self.add("constant", self.start(node), self.end(node), str(value + 1))
        elif isinstance(value, float):
            self.add("constant", self.start(node), self.end(node), repr(2 * value or 1.0))

    def visit_Call(self, node: ast.Call) -> None:
        name = self.called_name(node)
        if name in FUNCTIONS:
            self.add("function", self.end(node.func) - len(name), self.end(node.func), FUNCTIONS[name])
        if name not in SYMMETRIC:
            for left, right in zip(node.args, node.args[1:]):  # noqa: B905  (one is longer)
                self.add_swap(left, right)
        if len(node.args) >= 3:
            self.add_dropped_argument(node, node.args[-1])  # the last one is perhaps optional
        for keyword in node.keywords:
            self.add_dropped_argument(node, keyword)
        self.generic_visit(node)

    def add_swap(self, left: ast.expr, right: ast.expr) -> None:
        """Swap two arguments of the same kind: values of one object, or tensors with the same letters for the shape."""
        first, second = self.text(left), self.text(right)
        owners = [text.rpartition(".")[0] for text in (first, second)]
        shapes = [re.fullmatch(r"\w+_([a-zA-Z0-9]+)", text) for text in (first, second)]
        same_shape = shapes[0] and shapes[1] and shapes[0][1] == shapes[1][1]
        if first != second and (same_shape or (owners[0] == owners[1] != "")):
            between = self.source[self.end(left) : self.start(right)].decode()
            self.add("swapped arguments", self.start(left), self.end(right), second + between + first)

    def add_dropped_argument(self, call: ast.Call, argument: ast.expr | ast.keyword) -> None:
        """Drop an argument with the comma before or after it."""
        start, end = self.start(argument), self.end(argument)
        before = self.source[self.end(call.func) : start].rstrip()
        if before.endswith(b","):
            start = self.end(call.func) + len(before) - 1
        elif (comma := re.match(rb"\s*,\s*", self.source[end:])) is not None:
            end += comma.end()
        self.add("dropped argument", start, end, "")

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None:
                self.add("slice", self.start(bound), self.end(bound), "")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not _SKIPPED_CALL.fullmatch(self.called_name(node.value)):
            self.add("deleted statement", self.start(node), self.end(node), "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add_operators(node.target, node.value)
        self.add("deleted statement", self.start(node), self.end(node), "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign | ast.AnnAssign) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None:
            return
        # In a constructor the attribute would be missing, which any test notices.
        stored = any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
        if stored and self.scope[-1:] != ["__init__"]:
            self.add("deleted statement", self.start(node), self.end(node), "pass")
        for child in (*targets, node.value):
            self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit_Assign(node)

    def visit_If(self, node: ast.If | ast.While | ast.IfExp) -> None:
        self.add_negation(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.visit_If(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit_If(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self.add_negation(condition)
        self.generic_visit(node)
