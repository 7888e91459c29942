"""NumPy that waits: a command imports it at once, and it loads when the kernels are chosen, or at its first use.

NumPy and its BLAS choose their kernels once, as they load. Which ones a run needs is in its options, in its folder and
in the CPUs of all hosts, and most modules that read those import NumPy.
"""

from __future__ import annotations

import sys
import threading
import warnings
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

from distsgd.core.errors import ConfigurationError

_OF_IMPORT = {"__spec__", "__class__"}
"""What an import statement reads of a module that is there."""
_BEGUN = "__distsgd_loads__"
"""The name in it that says that a thread has begun to load it."""
_LOCK = threading.RLock()
"""Held by the thread that loads NumPy, whose modules read one another's names meanwhile; other threads wait."""


class _Deferred(ModuleType):
    """The module `numpy` before it is loaded; it becomes an ordinary module with the first access to a name in it."""

    def __getattribute__(self, name: str) -> Any:
        if name not in _OF_IMPORT:
            with _LOCK:
                _load(self)
        return ModuleType.__getattribute__(self, name)


def _load(module: ModuleType) -> None:
    """Load NumPy into its module, unless this thread does so already, or another has done it."""
    state = ModuleType.__getattribute__(module, "__dict__")
    if type(module) is not _Deferred or state.get(_BEGUN):
        return
    state[_BEGUN] = True
    try:
        state["__spec__"].loader.exec_module(module)
    except BaseException:
        sys.modules.pop("numpy", None)
        raise
    finally:
        module.__class__ = ModuleType  # type: ignore[assignment]  # not before: others would find half of it
        state.pop(_BEGUN, None)


def defer_numpy() -> None:
    """Have `import numpy` load nothing yet. Without effect where NumPy is loaded, or isn't installed."""
    spec = None if "numpy" in sys.modules else find_spec("numpy")
    if spec is not None:
        deferred = module_from_spec(spec)
        deferred.__class__ = _Deferred
        sys.modules["numpy"] = deferred


def numpy_is_loaded() -> bool:
    """Whether NumPy has chosen its kernels."""
    return type(sys.modules.get("numpy", _Deferred)) is not _Deferred and "numpy" in sys.modules


def load_numpy() -> None:
    """Load NumPy with the kernels that the environment names. Raises ConfigurationError where it can't be so limited.

    NumPy warns of features that it doesn't know, or that the CPU lacks; neither matters to anybody.
    """
    import numpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)
        try:
            numpy.ndarray  # noqa: B018 (loads it)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise ConfigurationError(
                f"kernels: this NumPy is built for newer CPUs alone, and can't be limited to others ({text}); leave "
                "--kernels out, and export NPY_DISABLE_CPU_FEATURES= (empty)"
            ) from None
