"""Whether all ranks were given the same command line."""

from __future__ import annotations

from collections.abc import Sequence

from distsgd.core.files import read_regular
from distsgd.parallel.communicator import Communicator
from distsgd.run.compared.agreement import add_versions, agreed
from distsgd.run.compared.digests import digest
from distsgd.run.compared.identity import Identity

_CODE_LIMIT = 10_000_000  # bytes


def agree_on_command(communicator: Communicator, arguments: Sequence[str]) -> None:
    """Raises ConfigurationError where ranks have other command lines, or other files of code that these name.

    Collective. Another order of options, and `--name=value` for `--name value`, are the same.
    """
    agreed(communicator, "the command line", lambda: (None, command_identity(arguments)))


def command_identity(arguments: Sequence[str]) -> Identity:
    """What a command was given: options by name, and the contents of the user's own code."""
    identity = Identity()
    add_versions(identity)
    for name, values in sorted(_options(arguments).items()):
        identity.say(name, repr(" ".join(values)) if values else "given")
        for file, _, function in (value.rpartition(":") for value in values):
            if file.endswith(".py") and function.isidentifier():
                identity.say(f"{name}'s file {file}", _file_text(file))
    return identity


def _file_text(file: str) -> str:
    try:
        return f"contents {digest(read_regular(file, _CODE_LIMIT).hex())}"
    except (OSError, ValueError):
        return "not readable"


def _options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The words after each option, and under "arguments" those before the first."""
    found: dict[str, list[str]] = {}
    name = "arguments"
    for word in arguments:
        is_option = word.startswith("-") and not word[1:2].isdigit() and word[1:2] != "."
        if is_option:
            option, equals, value = word.partition("=")
            name = {"--lr": "--learning-rate", "-o": "--out"}.get(option, option.replace("_", "-"))
            found.setdefault(name, []).extend([value] if equals else [])
        else:
            found.setdefault(name, []).append(word)
    return found
