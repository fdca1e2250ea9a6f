"""The result that a job without a validation loss returns to the sweeper."""

import pytest

from gpt2ckpt.sweeps.job import NoMetric


def test_failed_job_is_not_a_number_and_a_stop_ends_the_sweep() -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        float(NoMetric("there is no such file"))
    with pytest.raises(SystemExit) as stop:
        float(NoMetric("interrupted", 130))
    assert stop.value.code == 130
