import math
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import (
    api_pb2,
    backend_context,
    get_experiment,
    list_session_groups,
)

from gpt2ckpt.loggers.tensorboard import TensorBoardLogger


def event(step, **values):
    return {"step": step, "time": 1.7e9 + step, **values}


def read(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def steps(folder, tag="train/loss"):
    return [scalar.step for scalar in read(folder).Scalars(tag)]


def log_steps(folder, steps, purge_step=None, history=()):
    logger = TensorBoardLogger(folder, purge_step, history)
    for step in steps:
        logger.log(event(step, train_loss=float(step)))
    logger.close()


def test_scalars_have_names_steps_and_times(tmp_path):
    logger = TensorBoardLogger(tmp_path / "tensorboard")
    logger.log(event(10, train_loss=4.5, lr=1e-3, grad_norm=0.5, tokens_per_s=3840))
    logger.log(event(10, val_loss=4.25))
    logger.close()
    found = read(tmp_path / "tensorboard")
    names = ["train/loss", "train/lr", "train/grad_norm", "train/tokens_per_s", "val/loss"]
    assert sorted(found.Tags()["scalars"]) == sorted([*names, "val/perplexity"])
    values = [found.Scalars(name)[0].value for name in names]
    assert values == pytest.approx([4.5, 1e-3, 0.5, 3840, 4.25])
    (scalar,) = found.Scalars("val/loss")
    assert (scalar.step, scalar.wall_time) == (10, 1.7e9 + 10)


def test_text_is_shown_verbatim(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.text(20, "The *class*\n  def")
    logger.close()
    found = read(tmp_path)
    (sample,) = found.Tensors("sample/text_summary")
    assert sample.step == 20
    assert sample.tensor_proto.string_val[0].decode() == "    The *class*\n      def"
    assert found.SummaryMetadata("sample/text_summary").plugin_data.plugin_name == "text"


def test_resumed_run_shows_each_step_once(tmp_path):
    log_steps(tmp_path, [10, 20, 30, 40])
    log_steps(tmp_path, [30, 50], purge_step=21)
    log_steps(tmp_path, [40], purge_step=31)
    assert steps(tmp_path) == [10, 20, 30, 40]


def test_purge_step_hides_that_step_and_later_ones_only(tmp_path):
    log_steps(tmp_path, [10, 20, 21])
    log_steps(tmp_path, [], purge_step=21)
    assert steps(tmp_path) == [10, 20]


def test_events_missing_in_earlier_files_are_written_again(tmp_path):
    """The first process dropped steps 30 and 50; the second process resumes from step 60."""
    log_steps(tmp_path, [10, 20, 40, 60, 70])
    history = [event(step, train_loss=float(step)) for step in range(10, 70, 10)]
    history.insert(2, event(20, val_loss=4.5))
    for _ in range(2):  # repeated: now nothing is missing
        logger = TensorBoardLogger(tmp_path, purge_step=61, history=history)
        logger.close()
    assert steps(tmp_path) == [10, 20, 30, 40, 50, 60]
    assert steps(tmp_path, "val/loss") == [20]
    sizes = sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir())
    assert sizes[2][1] < 200 < sizes[1][1]


def test_truncated_file_and_pipe_in_the_folder_are_ignored(tmp_path):
    log_steps(tmp_path, [10, 20, 30])
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    os.mkfifo(tmp_path / "events.out.tfevents.0000000001.host.1.0")
    history = [event(step, train_loss=float(step)) for step in (10, 20, 30)]
    log_steps(tmp_path, [], purge_step=31, history=history)
    (tmp_path / "events.out.tfevents.0000000001.host.1.0").unlink()
    assert steps(tmp_path) == [10, 20, 30]


def test_files_created_in_one_second_sort_by_creation(tmp_path):
    for start in range(0, 24, 2):
        log_steps(tmp_path, [start, start + 1, start + 2], purge_step=start)
    assert steps(tmp_path) == list(range(25))


def test_killed_process_loses_no_logged_event(tmp_path):
    script = (
        "import os, pathlib, sys\n"
        "from gpt2ckpt.loggers.tensorboard import TensorBoardLogger\n"
        "logger = TensorBoardLogger(pathlib.Path(sys.argv[1]))\n"
        "for step in range(5): logger.log({'step': step, 'train_loss': 1.0})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert steps(tmp_path) == list(range(5))


def test_importing_the_module_does_not_import_tensorboard():
    script = "import sys, gpt2ckpt.loggers.tensorboard; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_evaluation_logs_loss_best_loss_and_perplexity(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log(event(10, train_loss=4.5, train_loss_mean=4.6, tokens_seen=640, mfu=0.4))
    logger.log(event(10, val_loss=2.0, best_val_loss=1.5, tokens_seen=640))
    logger.log(event(20, val_loss=800.0, best_val_loss=1.5, tokens_seen=1280))
    logger.log(event(30, val_loss=float("nan"), best_val_loss=1.5, tokens_seen=1920))
    logger.close()
    found = read(tmp_path)
    first = {tag: found.Scalars(tag)[0].value for tag in found.Tags()["scalars"]}
    assert first == pytest.approx(
        {
            "train/loss": 4.5,
            "train/loss_mean": 4.6,
            "train/tokens_seen": 640,
            "train/mfu": 0.4,
            "val/loss": 2.0,
            "val/best_loss": 1.5,
            "val/perplexity": math.exp(2),
        }
    )
    assert len(found.Scalars("train/tokens_seen")) == 1, "the axis of an evaluation is no curve"
    _, overflowed, unknown = (scalar.value for scalar in found.Scalars("val/perplexity"))
    assert overflowed == math.inf and math.isnan(unknown)


CONFIG = {
    "seed": 7,
    "model": {"n_layer": 2, "bias": True, "init_from": None},
    "optimizer": {"kind": "adamw", "lr": 3e-4, "betas": [0.9, 0.95]},
}
SHOWN = {
    "seed": 7.0,
    "model.n_layer": 2.0,
    "model.bias": True,
    "optimizer.kind": "adamw",
    "optimizer.lr": 3e-4,
    "optimizer.betas": "[0.9, 0.95]",
}


def hparams_tab(outputs):
    """Return the hyperparameters and metrics of each run as TensorBoard's HParams backend does."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(outputs))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(outputs))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    nothing = RequestContext()
    names = get_experiment.Handler(nothing, context, "", api_pb2.GetExperimentRequest()).run()
    statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING, api_pb2.STATUS_SUCCESS]
    columns = [
        *(api_pb2.ColParams(hparam=info.name) for info in names.hparam_infos),
        *(api_pb2.ColParams(metric=info.name) for info in names.metric_infos),
    ]
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=statuses, col_params=columns, slice_size=100
    )
    groups = list_session_groups.Handler(nothing, context, "", request).run().session_groups
    runs = {}
    for group in groups:
        values = {
            key: getattr(value, value.WhichOneof("kind")) for key, value in group.hparams.items()
        }
        metrics = {metric.name.tag: metric.value for metric in group.metric_values}
        runs[group.name] = (values, metrics)
    return {info.name for info in names.hparam_infos}, runs


def test_hparams_tab_shows_config_and_last_losses_of_each_run(tmp_path):
    """Two runs, the first of which was resumed, are two runs named after their directories."""
    muon = {**CONFIG, "optimizer": {"kind": "muon", "momentum": 0.9}}
    for name, config in (("first", CONFIG), ("second", muon)):
        logger = TensorBoardLogger(tmp_path / name / "tensorboard", 1, (), config)
        logger.log(event(10, val_loss=5.0, best_val_loss=5.0))
        logger.log(event(20, val_loss=9.0, best_val_loss=5.0))
        logger.close()
    resumed = TensorBoardLogger(tmp_path / "first" / "tensorboard", 11, (), CONFIG)
    resumed.log(event(20, val_loss=4.0, best_val_loss=4.0))
    resumed.close()
    columns, runs = hparams_tab(tmp_path)
    assert columns == {*SHOWN, "optimizer.momentum"}, "those of all runs"
    assert set(runs) == {"first/tensorboard", "second/tensorboard"}
    values, metrics = runs["first/tensorboard"]
    assert values == SHOWN
    assert (metrics["val/loss"], metrics["val/best_loss"]) == (4.0, 4.0)
    values, metrics = runs["second/tensorboard"]
    assert values["optimizer.momentum"] == 0.9
    assert (metrics["val/loss"], metrics["val/best_loss"]) == (9.0, 5.0)
    assert steps(tmp_path / "first" / "tensorboard", "val/loss") == [10, 20]
