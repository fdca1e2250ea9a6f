"""What a job without a validation loss tells the sweeper that asks for a number."""

import pytest

from gpt2ckpt.sweeps.job import NoMetric


def test_a_failed_job_is_no_number_and_a_stop_ends_the_sweep() -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        float(NoMetric("there is no such file"))
    with pytest.raises(SystemExit) as stop:
        float(NoMetric("interrupted", 130))
    assert stop.value.code == 130
