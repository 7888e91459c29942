"""The version of distsgd, which checkpoints, summaries and `--version` report, and that of the NumPy beside it."""

__version__ = "0.1.0"


def numpy_version() -> str:
    """The version of the NumPy that `import numpy` loads, which it needn't have loaded for that."""
    import re
    import sys
    from importlib.util import find_spec
    from pathlib import Path

    if "numpy" in sys.modules:
        names = object.__getattribute__(sys.modules["numpy"], "__dict__")  # a deferred NumPy has none, and stays so
        if "__version__" in names:
            return str(names["__version__"])
    spec = find_spec("numpy")
    try:
        text = "" if spec is None else Path(str(spec.origin)).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"""^(?:short_)?version = ["'](\d[^"']*)""", text, re.MULTILINE)
    if found is not None:
        return found[1]
    from importlib.metadata import version

    return version("numpy")
