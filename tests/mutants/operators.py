# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made wrong: what mutmut knows of, without what is only said, and with what it leaves alone.

More than it does by itself:
- a call or a `raise` that stands for itself is left out, `with f():` is entered without f;
- a bare condition (`if x:`, `[... if x]`) is turned round;
- properties and context managers: mutmut passes decorated functions over, and a lock is one.

Less: prose (a string with a blank in it), what goes into an error, a log or a `Result`, and the errors that
`contextlib.suppress` names. Tests that hold each word would hinder whoever wants to say it better.

mutmut has no interface for that, so its insides are changed, which is why its version is pinned in the Makefile.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

# Not there for mypy where only `make test` has made the environment.
cst: Any = importlib.import_module("libcst")
mutators: Any = importlib.import_module("mutmut.mutation.mutators")
file_mutation: Any = importlib.import_module("mutmut.mutation.file_mutation")

TALK = ("log.", "Result", "advice.", "outcome", "print", "contextlib.suppress")
BARE = ("property", "contextlib.contextmanager")


def install(wanted: Callable[[str, str], bool]) -> None:
    """Have mutmut work so, in functions of a file whose name (`f` or `Class.f`) is wanted."""
    ours = {mutators.operator_string: _prose_left_alone, mutators.operator_arg_removal: _arguments,
            mutators.operator_assignment: _assignments}
    known = [(kind, ours.get(operator, operator)) for kind, operator in mutators.mutation_operators]
    mutators.mutation_operators[:] = [
        *known, (cst.Expr, _left_out), (cst.Raise, _left_out), (cst.If, _turned_round), (cst.CompIf, _turned_round),
        (cst.With, _not_entered),
    ]
    visitor = file_mutation.MutationVisitor
    visit, skip = visitor.on_visit, visitor._skip_node_and_children

    def on_visit(self: Any, node: Any) -> bool:
        return bool(visit(self, node)) and not isinstance(node, cst.Raise)

    def skips(self: Any, node: Any) -> bool:
        if isinstance(node, cst.Expr) and _is_talk(node.value):
            return True
        if isinstance(node, cst.Call) and _is_talk(node):
            return True
        if isinstance(node, cst.FunctionDef) and _is_bare(node):
            return False
        return bool(skip(self, node))

    visitor.on_visit, visitor._skip_node_and_children = on_visit, skips

    create, arrange = file_mutation.create_mutations, file_mutation.function_trampoline_arrangement

    def create_wanted(file: str, *rest: Any) -> Any:
        module, mutations, *ignored = create(file, *rest)
        names = {id(function): name for name, function in _functions(module)}
        kept = [each for each in mutations
                if (name := names.get(id(each.contained_by_top_level_function))) and wanted(file, name)]
        return module, kept, *ignored

    def arrange_bare(function: Any, mutants: Iterable[Any], class_name: str | None) -> Any:
        """The decorators stay where callers find them, and each version below is a plain function."""
        if not _is_bare(function):
            return arrange(function, mutants, class_name)
        first, nodes, last, names = arrange(function.with_changes(decorators=[]), mutants, class_name)
        outside = nodes[0].with_changes(decorators=[*function.decorators, *nodes[0].decorators])
        return first, [outside, *nodes[1:]], last, names

    file_mutation.create_mutations, file_mutation.function_trampoline_arrangement = create_wanted, arrange_bare


def _functions(module: Any) -> Iterator[tuple[str, Any]]:
    for each in module.body:
        if isinstance(each, cst.FunctionDef):
            yield each.name.value, each
        elif isinstance(each, cst.ClassDef):
            for inner in each.body.body:
                if isinstance(inner, cst.FunctionDef):
                    yield f"{each.name.value}.{inner.name.value}", inner


def _code(node: Any) -> str:
    return str(cst.Module([]).code_for_node(node))


def _is_talk(node: Any) -> bool:
    return isinstance(node, cst.Call) and _code(node.func).startswith(TALK)


def _is_bare(function: Any) -> bool:
    return len(function.decorators) == 1 and _code(function.decorators[0].decorator) in BARE


def _prose_left_alone(node: Any) -> Iterable[Any]:
    """Of a word, a wrong one: case alone tells nothing more."""
    if isinstance(node, cst.SimpleString) and " " not in node.value:
        yield from list(mutators.operator_string(node))[:1]


def _assignments(node: Any) -> Iterable[Any]:
    if not isinstance(node.value, cst.FormattedString | cst.ConcatenatedString):
        yield from mutators.operator_assignment(node)


def _arguments(node: Any) -> Iterable[Any]:
    """Of those that are left out, what has a name, and the last: without another the type checker stops it."""
    for changed in mutators.operator_arg_removal(node):
        left = len(changed.args) == len(node.args)
        if left or changed.args == node.args[:-1] or _names_in(changed) != _names_in(node):
            yield changed


def _names_in(call: Any) -> list[str]:
    return [each.keyword.value for each in call.args if each.keyword]


def _left_out(node: Any) -> Iterable[Any]:
    if isinstance(node, cst.Raise) or isinstance(node.value, cst.Call):
        yield cst.Pass()


def _turned_round(node: Any) -> Iterable[Any]:
    """Comparisons and so on mutmut turns itself."""
    if not isinstance(node.test, cst.Comparison | cst.UnaryOperation | cst.BooleanOperation | cst.NamedExpr):
        inner = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        turned = cst.UnaryOperation(cst.Not(), inner, lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=turned)


def _not_entered(node: Any) -> Iterable[Any]:
    items: Sequence[Any] = node.items
    for number, item in enumerate(items):
        if item.asname is None and isinstance(item.item, cst.Call) and not _is_talk(item.item):
            nothing = item.with_changes(item=cst.parse_expression("__import__('contextlib').nullcontext()"))
            yield node.with_changes(items=[*items[:number], nothing, *items[number + 1:]])
