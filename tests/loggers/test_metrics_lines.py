"""Reading metrics.jsonl never fails, and each damaged line is reported with a reason."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.loggers.metrics_lines import parse

GOOD = [{"step": step, "time": 1.7e9, "train_loss": 1 / step} for step in (1, 2, 3, 4)]
TEXT = [to_json(event).encode() + b"\n" for event in GOOD]
LAST = to_json({"step": 5, "time": 1.7e9, "val_loss": 2.5}).encode() + b"\n"


def steps(content):
    return [line.step for line in parse(content).events]


def spoiled(line, replaced, by):
    assert replaced in line
    return line.replace(replaced, by)


DAMAGED = {
    "cut short": (TEXT[1][:-9] + b"\n", "not JSON"),
    "binary": (b"\x00\xff\xfe\x80\n", "not JSON"),
    "zeros of a power cut": (b"\0" * 300 + b"\n", "not JSON"),
    "UTF-16": (TEXT[1].decode().strip().encode("utf-16-le") + b"\n", "not JSON"),
    "too deep": (b"[" * 100_000 + b"\n", "not JSON"),
    "number of too many digits": (spoiled(TEXT[1], b"0.5", b"1" * 5000), "not JSON"),
    "a list": (b"[1]\n", "not a JSON object"),
    "null": (b"null\n", "not a JSON object"),
    "no step": (b'{"train_loss": 0.5}\n', "no step"),
    "step as text": (spoiled(TEXT[1], b": 2,", b': "2",'), 'step is "2"'),
    "step true": (spoiled(TEXT[1], b": 2,", b": true,"), "step is true"),
    "step null": (spoiled(TEXT[1], b": 2,", b": null,"), "step is null"),
    "step of a fraction": (spoiled(TEXT[1], b": 2,", b": 2.5,"), "step is 2.5"),
    "negative step": (spoiled(TEXT[1], b": 2,", b": -2,"), "step is -2"),
    "endless step": (spoiled(TEXT[1], b": 2,", b": 1e999,"), "step is Infinity"),
    "step not a number": (spoiled(TEXT[1], b": 2,", b": NaN,"), "step is NaN"),
    "loss null": (spoiled(TEXT[1], b"0.5", b"null"), "train_loss is null"),
    "loss as text": (spoiled(TEXT[1], b"0.5", b'"low"'), 'train_loss is "low"'),
    "loss a list": (spoiled(TEXT[1], b"0.5", b"[0.5]"), "train_loss is [0.5]"),
    "loss true": (spoiled(TEXT[1], b"0.5", b"true"), "train_loss is true"),
    "loss too large": (spoiled(TEXT[1], b"0.5", b"1" * 400), "train_loss is " + "1" * 40),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_line_is_reported_and_others_are_read(name):
    line, reason = DAMAGED[name]
    found = parse(b"".join([TEXT[0], line, *TEXT[2:]]))
    assert [line.event for line in found.events] == [GOOD[0], *GOOD[2:]]
    [damaged] = found.damaged
    assert (damaged.number, damaged.content, damaged.reason) == (2, line, reason)


READABLE = {
    "as written": b"".join(TEXT),
    "byte-order mark": b"\xef\xbb\xbf" + b"".join(TEXT),
    "Windows line ends": b"".join(TEXT).replace(b"\n", b"\r\n"),
    "no newline at the end": b"".join(TEXT).rstrip(),
    "empty lines": b"\n".join(TEXT) + b"\n\n",
    "step as a float": b"".join(TEXT).replace(b'"step": 2,', b'"step": 2.0,'),
}


@pytest.mark.parametrize("name", READABLE)
def test_harmless_edits_are_not_damage(name):
    found = parse(READABLE[name])
    assert not found.damaged and found.is_sorted
    assert [line.event for line in found.events] == GOOD
    # The content of a line can be copied to a different file unchanged.
    assert all(line.content.endswith(b"\n") for line in found.events)
    assert not any(line.content.startswith(b"\xef") for line in found.events)


def test_null_is_a_missing_value_as_written_by_pandas():
    line = b'{"step":5,"time":1,"train_loss":null,"val_loss":2.5,"grad_norm":null}\n'
    [found] = parse(line).events
    assert found.event == {"step": 5, "time": 1, "val_loss": 2.5}
    assert found.content == line


def test_nan_is_read_in_both_spellings():
    for spelling in (b"NaN", b'"NaN"'):
        [found] = parse(spoiled(TEXT[1], b"0.5", spelling)).events
        assert math.isnan(found.event["train_loss"])


def test_unsorted_lines_are_sorted_and_reported_as_unsorted():
    found = parse(b"".join([TEXT[2], TEXT[0], LAST, TEXT[1]]))
    assert [line.step for line in found.events] == [1, 2, 3, 5]
    assert not found.is_sorted and not found.damaged


def test_later_of_two_events_of_one_kind_is_used():
    other = spoiled(TEXT[1], b"0.5", b"0.25")
    found = parse(b"".join([*TEXT[:2], other, TEXT[2]]))
    assert [line.event["train_loss"] for line in found.events] == [1.0, 0.25, 1 / 3]
    [damaged] = found.damaged
    assert (damaged.number, damaged.content) == (2, TEXT[1])
    assert damaged.reason == "line 3 has step 2 too"


def test_step_can_have_a_training_and_a_validation_event():
    val = to_json({"step": 2, "val_loss": 0.5}).encode() + b"\n"
    assert steps(b"".join([*TEXT[:2], val])) == [1, 2, 2]


@given(st.lists(st.one_of(st.sampled_from([*TEXT, LAST]), st.binary(max_size=40)), max_size=8))
def test_parse_never_raises_and_loses_no_byte(pieces):
    content = b"".join(pieces)
    found = parse(content)
    kept = sorted([*found.events, *found.damaged], key=lambda line: line.number)
    bare = b"".join(line.content for line in kept).replace(b"\xef\xbb\xbf", b"").split()
    assert b"".join(bare) == b"".join(content.replace(b"\xef\xbb\xbf", b"").split())
    for line in found.events:
        json.dumps(line.event)
