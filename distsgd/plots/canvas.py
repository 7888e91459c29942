"""The interface to matplotlib: whether it is installed, one style, and files whose bytes don't depend on the time.

Figures are made without pyplot, so no window system is used and no setting of the user's process changes.
"""

from __future__ import annotations

import io
import os
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.core.errors import ConfigurationError, RunFolderError, pip_install
from distsgd.core.files import make_folders
from distsgd.core.folders import Folder

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches: a text page."""
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#5F5F5F"
COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Those of Okabe and Ito, which people with any kind of colour vision can distinguish; their yellow is too pale."""
SPLIT_WORDS = {"test": "test", "validation": "validation", "train": "training"}
_DPI = 200
_STYLING = threading.Lock()
_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "axes.unicode_minus": True,
    "svg.hashsalt": "distsgd",
}


class NothingToDraw(ConfigurationError):
    """The run has nothing that such a picture could show."""


def check_installed() -> None:
    """Raises ConfigurationError where matplotlib isn't installed; doesn't import it."""
    found = False
    with suppress(ImportError, ValueError):  # ValueError where it is blocked
        found = find_spec("matplotlib") is not None
    if not found:
        raise ConfigurationError(
            f"plot: pictures are drawn by matplotlib, which is not installed; {pip_install('plot')}, or remove --plot"
        )


@contextmanager
def style() -> Iterator[None]:
    """Inside, everything is drawn in distsgd's own style, whatever the user's matplotlibrc has.

    matplotlib's settings belong to the whole process, so threads draw one at a time.
    """
    import matplotlib

    with _STYLING, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches, whose parts are placed so that none covers another."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def heading(figure: Figure, text: str) -> None:
    """A title above everything, where the figure's own parts begin at the left."""
    figure.suptitle(
        wrapped(text, int(12 * figure.get_size_inches()[0])), x=0.042 / figure.get_size_inches()[0], ha="left"
    )


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes NAME.png and NAME.svg, each whole or not at all. Raises RunFolderError where they can't be written."""
    try:
        make_folders(folder)
        whole = Path(os.path.abspath(folder))
        files = Folder(whole.parent).child(whole.name)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "distsgd"})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata)
            files.write(f"{name}.{kind}", file.getvalue())
    except OSError as error:
        raise RunFolderError(
            f"could not write pictures into {folder}: {error.strerror or error}; python -m distsgd.plot --out draws "
            "elsewhere"
        ) from None


def diverging() -> Colormap:
    """Blue below zero, white at it, orange above."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("distsgd", ["#00395A", BLUE, "#FFFFFF", VERMILLION, "#6B2F00"])


def wrapped(text: str, columns: int) -> str:
    """The text in lines of at most so many characters."""
    return "\n".join(textwrap.wrap(text, columns, subsequent_indent="    ", break_long_words=True)) or text
