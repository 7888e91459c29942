"""What a function of no source reads and writes outside of itself, from its bytecode.

Any use may change an object, but constant keys, operators and methods that only read.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Callable
from typing import Any, TypeAlias

from distsgd.run.compared import digests

Paths: TypeAlias = list[tuple[str, tuple[tuple[str, Any], ...]]]
"""Names, each with the attributes (".", name) and constant keys ("[", key) that follow."""


def uses_in(code: types.CodeType, is_change: Callable[[str], bool]) -> tuple[Paths, Paths, Paths]:
    """Paths that are read, that get another value, and whose objects may be changed in place.

    `is_change` says whether a method of this name changes its object.
    """
    reads: Paths = []
    binds: Paths = []
    changes: Paths = []
    for one in (code, *digests.codes_in(code)):
        instructions = list(dis.get_instructions(one))
        for place, instruction in enumerate(instructions):
            name, kind = instruction.argval, instruction.opname
            outer = kind.endswith("_DEREF") and name in code.co_freevars
            if kind in ("STORE_GLOBAL", "DELETE_GLOBAL") or (kind == "STORE_DEREF" and outer):
                binds.append((name, ()))
            elif kind == "STORE_ATTR" and code.co_argcount:
                binds.append((code.co_varnames[0], ((".", name),)))
            elif kind in ("LOAD_GLOBAL", "LOAD_NAME") or (kind == "LOAD_DEREF" and outer):
                steps, rest = _steps(instructions[place + 1 :])
                reads.append((name, steps))
                method = bool(steps) and steps[-1][0] == "." and not is_change(steps[-1][1])
                if not method and not _is_operand(rest):
                    changes.append((name, steps))
    missed = [name for name in code.co_freevars if all(name != known for known, _ in reads)]
    return reads + [(name, ()) for name in missed], binds, changes


def _steps(rest: list[dis.Instruction]) -> tuple[tuple[tuple[str, Any], ...], list[dis.Instruction]]:
    """The steps that follow the loading of a name, and the instructions after them."""
    steps: list[tuple[str, Any]] = []
    while len(rest) > 1:
        if rest[0].opname in ("LOAD_ATTR", "LOAD_METHOD"):
            steps.append((".", rest[0].argval))
            rest = rest[1:]
        elif rest[0].opname in ("LOAD_CONST", "LOAD_SMALL_INT") and _is_item(rest[1]):
            steps.append(("[", rest[0].argval))
            rest = rest[2:]
        else:
            break
    return tuple(steps), rest


def _is_operand(rest: list[dis.Instruction]) -> bool:
    """Whether what was loaded is the second operand of an operator, or the first with a simple second one."""
    return any(map(_is_operator, rest[:1])) or (
        len(rest) > 1 and rest[0].opname.startswith(("LOAD_FAST", "LOAD_CONST")) and _is_operator(rest[1])
    )


def _is_item(instruction: dis.Instruction) -> bool:
    return instruction.opname == "BINARY_SUBSCR" or instruction.argrepr == "[]"


def _is_operator(instruction: dis.Instruction) -> bool:
    return instruction.opname == "BINARY_OP" and not instruction.argrepr.endswith(("=", "[]"))
