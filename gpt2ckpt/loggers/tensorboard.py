"""TensorBoard event files, written with tensorboard's own record writer.

torch.utils.tensorboard takes half a second to import and writes from a thread, whose errors end in
a stack trace; scalars and text need neither.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2ckpt.config.replay import flatten
from gpt2ckpt.files.links import refuse_link
from gpt2ckpt.loggers.base import MetricRecord, scalar_name, scalars


class TensorBoardLogger:
    """Writes one event file of this process into a folder of a run.

    Args:
        folder: made if it is missing. TensorBoard reads its files in the order of their names.
        purge_step: events of earlier files at this step and later are hidden. A run that resumes
            from step T passes T + 1.
        history: the events that the run has logged before `purge_step`. From the first one on that
            earlier files lack, they are written again, and hidden where they are.
        hyperparameters: the config, for the tab HParams. TensorBoard shows those of the first
            process of a run, beside the last value of each curve.
    """

    def __init__(
        self,
        folder: Path,
        purge_step: int | None = None,
        history: Sequence[MetricRecord] = (),
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        # Here, not above: a run without TensorBoard does not pay for the import.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._session = (
            event_pb2.Event,
            summary_pb2.Summary,
            event_pb2.SessionLog,
        )
        refuse_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
        again = _from_first_missing(history, recorded(folder)) if history else []
        if again and purge_step is not None:
            purge_step = min(purge_step, int(again[0]["step"]))
        self._writer = RecordWriter(_new_file(folder).open("xb"))
        # The version comes first in every file; it also makes readers heed the START below.
        self._write(wall_time=time.time(), file_version="brain.Event:2")
        if purge_step is not None:
            start = self._session(status=self._session.START)
            self._write(wall_time=time.time(), step=purge_step, session_log=start)
        if hyperparameters:
            self._write_hyperparameters(flatten(dict(hyperparameters)))
        for event in again:
            self.log(event)
        self.flush()

    def log(self, event: MetricRecord) -> None:
        """Write every value of the event as a scalar (float32), named as `scalars` says."""
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in scalars(event).items()
        ]
        self._write(
            step=int(event["step"]),
            wall_time=float(event.get("time", time.time())),
            summary=self._summary(value=values),
        )
        self.flush()

    def text(self, step: int, text: str) -> None:
        """Write a sample for the text tab, verbatim (an indented block of Markdown)."""
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

        verbatim = "\n".join(f"    {line}" for line in text.splitlines())
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            string_val=[verbatim.encode()],
            tensor_shape=tensor_shape_pb2.TensorShapeProto(
                dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]
            ),
        )
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
        value = self._summary.Value(tag="sample/text_summary", metadata=metadata, tensor=tensor)
        self._write(step=step, wall_time=time.time(), summary=self._summary(value=[value]))
        self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system: a killed process loses nothing."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """As `add_hparams` of torch's SummaryWriter, in this run instead of one of its own.

        Without its list of names and metrics: TensorBoard takes those of one run for all, and makes
        the list itself, of all runs, where there is none.
        """
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                start.hparams[name].number_value = value
            elif value is not None:
                start.hparams[name].string_value = str(value)
        content = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        summary = self._summary.Value(
            tag=metadata.SESSION_START_INFO_TAG, metadata=metadata.create_summary_metadata(content)
        )
        # At step 0, which no resume hides.
        self._write(step=0, wall_time=time.time(), summary=self._summary(value=[summary]))

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(**fields).SerializeToString())


def recorded(folder: Path) -> set[tuple[int, str]]:
    """Return the step and the name of each scalar that TensorBoard shows of the files in a folder.

    A file is a sequence of records: the length (8 bytes), its checksum (4), an event in protobuf,
    and the checksum of that (4). What a kill has cut off is left out.
    """
    from tensorboard.compat.proto.event_pb2 import Event as Record
    from tensorboard.compat.proto.event_pb2 import SessionLog

    shown: set[tuple[int, str]] = set()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for data in _records(path.read_bytes()) if path.is_file() else ():
            record = Record.FromString(data)
            if record.session_log.status == SessionLog.START:
                shown = {key for key in shown if key[0] < record.step}
            shown |= {(record.step, value.tag) for value in record.summary.value}
    return shown


def _records(content: bytes) -> Iterator[bytes]:
    position = 0
    while position + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        end = position + 12 + length
        if end + 4 > len(content):
            return
        yield content[position + 12 : end]
        position = end + 4


def _from_first_missing(
    history: Sequence[MetricRecord], shown: set[tuple[int, str]]
) -> list[MetricRecord]:
    """Return the events from the first step on whose loss is not shown."""
    missing = [
        int(event["step"])
        for event in history
        for key in ("train_loss", "val_loss")
        if key in event and (event["step"], scalar_name(key)) not in shown
    ]
    return [event for event in history if event["step"] >= min(missing)] if missing else []


def _new_file(folder: Path) -> Path:
    """A name that no file has, later in order than those of earlier processes of the run.

    TensorBoard takes every file with "tfevents" in its name. Two processes of one run may start
    within the same second, and a clock may be set back.
    """
    stamps = [_stamp(path) for path in folder.glob("events.out.tfevents.*")]
    stamp = max([int(time.time()), *(found + 1 for found in stamps)])
    return folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"


def _stamp(path: Path) -> int:
    field = path.name.split(".")[3]
    return int(field) if field.isdigit() else 0
