"""What a run scored, as the papers take it: the last evaluations, never the best."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from common.env_ids import D4RL_FILE_NAMES
from common.tables import Row

SCORES = {  # metrics that are scores, and what people call them; the first that an evaluation has is its score
    "evaluation/normalized_score": "normalised score (%)",
    "evaluation/success": "success (%)",
    "evaluation/return": "return",
}


def evaluations_in_score(family: str) -> int:
    """How many of the last evaluations the score is the mean of: of D4RL's sets one and of OGBench's three, as in the
    papers; three of everything else.
    """
    return 1 if family in D4RL_FILE_NAMES else 3


def headline_steps(family: str, args: Mapping[str, Any], evaluated: Collection[int]) -> list[int]:
    """The evaluations whose mean is the headline score: the last that were due. Never the best.

    An earlier one does not stand in for one that is missing, nor, of a fine-tuned run, one from before the switch.
    """
    end, interval, switch = max(evaluated), args["eval_interval"], args["offline_steps"]
    due = sorted({end, *range(interval, end, interval)})
    last = [step for step in due if end <= switch or step > switch][-evaluations_in_score(family) :]
    return [step for step in last if step in evaluated]


def score_metric(evaluations: Iterable[Row]) -> str:
    """The metric that is the score of these evaluations.

    Raises:
        KeyError: they have none.
    """
    had = set().union(*evaluations)
    for metric in SCORES:
        if metric in had:
            return metric
    raise KeyError(f"none of {', '.join(SCORES)}")


def scores(evaluations: Iterable[Row]) -> dict[int, float]:
    """By step, the score of each evaluation that has it; `KeyError` if none has.

    An environment may report success only where there is one: where it reports none, there was none.
    """
    rows = list(evaluations)
    metric = score_metric(rows)
    rows = [{metric: 0.0} | row if metric == "evaluation/success" else row for row in rows]
    return {int(row["step"]): row[metric] for row in rows if metric in row}
