"""PyTorch Lightning with its ModelCheckpoint: save_last, top k of the newest, ckpt_path="last".

These are the documented settings for a run that may be stopped at any time: `every_n_train_steps`,
`save_last`, and `Trainer.fit(ckpt_path=...)` (Lightning's "Save and load progress" pages), and a
checkpoint when an exception ends the training, which "last" finds too.
"""

import warnings

import torch

from experiments.faults_of_peers import common


def main() -> None:
    """Train."""
    common.quiet()
    warnings.filterwarnings("ignore")
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

    given = common.settings()

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = common.build_model()

        def training_step(self, batch, index):
            inputs, targets = batch
            logits = self.model(inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            self.log("step_count", float(self.global_step), on_step=True)
            return loss

        def on_train_batch_end(self, outputs, batch, index):
            common.note(given, self.global_step, outputs["loss"].item())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=given.lr)

    L.seed_everything(common.SEED, workers=True, verbose=False)
    module = Module()
    saver = ModelCheckpoint(
        **{"dirpath": given.directory / "checkpoints", "filename": "{step}"},
        **{"every_n_train_steps": common.SAVE_EVERY, "save_last": True, "save_top_k": 3},
        **{"monitor": "step_count", "mode": "max"},
    )
    ending = OnExceptionCheckpoint(given.directory / "checkpoints")
    trainer = L.Trainer(
        **{"max_steps": common.STEPS, "accelerator": "cpu", "callbacks": [saver, ending]},
        **{"logger": False, "enable_progress_bar": False, "enable_model_summary": False},
        **{"default_root_dir": given.directory, "deterministic": True},
    )
    loader = torch.utils.data.DataLoader(
        common.blocks(given.directory.parent / "tokens.bin"),
        **{"batch_size": common.BATCH, "shuffle": True},
    )
    trainer.fit(module, loader, ckpt_path="last" if given.resume else None)
    if trainer.global_step >= common.STEPS:
        common.finish(given.directory, module.model.state_dict())


if __name__ == "__main__":
    main()
