"""The notebook of the documentation, and the Stop button, in a real Jupyter kernel."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from commands import PATIENCE, ROOT, steps_done
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

import gpt2ckpt


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_notebook_trains_plots_resumes_and_samples(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    context = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=PATIENCE, resources=context).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    _, train, plot, resume, sample, checkpoints = map(printed, cells)
    assert "step 20/20" in train
    assert plot.count("#\n") == 11 or "Figure" in str(cells[2].outputs)
    assert "resuming from" in resume and resume.splitlines()[-1].startswith("30 ")
    assert sample.startswith("The")
    assert "30 " in checkpoints
    [directory] = (tmp_path / "outputs").iterdir()
    steps = [e["step"] for e in gpt2ckpt.open_run(directory).history() if "train_loss" in e]
    assert steps == [1, *range(2, 31, 2)]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=PATIENCE)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def reply(client: BlockingKernelClient, request: str) -> Any:
    while (message := client.get_shell_msg(timeout=PATIENCE))["parent_header"]["msg_id"] != request:
        pass
    return message["content"]


def test_stop_button_saves_and_the_next_cell_resumes(
    kernel: Any, token_data: Any, tmp_path: Path
) -> None:
    manager, client = kernel
    overrides = [*token_data.overrides, "trainer.max_steps=100000", "hydra.run.dir=run"]
    request = client.execute(f"import gpt2ckpt\ngpt2ckpt.train({overrides})")
    end = time.monotonic() + PATIENCE
    while steps_done(tmp_path / "run") < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    manager.interrupt_kernel()
    assert reply(client, request)["ename"] == "KeyboardInterrupt"
    run = gpt2ckpt.open_run(tmp_path / "run")
    saved = [c["step"] for c in run.checkpoints() if c["group"] == "emergency"]
    assert saved == [run.history()[-1]["step"]]
    longer = f"trainer.max_steps={saved[0] + 2}"
    request = client.execute(f"gpt2ckpt.train(['+resume=latest', 'hydra.run.dir=run', '{longer}'])")
    assert reply(client, request)["status"] == "ok"
    assert run.is_finished and run.history()[-1]["step"] == saved[0] + 2
