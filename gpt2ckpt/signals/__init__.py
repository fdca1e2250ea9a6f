"""Handling of SIGINT, SIGTERM, SIGHUP (stop) and SIGUSR1 (save).

`early.py` handles them from a command's first line on, before and after a training, when there is
nothing to save. `training.py` handles them during a training: its handlers set flags, which the
training loop reads between two steps. `deadline.py` computes what fits into the grace period after
a signal. `sweeps.py` handles them in a sweep whose jobs train in worker processes.
"""
