"""Hugging Face Trainer with save_steps, save_total_limit and resume_from_checkpoint=True.

It also saves on SIGTERM, which TrainingArguments offers for preemptible machines."""

from experiments.faults_of_peers import common


def main() -> None:
    """Train."""
    common.quiet()
    from transformers import Trainer, TrainerCallback, TrainingArguments

    given = common.settings()
    model = common.build_model()

    class Notes(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **more):
            if logs and "loss" in logs:
                common.note(given, state.global_step, float(logs["loss"]))

    arguments = TrainingArguments(
        **{"output_dir": str(given.directory / "checkpoints"), "max_steps": common.STEPS},
        **{"per_device_train_batch_size": common.BATCH, "learning_rate": given.lr},
        **{"lr_scheduler_type": "constant", "save_strategy": "steps"},
        **{"save_steps": common.SAVE_EVERY, "save_total_limit": 3, "logging_steps": 1},
        **{"report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": common.SEED},
        **{"enable_jit_checkpoint": True},  # on SIGTERM
        **{"full_determinism": False, "dataloader_num_workers": 0},
    )
    data = [
        {"input_ids": inputs, "labels": inputs}
        for inputs, _ in common.blocks(given.directory.parent / "tokens.bin")
    ]
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Notes()])
    trainer.train(resume_from_checkpoint=True if given.resume else None)
    common.finish(given.directory, model.state_dict())


if __name__ == "__main__":
    main()
