"""What the scripts do without training: print settings, evaluate and film a saved policy."""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

from common import compiled, machine, mujoco_versions
from common.arguments import Published, RunArgs, check_alone, for_evaluation, print_config
from common.evaluation import Evaluator, policies_of
from common.film import film
from common.progress import describe
from common.run_directory import RunDirectory
from common.runs import Outcome, Runs
from common.scores import score_metric
from common.seeds import keys_of_runs
from common.signals import StopSignals

import jax


def without_training(
    args: RunArgs,
    algorithm: str,
    published_settings: Published,
    init_state: Callable[..., Any],
    sample_action: Callable[..., Any],
) -> list[Outcome] | None:
    """What --print-config and --evaluate ask for: settings as JSON; or a saved policy evaluated, and filmed.

    Args:
        args: `evaluate`, and what is to differ from the settings of its run.
        algorithm: name of the script.
        published_settings: the paper's.
        init_state: its (args, observation_shape, action_dim, key) -> state.
        sample_action: its (args, params, observation, key) -> action.

    Raises:
        UserError: this is no run of this algorithm, or without a checkpoint; a setting that --evaluate does not take.
    """
    if args.print_config:
        return print_config(args, published_settings)
    check_alone(args)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # in a program that has not used JAX yet
    machine.check()
    compiled.keep()
    run, video = RunDirectory.open(args.evaluate, algorithm, lock=False), args.video
    dataset_path = run.find_data(args)
    run.note_changes_of_code()
    args = for_evaluation(run.read_args(type(args)), args)
    mujoco_versions.note_difference(run.spec, run.config["dataset"])
    runs = Runs([run], args, dataset_path, is_new=False)
    with contextlib.closing(Evaluator.of(runs)) as evaluator, StopSignals() as stop:
        step, params = run.newest_params(functools.partial(init_state, args, *run.sizes))
        policies = policies_of(functools.partial(sample_action, args), keys_of_runs(runs.seeds).evaluation)
        policy = policies(jax.tree.map(lambda leaf: leaf[None], params))
        results = evaluator(policy, stop.requested)
        if results is None:
            return [Outcome(run.path, step, None)]
        episodes = f"{args.eval_episodes} episode{'s' if args.eval_episodes > 1 else ''}"
        print(f"after update {step:,}, {episodes}: {describe(results[0])}")
        if video is not None:
            shown = min(args.eval_episodes, args.video_episodes or 3)
            which = {"seed": args.seed, "episodes": shown, "dataset_path": dataset_path}
            film(policy, video, run.spec, **which, frame_stack=args.frame_stack, should_stop=stop.requested)
    return [Outcome(run.path, step, results[0][score_metric(results)])]
