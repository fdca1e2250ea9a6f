"""The names of run directories, and of the files in a run directory."""

import re
from pathlib import Path

OUTPUTS = Path("outputs")  # where conf/train.yaml puts run directories
STAMP = "%Y%m%d_%H%M%S"
STAMPED = re.compile(r"(?P<base>.*_(?:run|sweep))_(?P<stamp>\d{8}_\d{6})")

CHECKPOINTS = "checkpoints"
HISTORY = "metrics.jsonl"
EVENTS = "events.jsonl"  # runs/events.py
LOG = "train.log"  # as in conf/train.yaml
RECORD = ".hydra"  # Hydra's record of each launch
TENSORBOARD = "tensorboard"
WANDB = "wandb"  # W&B chooses this name
LOCK_NAME = "run.lock"
REPLAY = ".replay.jsonl"  # lines of steps that are trained again, for a comparison
JOBS = "jobs.jsonl"  # of a sweep: sweeps/journal.py
LINEAGE = ".history.json"  # runs/wandb_lineage.py


def hydra_record(directory: Path) -> str:
    """Return where Hydra records the next launch in `directory`: .hydra, then .hydra/resume_N."""
    first = directory / RECORD
    if not first.exists():
        return RECORD
    numbers = [re.fullmatch(r"resume_(\d+)", path.name) for path in first.iterdir()]
    return f"{RECORD}/resume_{1 + max((int(match[1]) for match in numbers if match), default=0)}"


def run_title(directory: Path) -> str:
    """Return the name of a run for loggers: the name of its directory, or SWEEP/JOB for a job."""
    directory = directory.absolute()
    for folder in directory.parents:
        if (folder / JOBS).is_file():
            return str(directory.relative_to(folder.parent))
    return directory.name
