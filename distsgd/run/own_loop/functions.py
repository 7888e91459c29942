"""The functions that steps are made with: the same on all ranks, and after a resume as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from distsgd.core.errors import RunFolderError
from distsgd.run.compared.digests import bounded
from distsgd.run.compared.identity import Identity
from distsgd.run.compared.reads import comparable
from distsgd.run.compared.substance import Substance

_SHOWN = 3


def code_of(function: Any) -> Any:
    """What a function is from one step to the next: a lambda is another object in each."""
    function = getattr(function, "func", function)  # of a partial
    function = getattr(function, "__func__", function)  # of a method
    return getattr(function, "__code__", type(function))


def _name_of(function: Any) -> str:
    function = getattr(function, "func", function)
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _texts_of(function: Any) -> dict[str, str]:
    """Of its code and of what this reads, but for the contents of arrays."""
    first = Substance(arrays=False)
    first.add("", function)
    second = Substance(first.written, arrays=False)
    second.add("", function)
    return {part.strip() or "itself": text for part, text in second.texts.items()}


@final
class Functions:
    """What the functions of a loop are, by their names: digests of their code and of what it reads.

    What a function reads may change from step to step, such as a number of the epoch. So it is described again for each
    checkpoint, and what has changed since then counts no longer. Arrays don't count: parameters are among them.

    before   what a checkpoint says of them
    """

    def __init__(self, before: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._before = {name: dict(parts) for name, parts in (before or {}).items()}
        self._parts = dict(self._before)
        self._last: dict[Any, Any] = {}
        """Of each code the function that was given last: a lambda may close over another value in each step."""

    def is_new(self, function: Any) -> bool:
        """Whether no step has been made with this code here."""
        code = code_of(function)
        if code not in self._last:
            return True
        self._last[code] = function
        return False

    def described(self, function: Any) -> tuple[dict[str, str], Identity]:
        """(its description, the same for a comparison of ranks)."""
        identity, texts = Identity(), _texts_of(function)
        for part, text in texts.items():
            identity.say(f"loss_and_grad {part}", text)
        return bounded(texts), identity

    def compare(self, function: Any, parts: dict[str, str]) -> None:
        """Takes note of a function that is new here. Raises RunFolderError where the run had another one."""
        name, names = _name_of(function), {_name_of(known) for known in self._last.values()}
        if self._before and name not in names and (name in self._before or not names):
            then = self._before.get(name, {"its name": next(iter(self._before))})
            differing = [part for part, text in then.items() if parts.get(part) != text]
            if differing and all(map(comparable, then.values())):
                shown = ", ".join(differing[:_SHOWN]) + (", …" if len(differing) > _SHOWN else "")
                raise RunFolderError(
                    f"step: the run was begun with another loss_and_grad (different: {shown}); give it the same, begin "
                    "anew in another folder, or, where another one is meant from here on, give check_function=False to "
                    "resume or load_state_dict"
                )
        self._keep(name, parts)
        self._last[code_of(function)] = function

    def document(self) -> dict[str, dict[str, str]] | None:
        """What a checkpoint says of them."""
        for function in self._last.values():
            self._keep(_name_of(function), bounded(_texts_of(function)))
        return self._parts or None

    def _keep(self, name: str, parts: Mapping[str, str]) -> None:
        """Of what is known of a function, what is still so."""
        known = self._parts.get(name, parts)
        self._parts[name] = {part: text for part, text in known.items() if parts.get(part) == text}
