"""When the batch system ends this job, as Slurm, PBS or LSF say, so that training stops with a checkpoint before."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate

from distsgd.training.intervals import parse_duration

MARGIN = 120.0
"""Seconds that are left for the last step, the test set and the checkpoint; a tenth of what is left where less is."""
ASK_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """A job of a batch system; `seconds_left` is None where it has no limit or the system doesn't say."""

    name: str
    seconds_left: float | None


def time_limit(max_time: str | None, environment: Mapping[str, str] = os.environ) -> tuple[float | None, str]:
    """(seconds that --max-time leaves from now on, a line that explains them); (None, "") for no limit.

    `auto` asks the batch system, which takes up to ten seconds where that doesn't answer; for one rank alone.
    """
    if max_time is None or max_time == "never":
        return None, ""
    if not max_time.startswith("auto"):
        return parse_duration(max_time, "max_time"), ""
    job = current_job(environment)
    if job is None:
        return None, ""
    if job.seconds_left is None:
        return None, f"{job.name} doesn't say when it ends; --max-time does"
    margin = min(MARGIN, job.seconds_left / 10)
    if max_time != "auto":
        margin = parse_duration(max_time.removeprefix("auto-"), "max_time")
    seconds = max(job.seconds_left - margin, 0.0)
    return seconds, f"{job.name} ends in {in_words(job.seconds_left)}; stopping {in_words(margin)} before"


def current_job(environment: Mapping[str, str] = os.environ) -> Job | None:
    """The job that this process runs in, None outside any."""
    for variable, name, ask in (
        ("SLURM_JOB_ID", "Slurm job", _slurm_seconds),
        ("PBS_JOBID", "PBS job", _pbs_seconds),
        ("LSB_JOBID", "LSF job", _lsf_seconds),
    ):
        if environment.get(variable):
            return Job(f"{name} {environment[variable]}", ask(environment[variable], environment))
    return None


def in_words(seconds: float) -> str:
    """`2d3h`, `3h50m`, `10m`, `1m30s` or `45s`: two units at most."""
    left, parts = max(round(seconds), 0), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        count, left = divmod(left, size)
        parts.append((count, unit))
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count}{unit}" for count, unit in parts[first : first + 2] if count]
    return "".join(shown) or "0s"


def _slurm_seconds(job: str, environment: Mapping[str, str]) -> float | None:
    end = environment.get("SLURM_JOB_END_TIME", "")  # of newer versions
    if end.isdecimal():
        return int(end) - time.time()
    return _clock(_ask("squeue", "--noheader", "--jobs", job, "--format", "%L").strip())


def _pbs_seconds(job: str, environment: Mapping[str, str]) -> float | None:
    output = _ask("qstat", "-f", job).replace("\n\t", "")  # long lines are folded
    metadata = dict(re.findall(r"^\s*([\w.]+) = (.*)$", output, re.MULTILINE))
    if metadata.get("Walltime.Remaining", "").isdecimal():  # Torque
        return float(metadata["Walltime.Remaining"])
    limit = _clock(metadata.get("Resource_List.walltime", ""))
    began = parsedate(
        metadata.get("stime") or metadata.get("start_time")
    )  # such as Sat Nov 22 02:00:05 2025, a local time
    return None if limit is None or began is None else time.mktime(began) + limit - time.time()


def _lsf_seconds(job: str, environment: Mapping[str, str]) -> float | None:
    index = environment.get("LSB_JOBINDEX", "0")
    name = job if index in ("", "0") else f"{job}[{index}]"
    # L says that this is the run limit; E and X are about an estimate, which ends nothing.
    found = re.match(r"\s*(\d+):(\d+)\s+L\b", _ask("bjobs", "-noheader", "-o", "time_left", name))
    return None if found is None else (int(found[1]) * 60 + int(found[2])) * 60.0


def _ask(*command: str) -> str:
    """What the batch system's command prints; nothing where there is none, or it doesn't answer."""
    settings = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, env=settings, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def _clock(text: str) -> float | None:
    """Seconds of `1-02:03:04`, `02:03:04`, `3:04` or `4`; None of anything else, such as UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?((?:\d+:){0,2}\d+)", text)
    if found is None:
        return None
    seconds = 0
    for part in found[2].split(":"):
        seconds = seconds * 60 + int(part)
    return float(int(found[1] or 0) * 86400 + seconds)
