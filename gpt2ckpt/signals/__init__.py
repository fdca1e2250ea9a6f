"""Signal handling: SIGINT, SIGTERM and SIGHUP stop a command, SIGUSR1 requests a save.

`early.py` installs handlers for the time before and after training, when there is nothing to save.
`training.py` installs handlers for the time of training. They set flags, which the training loop
reads between two steps. `deadline.py` decides which step and which save fit into the grace period
after a signal. `sweeps.py` has the handlers of a sweep whose jobs train in worker processes.
"""
