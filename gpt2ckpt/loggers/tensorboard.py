"""TensorBoard event files, written with the record writer of the tensorboard package.

torch.utils.tensorboard is not used: its import takes half a second, and errors in its thread print
a stack trace.
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
    """Writes one event file per process into a directory of the run.

    Args:
        folder: the directory, created if missing. TensorBoard reads its files sorted by name.
        purge_step: the step from which on TensorBoard hides the events of earlier files. Pass T + 1
            for a run that resumes from step T.
        history: the events that the run logged before `purge_step`. If earlier files lack some of
            them, all events from the first missing one on are written again.
        hyperparameters: the config, for the HParams tab. TensorBoard shows the config of a run's
            first process beside the last value of each scalar.
    """

    def __init__(
        self,
        folder: Path,
        purge_step: int | None = None,
        history: Sequence[MetricRecord] = (),
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        # Imported here because it is slow, and runs without TensorBoard do not need it.
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
        # The version must be the first record; without it, readers ignore the START below.
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
        """Write the values of an event as float32 scalars, named as in `scalars`."""
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
        """Write a text sample for the Text tab as a Markdown code block."""
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
        """Pass everything to the operating system, so that a killed process loses nothing."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Write the records of torch's SummaryWriter.add_hparams, but into the same run.

        One record is omitted, the "experiment", which lists names and metrics: TensorBoard would
        use the list of one run for all runs. Without the record, it builds the list from all runs.
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
        # Step 0 is never hidden by `purge_step`.
        self._write(step=0, wall_time=time.time(), summary=self._summary(value=[summary]))

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(**fields).SerializeToString())


def recorded(folder: Path) -> set[tuple[int, str]]:
    """Return the step and name of each scalar that TensorBoard shows from the files in a folder.

    A file is a sequence of records: the length (8 bytes), its checksum (4), a protobuf event and
    its checksum (4). A truncated record at the end is ignored.
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
    """Return the events from the first step on for which TensorBoard shows no loss."""
    missing = [
        int(event["step"])
        for event in history
        for key in ("train_loss", "val_loss")
        if key in event and (event["step"], scalar_name(key)) not in shown
    ]
    return [event for event in history if event["step"] >= min(missing)] if missing else []


def _new_file(folder: Path) -> Path:
    """Return an unused file name that sorts after those of earlier processes of the run.

    The time alone is not enough: two processes may start in the same second, and a clock may be set
    back. TensorBoard reads every file with "tfevents" in its name.
    """
    stamps = [_stamp(path) for path in folder.glob("events.out.tfevents.*")]
    stamp = max([int(time.time()), *(found + 1 for found in stamps)])
    return folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"


def _stamp(path: Path) -> int:
    field = path.name.split(".")[3]
    return int(field) if field.isdigit() else 0
