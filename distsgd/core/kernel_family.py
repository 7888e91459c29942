"""Families of kernels: what has the same bits on every CPU that can run it, and how NumPy is made to take it.

A matrix product's bits depend on OpenBLAS's kernels, and those of functions such as exp on what NumPy was compiled for.
Both choose by the CPU as they load, and both obey a variable. This module imports nothing heavy, and never NumPy before
it is loaded.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distsgd.core.version import numpy_version

AUTO = "auto"
CORE_VARIABLE, NUMPY_VARIABLE = "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES"
_OURS = "DISTSGD_KERNELS"
"""What a process of distsgd has set these variables to, which isn't the user's choice: its children choose anew."""
CPUINFO = "/proc/cpuinfo"
_ONE_CPU = 1 << 14  # characters
_BETWEEN = "+numpy-"
_OTHER_LIBRARIES = {"mkl": "MKL_Get_Max_Threads", "blis": "bli_arch_query_id"}
"""BLAS libraries besides OpenBLAS, by a function that only they have."""
NOT_OPENBLAS = (*_OTHER_LIBRARIES, "unknown")
"""Families of a BLAS whose kernels can't be chosen."""
_CORE_FUNCTIONS = ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename64_",
                   "openblas_get_corename", "openblas_get_corename_64", "openblas_get_corename64")  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A family that can be chosen.

    flags     what /proc/cpuinfo calls the instructions that it needs
    core      what OpenBLAS is asked for
    reported  what OpenBLAS then calls its kernels, on one CPU or another
    features  NumPy's names of what this family has and the one below it hasn't, before NumPy 2.4
    levels    the same names since NumPy 2.4
    """

    name: str
    machines: tuple[str, ...]
    flags: frozenset[str]
    core: str
    reported: tuple[str, ...]
    features: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()


_X86, _ARM = ("x86_64", "AMD64"), ("aarch64", "arm64")
_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_OLD_AVX512 = ("AVX512F", "AVX512CD", "AVX512_KNL", "AVX512_KNM", "AVX512_SKX")
FAMILIES = (
    Family("avx512", _X86, _V4, "SkylakeX", ("skylakex", "cooperlake", "sapphirerapids"), _OLD_AVX512, ("X86_V4",)),
    Family("avx2", _X86, _V3, "Haswell", ("haswell", "zen"), ("AVX", "F16C", "FMA3", "AVX2"), ("X86_V3",)),
    Family("sse42", _X86, _V2, "Nehalem", ("nehalem",)),
    Family("arm64", _ARM, frozenset({"asimd"}), "ARMV8", ("armv8",)),
)
"""From the fastest to that which most CPUs can run."""
NAMES = {family.name: family for family in FAMILIES}
_NEWER: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {
    _X86: (("AVX512_CLX", "AVX512_CNL", "AVX512_ICL", "AVX512_SPR"), ("AVX512_ICL", "AVX512_SPR")),
    _ARM: (("ASIMDHP", "ASIMDDP", "ASIMDFHM", "SVE"),) * 2,
}
"""NumPy's names of what only some CPUs of a family have, before NumPy 2.4 and since: no family has them."""


@dataclass(frozen=True)
class Host:
    """What one rank's host can run, and what its environment asks for.

    flags   of the CPU; None where the system doesn't show them
    core    OPENBLAS_CORETYPE, as the user has set it
    loaded  whether NumPy has loaded, and chosen, before
    """

    name: str = ""
    machine: str = ""
    flags: frozenset[str] | None = None
    core: str = ""
    loaded: bool = False

    def lacks(self, name: str) -> tuple[str, ...]:
        """What this CPU would need to run a family; empty where it can, or where that isn't known."""
        missing: set[str] = set()
        for family in _parts(name):
            if self.machine not in family.machines:
                missing.add(f"an {family.machines[0]} CPU")
            elif self.flags is not None:
                missing |= family.flags - self.flags
        return tuple(sorted(missing))

    def families(self) -> list[str]:
        """The families that this CPU is known to run, the fastest first."""
        return [family.name for family in FAMILIES if self.flags is not None and not self.lacks(family.name)]


def this_host() -> Host:
    """The host of this process."""
    from distsgd.core.deferred_numpy import numpy_is_loaded

    fields: dict[str, str] = {}
    for line in _first_cpu().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features"))
    return Host(
        platform.node(),
        platform.machine(),
        None if flags is None else frozenset(flags.split()),
        "" if CORE_VARIABLE in _ours() else os.environ.get(CORE_VARIABLE, ""),
        numpy_is_loaded(),
    )


def _first_cpu() -> str:
    """What the system shows of its first CPU: to write of hundreds takes it long."""
    try:
        with open(CPUINFO, encoding="utf-8", errors="replace") as file:
            return file.read(_ONE_CPU).partition("\n\n")[0]
    except OSError:
        return ""


def best_of(hosts: Iterable[Host]) -> list[str]:
    """The families that all hosts can run, the fastest first."""
    found = [host.families() for host in hosts]
    return [name for name in found[0] if all(name in names for names in found)]


def family_of_core(core: str) -> str:
    """The family of OpenBLAS's kernels of this name; one that isn't known is a family of its own."""
    known = (family.name for family in FAMILIES if core.lower() in family.reported)
    return next(known, core.lower())


def joined(blas: str, numpy: str) -> str:
    """The family's name: that of both parts where they are one."""
    return blas if blas == numpy else f"{blas}{_BETWEEN}{numpy}"


def is_name(text: str) -> bool:
    """Whether this names a family: one that can be chosen, or one of parts that don't belong together."""
    blas, _, numpy = text.partition(_BETWEEN)
    return text in NAMES or (blas.isalnum() and numpy.isalnum())


def settings(name: str) -> dict[str, str]:
    """The variables that have NumPy load with this family."""
    blas, numpy = _names(name)
    core = NAMES[blas].core if blas in NAMES else "" if blas in NOT_OPENBLAS else blas
    found = {CORE_VARIABLE: core} if core else {}
    return found | {NUMPY_VARIABLE: " ".join(_without(numpy))}


def exports(name: str) -> str:
    """The same variables as a shell takes them, for a sentence."""
    return " ".join(f"{key}={value if value.isalnum() else repr(value)}" for key, value in settings(name).items())


def apply(name: str) -> None:
    """Load NumPy with this family. What the user has set in the environment stays as it is."""
    from distsgd.core.deferred_numpy import load_numpy

    users = {NUMPY_VARIABLE} if "NPY_ENABLE_CPU_FEATURES" in os.environ else set()  # NumPy refuses both
    users |= os.environ.keys() - _ours()
    chosen = {variable: value for variable, value in settings(name).items() if variable not in users}
    os.environ.update(chosen, **{_OURS: "\n".join(f"{variable}={value}" for variable, value in chosen.items())})
    load_numpy()


def _ours() -> set[str]:
    """The variables that a parent process has set, and not the user."""
    pairs = (line.partition("=") for line in os.environ.get(_OURS, "").splitlines())
    return {variable for variable, _, value in pairs if os.environ.get(variable) == value}


def use_best() -> None:
    """Choose this host's best family, where NumPy hasn't loaded: for a process that no other computes with."""
    host = this_host()
    if host.families() and not (host.loaded or host.core):
        apply(host.families()[0])


def loaded_family() -> str:
    """The family that NumPy has loaded with."""
    import numpy as np

    umath: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    features: Mapping[str, bool] = getattr(umath, "__cpu_features__", {})
    return joined(_loaded_blas(umath.__file__), _level(features))


def _level(features: Mapping[str, bool]) -> str:
    """The family of the functions that NumPy computes with these features of the CPU."""
    machine = platform.machine()
    for family in FAMILIES:
        if machine in family.machines:
            names = family.levels[:1] if "X86_V2" in features else family.features[-1:]
            if all(features.get(name) for name in names):
                return family.name
    return "".join(filter(str.isalnum, machine)) or "unknown"


def _loaded_blas(module: str) -> str:
    """The family of the BLAS's kernels that NumPy's own module has been linked to."""
    import ctypes

    try:
        library = ctypes.CDLL(module)  # loaded already: this finds the names in it, and in what it is linked to
    except OSError:
        return "unknown"
    for function in _CORE_FUNCTIONS:
        if hasattr(library, function):
            ask = getattr(library, function)
            ask.restype = ctypes.c_char_p
            return family_of_core(ask().decode())
    named = (name for name, function in _OTHER_LIBRARIES.items() if hasattr(library, function))
    return next(named, "unknown")


def _names(name: str) -> tuple[str, str]:
    """The families of the BLAS and of NumPy's functions."""
    blas, between, numpy = name.partition(_BETWEEN)
    return blas, numpy if between else blas


def _parts(name: str) -> list[Family]:
    return [NAMES[part] for part in dict.fromkeys(_names(name)) if part in NAMES]


def _without(level: str) -> list[str]:
    """NumPy's names of all that a family hasn't, whether or not this CPU has it."""
    if level not in NAMES:
        return []
    family, since = NAMES[level], tuple(map(int, numpy_version().split(".")[:2])) >= (2, 4)
    above = [other for other in FAMILIES[: FAMILIES.index(family)] if other.machines == family.machines]
    names = [name for other in reversed(above) for name in (other.levels if since else other.features)]
    return names + list(_NEWER[family.machines][since])


def other_than(wanted: str, loaded: str) -> str:
    """Why NumPy has loaded with another family, and what to do."""
    if loaded.partition("+")[0] in NOT_OPENBLAS and wanted.partition("+")[0] != loaded.partition("+")[0]:
        return f"this NumPy's BLAS isn't OpenBLAS ({loaded}), so that its kernels can't be chosen; leave it out"
    return (
        f"NumPy has loaded with {loaded}, which it chooses once; start Python with {exports(wanted)} in its environment"
    )
