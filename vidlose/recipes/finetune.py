"""`vidlose finetune`: clips go in, a trained motion module comes out, and what happened in between is written down."""

from dataclasses import replace

from vidlose import parallel
from vidlose.recipes import runtime
from vidlose.recipes.rehearsal import dry_run, dry_run_on_meta, fits, list_params
from vidlose.recipes.run_config import Asked, resumed, started
from vidlose.recipes.runtime import Reporter, Signals, Silence
from vidlose.recipes.training_plan import Plan
from vidlose.recipes.training_run import Run

MEMORY = (
    "lower --batch-size (and raise --accumulate), --frames, --width and --height or --blocks, or give"
    " --gradient-checkpointing, --cache FOLDER, --dtype bf16 or --optimizer adamw8bit; --dry-run measures a step"
)


def finetune(asked: Asked, report: Reporter) -> list[str]:
    """The run's folder, or nothing where only a look was asked for."""
    config, folder = (resumed if asked.resume else started)(asked)
    if asked.dry_run:  # which is to leave nothing behind
        config = replace(config, cache=None)
    device = runtime.device(config.device)
    processes = parallel.join(device.type)
    report = report if processes.first else Silence()
    processes.wait()  # all have seen the folder as it was
    with Signals() as signals, runtime.memory_errors(MEMORY):
        runtime.settle_memory(device)
        plan = Plan.of(config, device, processes)
        if asked.list_params:
            lines = list_params(plan)
        elif asked.dry_run and not fits(plan):
            lines = dry_run_on_meta(plan)
        else:
            plan.model.ready(device, plan.frozen)
            run = Run.of(plan, folder, signals, report)
            if asked.cache_only:
                lines = []
            elif asked.dry_run:
                lines = dry_run(run)
            else:
                run.open(asked.resume is not None)
                run.go()
                lines = [str(folder)]
    return lines if processes.first else []
