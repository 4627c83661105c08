"""What stop rules are fitted, calibrated and evaluated on: scored traces.

A rule changes no draw of a thought, so one trace a problem, thought to its end,
tells what every rule at every threshold would have done with it: at each of its
boundaries the answer that would have been given, whether it is right, and the
scores that rules read.

Two kinds of trace: one ends where the model stops by itself ('own'), the other
is kept thinking to the budget ('forced'), for rules that may go past the own
stop. Row i of both draws alike, so that they are one trace up to there.

A rule looks before any thought and behind the first K - 1 delimiters, as
`anytime.generate(max_looks=K - 1)` does: what a trace ends with is no look, nor
is what comes after the K-th episode has begun. Scores are NaN where none is.
What is right at the own stop is the answer that is forced there.

Axes: N traces, K episodes, D features, A answer tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from meta_rl import batchwise, probes, prover, setup_steps, stopping
from meta_rl.compiled import CountedJit
from meta_rl.scoring import positions_of
from meta_rl.tasks.base import verifier

MODES = ('own', 'forced')
_NAMES = (
  'success thought count looked right confidence agreement probe_tokens '
  'features problem'
)


def make_calls(config, model, task, *, forced: bool = False) -> dict:
  """Returns the jitted `generate` and `look` of one kind of trace.

    generate(params, batch, key, row_offset) -> (Rollout, TraceCache)
    look(params, batch, traces, cache, key, row_offset) -> dict, as in `gather`

  Args:
    config: an RL config: thinking budget, temperature, episodes.
    model, task: the network and the task.
    forced: keep thinking to the budget.

  Raises:
    ValueError: episodes that do not end at delimiters.
  """
  boundaries = setup_steps.episode_boundaries(config, task)
  if boundaries != 'delimiters':
    raise ValueError(
      f'prover.boundaries={boundaries!r}: a stop rule sees a trace while it is '
      "written, and looks behind delimiters; set it to 'delimiters'."
    )
  own = setup_steps.measuring_config(config, task)
  budget = own.rollout.thinking_budget
  # What the traces' own answers are worth is not read: none is begun with.
  ungraded = dataclasses.replace(task, verify=lambda *args: task.verify(*args))
  generate, prove = setup_steps.make_calls(
    own, model, ungraded, group_size=1, min_thinking=budget if forced else None
  )

  def look(params, batch, traces, cache, key, row_offset=0):
    measured = prove(params, batch, traces, cache, key, row_offset)
    ends = measured.episodes.ends
    answers, mask, log_probs = prover.sample_answers(
      model,
      params,
      traces.tokens,
      traces.token_mask,
      ends,
      key,
      num_branches=1,
      max_answer_len=task.answer_length,
      stop_ids=task.stop_ids,
      eos_id=task.eos_id,
      stop_table=task.stop_table,
      temperature=0.0,
      cache=cache,
      block_rows=own.prover.get('block_rows') or 16,
      return_log_probs=True,
      raw_log_probs=True,
    )
    right = probes.rewards_of(verifier(task, batch), answers, mask)[..., 0]
    answers, mask, log_probs = (
      answers[:, :, 0],
      mask[:, :, 0],
      log_probs[:, :, 0],
    )
    features, _ = probes.features_of(
      model, params, traces.tokens, positions_of(traces.token_mask), None, None
    )
    looked = _looked(
      traces.tokens, ends, measured.episodes.count, task.delimiter_ids
    )
    score = lambda x: jnp.where(looked, x, jnp.nan)
    return {
      'success': measured.success,
      'thought': ends - ends[:, :1],
      'count': measured.episodes.count,
      'looked': looked,
      'right': right >= 1,
      'confidence': score(stopping.confidence(log_probs, mask)),
      'agreement': score(stopping.agreement(answers, mask)),
      'probe_tokens': jnp.where(
        looked, len(task.stop_ids) + mask.sum(-1) - 1, 0
      ),
      'features': jnp.take_along_axis(features, ends[..., None], axis=1),
    }

  return {'generate': CountedJit(generate), 'look': CountedJit(look)}


def _looked(tokens, ends, count, delimiter_ids):
  """Returns bool[B,K+1], the boundaries at which a rule looks."""
  boundary = jnp.arange(ends.shape[1])
  last = jnp.take_along_axis(tokens, ends, axis=1)
  ids = jnp.asarray(delimiter_ids, jnp.int32)
  inside = (boundary <= count[:, None]) & (boundary < ends.shape[1] - 1)
  return (boundary == 0) | (inside & (last[..., None] == ids).any(-1))


def gather(
  calls,
  params,
  batches: Sequence[dict],
  key,
  *,
  kept: batchwise.Kept | None = None,
  on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
  """Returns scored traces, numpy, N rows (host).

  Args:
    calls: of `make_calls`.
    params: the policy.
    batches: of `held_out.problem_batches`.
    key: PRNG key; row i draws from fold_in(key, i).
    kept, on_batch: as in `batchwise.in_batches`.

  Returns:
    success f32[N,K+1], J; thought i32[N,K+1], thinking tokens at each boundary;
    count i32[N]; looked bool[N,K+1], where a rule looks; right bool[N,K+1], of
    the greedy answer forced there; its confidence and agreement f32[N,K+1], and
    probe_tokens i32[N,K+1], what it takes; features f32[N,K+1,D] of the
    prefix's last token; problem i32[N]. Past `count` values are of no boundary.
  """

  def gather_batch(batch, offset):
    arrays = {k: v for k, v in batch.items() if k not in ('problem', 'counts')}
    traces, cache = calls['generate'](params, arrays, key, offset)
    look_key = jax.random.fold_in(key, 1)
    part = calls['look'](params, arrays, traces, cache, look_key, offset)
    del traces, cache
    part = jax.device_get(part) | {'problem': batch['problem']}
    return {k: v[batch['counts']] for k, v in part.items()}

  return batchwise.in_batches(
    gather_batch,
    batches,
    names=set(_NAMES.split()),
    kept=kept,
    on_batch=on_batch,
  )


def with_index(
  found: dict[str, np.ndarray], head: stopping.ProgressHead
) -> dict[str, np.ndarray]:
  """Returns the traces with the scores of the rule 'progress' too.

  Args:
    found: of `gather`.
    head: fitted to the policy.
  """
  index = jax.jit(stopping.progress_index)
  index = np.asarray(index(head, found['features'], found['thought']))
  return found | {'progress': np.where(found['looked'], index, np.nan)}
