"""Training on several ranks: process groups, sharding of steps, DDP and FSDP2."""
