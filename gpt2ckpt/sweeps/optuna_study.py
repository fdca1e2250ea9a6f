"""Optuna's study in a sweep's folder, made ready to go on where it was cut off."""

import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gpt2ckpt.config.compose import spelled
from gpt2ckpt.errors import ConfigError, InputError


def check_study(eval_every: int) -> None:
    """Raise ConfigError for settings with which Optuna would learn nothing, or cannot work."""
    import optuna
    import sqlalchemy

    if optuna.__version__.startswith("2.") and not sqlalchemy.__version__.startswith("1."):
        raise ConfigError(
            f"Optuna {optuna.__version__} cannot keep a study with SQLAlchemy "
            f"{sqlalchemy.__version__}: pip install 'sqlalchemy<2' 'alembic<1.20'"
        )
    if not eval_every:
        raise ConfigError("Optuna needs a validation loss: trainer.eval_every must be above 0")


def study_settings(sweeper: DictConfig, sweep: Path, name: str, given: str) -> list[str]:
    """The overrides that keep the study in the sweep's folder, and let no failed trial end it.

    What the command line `given` says of them stands.
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
    """The overrides with which the sweeper comes to its number of trials, not to that many more.

    Trials that were cut off or have failed are asked for once more, with the same values: so each
    finds its own directory again. Raises InputError for a study that cannot be read.
    """
    import optuna

    url = str(sweeper.storage or f"sqlite:///{sweep}/study.db")
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return []
    try:
        study = optuna.load_study(study_name=sweeper.study_name or name, storage=url)
    except KeyError:
        return []  # killed before it was made
    except Exception as error:
        raise InputError(f"the study in {url} cannot be read: {error}") from error
    trials = study.get_trials(deepcopy=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for params in _to_repeat(study, trials):
            study.enqueue_trial(params)
    done = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials)
    words = [f"hydra.sweeper.n_trials={max(int(sweeper.n_trials) - done, 0)}"]
    seed = sweeper.sampler.get("seed")
    if seed is not None:  # begun anew, it would give the values of the first trials again
        words.append(f"hydra.sweeper.sampler.seed={int(seed) + len(trials)}")
    return words


def _to_repeat(study: Any, trials: list[Any]) -> list[dict[str, Any]]:
    """The values of the trials that did not end well, none twice; those cut off become failed."""
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
