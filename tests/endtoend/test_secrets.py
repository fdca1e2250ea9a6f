"""No API key or environment value is written into a run directory."""

from pathlib import Path
from typing import Any

from commands import environment, finish, start_interpreter, succeed

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_ThisIsNoRealTokenButLooksLikeOne",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "MY_PASSWORD": "correct-horse-battery-staple",
}


def test_run_directory_contains_no_secret(
    token_data: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    for name, value in {**SECRETS, "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    assert environment()["MY_PASSWORD"] in SECRETS.values()
    overrides = [word for word in token_data.overrides if not word.startswith("logger=")]
    overrides += [
        "logger=all",
        "trainer.max_steps=4",
        "checkpoint.save_every=2",
        "hydra.run.dir=run",
    ]
    succeed(finish(start_interpreter("train", overrides, tmp_path)))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    kinds = {path.relative_to(tmp_path / "run").parts[0] for path in files}
    assert {"checkpoints", ".hydra", "wandb", "tensorboard", "train.log"} <= kinds
    for path in files:
        content = path.read_bytes()
        for name, value in SECRETS.items():
            assert value.encode() not in content, f"{name} is in {path}"
    assert len(files) > 10
