"""Names of config keys in other programs and in the first version of gpt2ckpt.

These names are not accepted, since two names for one key would make commands hard to read. The
error message for such a name suggests the key to write instead.
"""

TRAIN_WITH = {  # names with what to write instead of the name and its value
    "use_tensorboard": "logger=tensorboard",
    "tensorboard": "logger=tensorboard",
    "use_wandb": "logger=wandb",
    "wandb": "logger=wandb",
    "wandb_log": "logger=wandb",
    "fp16": "trainer.precision=float16",
    "bf16": "trainer.precision=bfloat16",
    "fsdp": "trainer.parallel=fsdp",
    "ddp": "trainer.parallel=ddp",
    "list_checkpoints": "python -m gpt2ckpt.checkpoints list",
    "generate_resume_command": "python -m gpt2ckpt.checkpoints resume-command PATH",
    "gpus": "torchrun --standalone --nproc_per_node=N -m gpt2ckpt.train",
    "num_gpus": "torchrun --standalone --nproc_per_node=N -m gpt2ckpt.train",
    "devices": "torchrun --standalone --nproc_per_node=N -m gpt2ckpt.train",
    "nproc_per_node": "torchrun --standalone --nproc_per_node=N -m gpt2ckpt.train",
}
_TRAIN_KEYS = {
    "checkpoint.keep_emergency": "keep_emergency_checkpoints",
    "checkpoint.keep_rolling": "keep_checkpoints save_total_limit save_top_k max_checkpoints",
    "checkpoint.save_every": (
        "checkpoint_freq checkpoint_every checkpoint_interval save_steps save_interval save_freq"
    ),
    "data.train": "dataset data_dir data_path data_file train_file train_data input input_bin",
    "data.val": "val_file val_data validation_file eval_file input_val_bin",
    "hydra.run.dir": "checkpoint_dir ckpt_dir save_dir out_dir output_dir outdir output log_dir",
    "model": "model_name model_size model_type",
    "model.block_size": (
        "context context_length context_size ctx_len max_length max_seq_len n_ctx n_positions "
        "seq_len seq_length sequence_length"
    ),
    "model.init_from": "pretrained from_pretrained model_name_or_path weights",
    "model.n_embd": "d_model dim embed_dim embedding_size emb_dim hidden_size n_embed width",
    "model.n_head": "heads num_attention_heads num_heads",
    "model.n_layer": "depth layers n_blocks num_hidden_layers num_layers",
    "name": "exp_name experiment_name project_name run_name",
    "optimizer.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "optimizer.eps": "adam_epsilon epsilon",
    "optimizer.lr": "learning_rate max_lr peak_lr",
    "optimizer.weight_decay": "wd",
    "resume": "checkpoint_path ckpt ckpt_path load load_checkpoint resume_from "
    "resume_from_checkpoint",
    "schedule": "lr_schedule lr_scheduler lr_scheduler_type scheduler",
    "schedule.min_lr_ratio": "learning_rate_decay_frac min_lr",
    "schedule.steps": "lr_decay_iters",
    "schedule.warmup_steps": "num_warmup_steps warmup warmup_iters",
    "seed": "manual_seed random_seed",
    "trainer.batch_size": "bs micro_batch_size per_device_batch_size per_device_train_batch_size "
    "train_batch_size",
    "trainer.compile": "torch_compile",
    "trainer.device": "accelerator gpu",
    "trainer.eval_every": "eval_freq eval_interval val_check_interval val_every val_loss_every",
    "trainer.eval_steps": "eval_iters limit_val_batches val_max_steps",
    "trainer.grad_accum": "accumulate_grad_batches grad_accum_steps gradient_accumulation_steps",
    "trainer.grad_clip": "clip_grad gradient_clip_val max_grad_norm",
    "trainer.log_every": "log_every_n_steps log_freq log_interval logging_steps",
    "trainer.max_epochs": "epochs n_epochs num_epochs num_train_epochs",
    "trainer.max_steps": "iterations iters max_iters n_steps num_iterations num_steps steps "
    "train_steps",
    "trainer.precision": "amp dtype mixed_precision",
    "trainer.sample_every": "sample_interval",
}
_SAMPLE_KEYS = {
    "ckpt": "checkpoint checkpoint_path ckpt_path init_from load model out_dir resume",
    "device": "accelerator gpu",
    "max_tokens": "length max_length max_new_tokens n_tokens num_tokens",
    "num_samples": "n n_samples nsamples num_return_sequences samples",
    "precision": "dtype",
    "prompt": "input start text",
    "temperature": "temp",
    "top_k": "k topk",
}
_EVALUATE_KEYS = {
    "batch_size": "bs eval_batch_size",
    "ckpt": _SAMPLE_KEYS["ckpt"],
    "data": "dataset split task",
    "data.val": _TRAIN_KEYS["data.val"],
    "device": "accelerator gpu",
    "precision": "dtype",
}
_PREPARE_KEYS = {
    "data.train": _TRAIN_KEYS["data.train"],
    "data.val": _TRAIN_KEYS["data.val"],
    "data.val_fraction": "test_size val_ratio val_size val_split",
    "out": "out_dir output output_dir outdir save_dir",
    "shard_tokens": "shard_size tokens_per_shard",
}
_KEYS = {
    "train": _TRAIN_KEYS,
    "drill": _TRAIN_KEYS,
    "sample": _SAMPLE_KEYS,
    "evaluate": _EVALUATE_KEYS,
    "prepare": _PREPARE_KEYS,
}
MEANT = {
    root: {alias: key for key, aliases in keys.items() for alias in aliases.split()}
    for root, keys in _KEYS.items()
}


def key_for(name: str, root: str) -> str:
    """Return the key of the command `root` that other programs call `name`; empty if unknown."""
    return MEANT[root].get(name.rpartition(".")[2], "")
