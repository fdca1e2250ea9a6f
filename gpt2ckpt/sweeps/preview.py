"""The dry run of a sweep: prints what each job would do."""

from itertools import count

from gpt2ckpt.errors import UserError
from gpt2ckpt.runs.claim import claim_base, holds_sweep
from gpt2ckpt.runs.lock import refuse_if_locked
from gpt2ckpt.sweeps.job import find_job_start
from gpt2ckpt.sweeps.plan import PlannedJob, SweepPlan
from gpt2ckpt.sweeps.table import Row, table
from gpt2ckpt.training.plan_warnings import plan_warnings
from gpt2ckpt.training.validate_run import finished_notice, validate_run


def preview(plan: SweepPlan) -> int:
    """Print the table of the jobs; return 1 if a job would be refused."""
    where = plan.wanted
    if not plan.is_continued and holds_sweep(where):
        where = where.with_name(f"{claim_base(where).name}_sweep_…")
    print(f"dry run: nothing is written; the folder of the sweep would be {where}")
    if not plan.jobs:
        print(f"{plan.hydra.sweeper._target_.rpartition('.')[2]} chooses the jobs during the sweep")
        return 0
    taken = {job.own.directory.name for job in plan.jobs if job.own}
    free = (str(n) for n in count() if str(n) not in taken and not (where / str(n)).exists())
    rows = [_row(plan, job, free_name=None if job.own else next(free)) for job in plan.jobs]
    print("\n".join(table(rows)))
    return 1 if any(row.status == "refused" for row in rows) else 0


def _row(plan: SweepPlan, job: PlannedJob, free_name: str | None) -> Row:
    name = job.own.directory.name if job.own else str(free_name)
    try:
        if job.own is not None:
            refuse_if_locked(job.own.directory)
        start = find_job_start(
            plan.line,
            sweep=plan.wanted,
            overrides=job.overrides,
            values=job.values,
            own=job.own,
            locks=False,
        )
        validated = validate_run(start)
    except UserError as error:
        return Row(name, job.job.label, "refused", None, str(error))
    state = start.state
    best = state.best_val_loss if state else None
    if finished_notice(start, validated):
        return Row(name, job.job.label, "finished", best)
    if state is None:
        status, changes = "new" if job.own is None else "restart", ""
    else:
        action = "resume" if start.directory else "fork"
        status = f"{action} from step {state.step:,}"
        changes = "; ".join(map(str, start.changes))
    return Row(name, job.job.label, status, best, changes, tuple(plan_warnings(validated)))
