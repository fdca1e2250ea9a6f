"""The logger of a plugin: it has any of the methods, and cannot change what others log."""

from typing import Any

import pytest

from gpt2ckpt.loggers.plugin_logger import PluginLogger


class Greedy:
    """Takes every value out of the events that it gets."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def history(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            self.log(event)

    def log(self, event: dict[str, Any]) -> None:
        self.seen.append(dict(event))
        event.clear()


def test_events_come_after_the_history_and_stay_as_they_are() -> None:
    earlier, event, target = [{"step": 1}], {"step": 2}, Greedy()
    logger = PluginLogger(target, earlier)
    logger.log(event)
    assert target.seen == [{"step": 1}, {"step": 2}]
    assert (earlier, event) == ([{"step": 1}], {"step": 2})


def test_methods_that_are_missing_are_left_out() -> None:
    logger = PluginLogger(Greedy(), [])
    logger.text(1, "sample")
    logger.flush()
    logger.close()


@pytest.mark.parametrize("target", [None, object()])
def test_an_object_without_methods_is_refused(target: object) -> None:
    with pytest.raises(TypeError, match="has none of the methods history, log, text, flush, close"):
        PluginLogger(target, [])
