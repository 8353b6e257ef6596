"""How long a config will take, told from finished runs like it. What no run tells is not known: nothing is
assumed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median

from django.db import connection

from trainer.config import RunConfig
from webapp.formatting import number
from webapp.runs.estimate import most_tokens

LIKE_IT = 20  # finished runs that tell, the newest
LOOKED_AT = 500  # of the class, the newest


@dataclass(frozen=True, slots=True)
class Pace:
    """What `n_runs` finished runs with the same model, engine, processes and resource class tell.

    `tokens_per_second`: sampled tokens over the seconds that workers held the run, so training, evaluation
    and checkpoints are in it; the median. `tokens_per_step`: the median of those that also had this sampler
    and as many problems per step (`n_runs` counts only them), None if none had. `seconds`: for all of this
    config's steps; an upper bound where `is_most`, because then only the most that its steps can sample is
    known. All None but `n_runs` 0: nothing is known.
    """

    n_runs: int
    tokens_per_second: float | None = None
    tokens_per_step: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    is_most: bool = False

    def basis(self, config: RunConfig) -> str:
        """A sentence: what the time rests on, or why there is none."""
        queue, processes = config.resources.queue, config.resources.processes
        like = "this model and engine" if self.tokens_per_step is None else "this model, engine and sampler"
        like += f" and {processes} processes" if processes > 1 else ""
        if self.tokens_per_second is None:
            return f"The time is not known yet: no run with {like} has finished in class {queue}."
        runs = "1 run" if self.n_runs == 1 else f"{self.n_runs} runs"
        speed = f"{number(self.tokens_per_second, 0)} tokens/s"
        return f"From {runs} with {like} that finished in class {queue}: {speed}."


def pace_of(config: RunConfig, from_step: int = 0) -> Pace:
    """The pace to expect of `config`, from the step on that a fork begins with. One query."""
    found = _finished_like(config)
    if not found:
        return Pace(n_runs=0)
    alike = [row for row in found if row[3]]
    rows = alike or found
    speed = median(tokens / seconds for tokens, seconds, _, _ in rows)
    most = most_tokens(config, from_step)
    each = median(tokens / steps for tokens, _, steps, _ in alike) if alike else None
    tokens = float(most) if each is None else min(each * (config.training.steps - from_step), float(most))
    limit = config.training.max_sampled_tokens
    if each is not None and limit:
        tokens = min(tokens, limit + each)
    return Pace(len(rows), speed, each, tokens, tokens / speed, is_most=each is None)


def _finished_like(config: RunConfig) -> list[tuple[float, float, int, bool]]:
    """(sampled tokens, seconds at work, steps, has its sampler and problems per step) of finished runs with
    the model, engine, processes and class of `config`; those that are most like it first, then the newest.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT s.last_value, held.seconds, r.step,
                   r.config->'sampler' = %s::jsonb AND r.config#>'{training,problems_per_step}' = %s::jsonb
                   AND r.config#>'{credit,filter}' = %s::jsonb AS is_alike
            FROM (
                SELECT id, step, config FROM arborist_run
                WHERE status = 'succeeded' AND origin = 'trained' AND parent_step IS NULL AND step > 0
                  AND queue = %s
                ORDER BY id DESC LIMIT %s
            ) r
            JOIN arborist_series s
              ON s.run_id = r.id AND s.name = 'tree/unique_tokens_total' AND s.last_value > 0
            CROSS JOIN LATERAL (
                SELECT extract(epoch FROM sum(ended_at - started_at))::float8 AS seconds
                FROM arborist_attempt WHERE run_id = r.id
            ) held
            WHERE r.config#>>'{model,path}' = %s AND r.config#>>'{engine,kind}' = %s
              AND coalesce((r.config#>>'{resources,processes}')::int, 1) = %s AND held.seconds > 0
            ORDER BY is_alike DESC, r.id DESC LIMIT %s
            """,
            [
                json.dumps(config.sampler.model_dump(mode="json")),
                json.dumps(config.training.problems_per_step),
                json.dumps(config.credit.filter.model_dump(mode="json")),
                config.resources.queue,
                LOOKED_AT,
                config.model.path,
                config.engine.kind,
                config.resources.processes,
                LIKE_IT,
            ],
        )
        return [
            (float(tokens), seconds, steps, bool(is_alike)) for tokens, seconds, steps, is_alike in cursor
        ]
