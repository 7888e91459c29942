"""python -m examples.pictures: draws the curves of docs/tutorials/plots from the runs that examples.reproduce left."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from examples.rows import ROOT
from examples.tables import DOCS


@dataclass(frozen=True)
class Picture:
    """A picture of docs/tutorials/plots: what is drawn of which runs, and options of python -m distsgd.plot."""

    name: str
    kind: str
    runs: tuple[str, ...]
    options: tuple[str, ...] = ()

    def draw(self, runs: Path, data_dir: Path | None) -> str | None:
        """Draws it; why it couldn't, where it couldn't."""
        folders = [str((runs / run).resolve()) for run in self.runs]
        missing = [folder for folder in folders if not Path(folder, "summary.json").exists()]
        if missing:
            return f"{self.name}: not finished: {', '.join(missing)}"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with TemporaryDirectory() as folder:
            where = ["--data-dir", str(data_dir.resolve())] if data_dir is not None else []
            command = [sys.executable, "-m", "distsgd.plot", *folders, "--out", folder, "--only", self.kind]
            done = subprocess.run(
                [*command, *where, *self.options],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                return f"{self.name}: {done.stderr.strip()}"
            target = DOCS / "plots" / f"{self.name}.svg"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(folder) / f"{self.kind}.svg", target)
        return None


PICTURES = (
    Picture(
        "optimization-costs",
        "curves",
        ("optimization-course-gd-0", "optimization-course-momentum-0", "optimization-course-adam-0"),
    ),
    Picture(
        "optimization-decay",
        "curves",
        (
            "optimization-course-gd-decay-0",
            "optimization-course-momentum-decay-0",
            "optimization-course-adam-decay-0",
            "optimization-course-gd-decay-every-epoch-0",
        ),
    ),
    Picture("optimization-boundary", "boundary", ("optimization-adam-0",)),
    Picture("two-layer-net", "curves", ("two-layer-net-script-0",)),
    Picture("nielsen-momentum", "curves", ("nielsen-fc-0", "nielsen-fc-momentum-0")),
    Picture("nielsen-filters", "filters", ("nielsen-relu-0",)),
    Picture("theano-logistic-filters", "filters", ("theano-logistic-0",)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(picture.name for picture in PICTURES)}; default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs/tutorials"), help="where the runs' folders are")
    parser.add_argument("--data-dir", type=Path, help="folder that holds mnist/; default the user's cache folder")
    chosen = parser.parse_args(arguments)
    problems = [
        picture.draw(chosen.runs, chosen.data_dir)
        for picture in PICTURES
        if not chosen.names or picture.name in chosen.names
    ]
    for problem in filter(None, problems):
        print(problem, file=sys.stderr)
    return 1 if any(problems) else 0


if __name__ == "__main__":
    sys.exit(main())
