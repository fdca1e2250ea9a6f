"""Prepares Optuna's study in the folder of a sweep, so that a resumed sweep continues the study."""

import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gpt2ckpt.config.compose import spelled
from gpt2ckpt.errors import ConfigError, InputError


def check_study(eval_every: int) -> None:
    """Raise ConfigError if Optuna cannot work with the settings or the installed libraries."""
    import optuna
    import sqlalchemy

    if optuna.__version__.startswith("2.") and not sqlalchemy.__version__.startswith("1."):
        raise ConfigError(
            f"Optuna {optuna.__version__} cannot store a study with SQLAlchemy "
            f"{sqlalchemy.__version__}: run pip install 'sqlalchemy<2' 'alembic<1.20'"
        )
    if not eval_every:
        raise ConfigError(
            "trainer.eval_every=0: Optuna needs a validation loss. Set trainer.eval_every above 0"
        )


def study_settings(sweeper: DictConfig, sweep: Path, name: str, given: str) -> list[str]:
    """Return the overrides that store the study in the folder of the sweep and allow failed trials.

    `given` is the command line, whose settings are not overridden.
    """
    defaults = {
        "storage": f"sqlite:///{sweep}/study.db",
        "study_name": name,
        "max_failure_rate": 1.0,
    }
    return [
        f"hydra.sweeper.{key}={spelled(value)}"
        for key, value in defaults.items()
        if not sweeper[key] and f"hydra.sweeper.{key}=" not in given
    ]


def settings_to_continue(sweeper: DictConfig, sweep: Path, name: str) -> list[str]:
    """Return the overrides with which a resumed sweep reaches `n_trials` trials in all.

    Interrupted and failed trials are queued again with the same values, so that each trial finds
    its directory. Raises InputError if the study cannot be read.
    """
    import optuna

    url = str(sweeper.storage or f"sqlite:///{sweep}/study.db")
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return []
    try:
        study = optuna.load_study(study_name=sweeper.study_name or name, storage=url)
    except KeyError:
        return []  # killed before the study was created
    except Exception as error:
        raise InputError(
            f"cannot read the study in {url} ({error}): restore it from a backup, or start a new "
            "sweep without resume"
        ) from error
    trials = study.get_trials(deepcopy=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for params in _to_repeat(study, trials):
            study.enqueue_trial(params)
    done = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    overrides = [f"hydra.sweeper.n_trials={max(int(sweeper.n_trials) - done, 0)}"]
    seed = sweeper.sampler.get("seed")
    if seed is not None:  # the same seed would sample the values of the first trials again
        overrides.append(f"hydra.sweeper.sampler.seed={int(seed) + len(trials)}")
    return overrides


def _to_repeat(study: Any, trials: list[Any]) -> list[dict[str, Any]]:
    """Return the values of unfinished trials, each once; mark interrupted trials as failed."""
    from optuna.trial import TrialState

    settled = [t.params for t in trials if t.state == TrialState.COMPLETE]
    settled += [t.system_attrs.get("fixed_params") for t in trials if t.state == TrialState.WAITING]
    repeated: list[dict[str, Any]] = []
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        elif trial.state != TrialState.FAIL:
            continue
        if trial.params and trial.params not in [*settled, *repeated]:
            repeated.append(dict(trial.params))
    return repeated
