"""Single-line mutants of a source file: every way in which one of a few operators changes one expression.

An operator changes what a slip of a programmer changes: a comparison or its boundary, a sign, a constant by
one, an operand of a conjunction, a default in place of an argument, a bound of a slice, an order, a returned
value, a statement. Texts, type hints, decorators, docstrings, log lines and errors are left alone.
"""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SWAPPED = {
    ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"),
    ast.Eq: ("!=",), ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",),
    ast.NotIn: ("in",), ast.Add: ("-",), ast.Sub: ("+",), ast.Mult: ("/",), ast.Div: ("*",),
    ast.FloorDiv: ("*",), ast.Mod: ("//",), ast.BitAnd: ("|",), ast.BitOr: ("&",),
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
SILENT = {"log", "_LOG", "logger", "logging", "warnings", "print", "Progress", "bar", "progress"}
"""A call of these says something, and does nothing else."""
NOT_DROPPED = {"strict", "progress"}
"""Arguments that change nothing that is right: `strict` is an assertion of the caller's."""
LARGEST = 16
"""Larger integers are sizes of blocks and limits that were chosen: one more or less is as good."""


@dataclass(frozen=True, order=True)
class Mutant:
    """One change.

    Attributes:
        path: of the file, from the root of the tree.
        line: from 1.
        start: column at which the replaced text begins, in bytes of UTF-8.
        end: where it ends.
        operator: what kind of change it is.
        new: the text that takes its place.
    """

    path: str
    line: int
    start: int
    end: int
    operator: str
    new: str

    def applied(self, source: str) -> str:
        """The source with the change."""
        lines = source.encode().split(b"\n")
        text = lines[self.line - 1]
        lines[self.line - 1] = text[: self.start] + self.new.encode() + text[self.end :]
        return b"\n".join(lines).decode()

    def shown(self, source: str) -> tuple[str, str]:
        """The line as it is, and as it would be."""
        return tuple(text.split("\n")[self.line - 1].strip() for text in (source, self.applied(source)))


def mutants_of(source: str, path: str) -> list[Mutant]:
    """Every change of a file, in order; some may not parse, or to the same: see `is_other`."""
    found = (_changes(node, source) for node in _mutable(ast.parse(source)))
    return sorted(
        {Mutant(path, *place, operator, new) for changes in found for place, operator, new in changes}
    )


def is_other(mutant: Mutant, source: str) -> bool:
    """Whether the change parses, and to something else than the source."""
    try:
        return ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def sample(root: Path, folders: Sequence[str], n: int, seed: int) -> list[Mutant]:
    """One mutant on each of `n` lines that are drawn at random out of all that have any.

    Of a line's mutants every operator is as likely as every other.
    """
    sources: dict[str, str] = {}
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for folder in folders:
        for file in sorted((root / folder).glob("**/*.py")):
            path = file.relative_to(root).as_posix()
            sources[path] = file.read_text(encoding="utf-8")
            for mutant in mutants_of(sources[path], path):
                lines.setdefault((path, mutant.line), []).append(mutant)
    draw, drawn = random.Random(seed), []
    for place in draw.sample(sorted(lines), len(lines)):
        if len(drawn) == n:
            break
        found = lines[place]
        while found:
            operator = draw.choice(sorted({mutant.operator for mutant in found}))
            mutant = draw.choice([mutant for mutant in found if mutant.operator == operator])
            if is_other(mutant, sources[place[0]]):
                drawn.append(mutant)
                break
            found = [other for other in found if other != mutant]
    return drawn


def _mutable(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one that may be changed."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_left_alone(child):
                continue
            yield child
            yield from _mutable(child)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring, or `...`
    call = node.value if isinstance(node, ast.Expr) else node
    return isinstance(call, ast.Call) and _root(call.func) in SILENT


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


Place = tuple[int, int, int]


def _place(node: ast.AST) -> Place | None:
    """Line, first and last column of what stands on one line."""
    if getattr(node, "lineno", None) is None or node.lineno != node.end_lineno:
        return None
    return node.lineno, node.col_offset, node.end_col_offset


def _between(left: ast.AST, right: ast.AST) -> Place | None:
    """Where the operator between two operands stands, blanks included."""
    if left.end_lineno != right.lineno:
        return None
    return left.end_lineno, left.end_col_offset, right.col_offset


def _changes(node: ast.AST, source: str) -> Iterator[tuple[Place, str, str]]:
    """(place, operator, new text) of the changes of one node."""
    for change in _all_changes(node, source):
        if change[0] is not None:
            yield change


def _all_changes(node: ast.AST, source: str) -> Iterator[tuple[Place | None, str, str]]:
    def text(part: ast.AST) -> str:
        return ast.get_source_segment(source, part)

    where = _place(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for new in SWAPPED[type(node.ops[0])]:
            yield _swapped(node.left, node.comparators[0], source, new), "comparison", f" {new} "
    if isinstance(node, ast.BinOp):
        for new in SWAPPED.get(type(node.op), ()):
            yield _swapped(node.left, node.right, source, new), "arithmetic", f" {new} "
        if isinstance(node.op, ast.BitAnd | ast.BitOr | ast.Mult | ast.Add | ast.Sub):
            yield where, "operand dropped", text(node.left)
        if isinstance(node.op, ast.BitAnd | ast.BitOr | ast.Mult | ast.Add):
            yield where, "operand dropped", text(node.right)
    if isinstance(node, ast.AugAssign) and where:
        yield where, "statement removed", "pass"
        yield where, "assignment for update", f"{text(node.target)} = {text(node.value)}"
    if isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            new = "or" if isinstance(node.op, ast.And) else "and"
            yield _swapped(left, right, source, new), "conjunction", f" {new} "
        for value in node.values if len(node.values) == 2 else ():
            yield where, "operand dropped", f"({text(value)})"
    if isinstance(node, ast.UnaryOp):
        yield where, "unary removed", f"({text(node.operand)})"
    if isinstance(node, ast.Constant):
        yield from _of_constant(node, where)
    if isinstance(node, ast.Return) and node.value is not None and where and text(node.value) != "None":
        yield where, "nothing returned", "return None"
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield _place(node.test), "condition", "False"
        if not isinstance(node, ast.While):
            yield _place(node.test), "condition", "True"
    if isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield _place(test), "condition", "True"
    if isinstance(node, ast.Call) and where:
        yield from _of_call(node, where, text, source)
    if isinstance(node, ast.Slice):
        for bound in (node.lower, node.upper):
            if bound is not None:
                yield _place(bound), "bound", f"({text(bound)}) + 1"
                yield _place(bound), "bound", ""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield where, "statement removed", "pass"
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        yield where, "statement removed", "pass"
    if isinstance(node, ast.Break | ast.Continue):
        yield where, "statement removed", "pass"


def _swapped(left: ast.AST, right: ast.AST, source: str, new: str) -> Place | None:
    """Where an operator stands that is between its operands without a bracket."""
    place = _between(left, right)
    if place is None:
        return None
    line = source.encode().split(b"\n")[place[0] - 1][place[1] : place[2]]
    return None if b"(" in line or b")" in line else place


def _of_constant(node: ast.Constant, where: Place | None) -> Iterator[tuple[Place | None, str, str]]:
    if isinstance(node.value, bool):
        yield where, "constant", str(not node.value)
    elif isinstance(node.value, float) or (isinstance(node.value, int) and abs(node.value) <= LARGEST):
        yield where, "constant", repr(node.value + 1)
        yield where, "constant", f"({node.value - 1!r})"


def _of_call(node: ast.Call, where: Place, text, source: str) -> Iterator[tuple[Place | None, str, str]]:
    for keyword in node.keywords:
        if (
            keyword.arg not in (None, *NOT_DROPPED)
            and keyword.value.lineno == keyword.value.end_lineno == keyword.lineno
        ):
            line = source.encode().split(b"\n")[keyword.lineno - 1]
            end = keyword.end_col_offset
            end += len(line[end:]) - len(line[end:].lstrip(b" ,"))
            yield (keyword.lineno, keyword.col_offset, end), "default for argument", ""
    name = node.func
    short = name.id if isinstance(name, ast.Name) else getattr(name, "attr", "")
    if short in NAMES and name.lineno == name.end_lineno:
        yield (name.end_lineno, name.end_col_offset - len(short), name.end_col_offset), "name", NAMES[short]
    if short in ("sorted", "argsort", "lexsort"):
        yield where, "order reversed", f"{text(node)}[::-1]"
    if short in ("unique", "sorted", "abs") and node.args:
        yield where, "call left out", text(node.args[0])
