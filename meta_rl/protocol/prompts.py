"""What to sample for the official protocol, and rows of what came back.

The sampling itself may be anybody's: these are the texts to be gone on from.

  1  whole thoughts, 16 a problem, at most 16384 tokens, at temperature 0.6 and
     top-p 0.95
  2  `forced_prompts` of each: its prefixes (episodes merged by 10) with the
     stop string behind them, 8 answers each of at most 4096 tokens
  3  budget forcing: `go_on` puts 'Wait', 'But wait', 'Alternatively', 'But hold
     on' in turn behind the thought, which then has 2048 tokens more
     (`finished` if it needs them all); after every second one 8 answers as
     before, from the thought as it stands
  4  a row of each trace (rows.py), its answers by `answer_of`

`rows_of_arrays` makes rows of what this library's own prover has sampled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from meta_rl import checks, episodes
from meta_rl.chat_template import Thinking, thinking

GROUP_SIZE, MAX_CUTS = 10, 99
WAITS = ('Wait', 'But wait', 'Alternatively', 'But hold on')
_BLANK_LINE = '\n\n'


def prefixes(
  thought: str, *, group_size: int = GROUP_SIZE, max_cuts: int = MAX_CUTS
) -> list[str]:
  """Returns the thought after 0, 1, … of its merged episodes, the last whole.

  Args:
    thought: text between the marks of thinking.
    group_size: episodes that are merged into one.
    max_cuts: of `episodes.split_text`.
  """
  parts = episodes.merge(
    episodes.split_text(thought, max_cuts=max_cuts), group_size
  )
  return [_BLANK_LINE.join(parts[:j]) for j in range(len(parts) + 1)]


def forced_prompts(
  prompt: str,
  thought: str,
  *,
  style: Thinking | None = None,
  group_size: int = GROUP_SIZE,
  max_cuts: int = MAX_CUTS,
) -> list[str]:
  """Returns the texts to be answered from: of each prefix, and the whole.

  Behind a prefix comes the stop string; the whole thought is closed only.

  Args:
    prompt: all before the thought, the mark that opens it included.
    thought: as in `prefixes`.
    style: whose strings; None: those of R1's distillates.
    group_size, max_cuts: as in `prefixes`.
  """
  style = style or thinking('r1')
  *cut, whole = prefixes(thought, group_size=group_size, max_cuts=max_cuts)
  stop = style.forced_stop()
  # Nothing stands before the stop string of the empty prefix: no blank line.
  stops = [stop.removeprefix(_BLANK_LINE)] + [stop] * (len(cut) - 1)
  return [
    *(prompt + text + end for text, end in zip(cut, stops)),
    prompt + whole + style.natural_stop(),
  ]


def go_on(thought: str, waits: int) -> str:
  """Returns the text that a thought goes on from, for one more wait.

  Args:
    thought: so far.
    waits: that it has had already, which says whose turn it is.
  """
  checks.check_count('waits', waits, low=0)
  return f'{thought}\n{WAITS[waits % len(WAITS)]}'


def finished(continuation: str) -> str:
  """Returns a continuation that ran out of tokens, its last paragraph left out.

  That is what the next wait comes behind; one that ended of itself stays whole.

  Args:
    continuation: what was written behind `go_on`.
  """
  return continuation.rpartition(_BLANK_LINE)[0] + '\n'


def answer_of(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an answer of the protocol's rows, of a row of `meta_rl.external`.

  Args:
    row: with response and log_probs, as `external.from_vllm` and its kin give.

  Raises:
    ValueError: it has no response text or log-probs.
  """
  drawn = [x for x in row.get('log_probs') or () if x is not None]
  if not isinstance(row.get('response'), str) or not drawn:
    raise ValueError(
      f'a row with keys {sorted(row)}: "response" and "log_probs" are needed.'
    )
  return {
    'text': row['response'],
    'tokens': len(row['log_probs']),
    'log_prob': min(float(np.mean(drawn)), 0.0),
  }


def rows_of_arrays(
  measured: Mapping[str, np.ndarray],
  answers: np.ndarray,
  answer_mask: np.ndarray,
  log_probs: np.ndarray,
  *,
  golds: Sequence[str | int],
  decode: Callable[[Sequence[int]], str],
  stop_ids: Sequence[int],
  answer_prefix: str = '',
  correct: np.ndarray | None = None,
  group_size: int = 1,
) -> list[dict[str, Any]]:
  """Returns rows of traces and forced answers that this library sampled.

  Args:
    measured: of `held_out.measure`: tokens i32[N,T], token_mask, ends
      i32[N,K+1], count i32[N] and problem i32[N].
    answers, answer_mask, log_probs: i32, bool and f32 [N,K+1,M,A] of
      `prover.sample_answers(…, return_log_probs=True)` at these ends.
    golds: the right answer of each problem.
    decode: token ids -> text.
    stop_ids: forced before the answers.
    answer_prefix: the part of their text that belongs to the answer, such as
      an opened box.
    correct: bool[N,K+1,M], where a verifier of the task graded them; None: the
      boxes are graded when the rows are read.
    group_size: boundaries that are merged into one.

  Raises:
    ValueError: shapes that do not fit, or a group_size below 1.
  """
  checks.check_count('group_size', group_size)
  ends = np.asarray(measured['ends'])
  shape = np.shape(answers)
  if len(shape) != 4 or shape[:2] != ends.shape:
    raise ValueError(
      f'answers has shape {shape} and ends {ends.shape}: [N,K+1,M,A] and '
      '[N,K+1] are needed.'
    )
  for name, value, wanted in (
    ('answer_mask', answer_mask, shape),
    ('log_probs', log_probs, shape),
    ('correct', correct, shape[:3]),
  ):
    if value is not None and np.shape(value) != wanted:
      raise ValueError(
        f'{name} has shape {np.shape(value)}: {wanted} is needed.'
      )
  stop = decode(list(stop_ids))
  rows, seen = [], {}
  for i, count in enumerate(np.asarray(measured['count']).tolist()):
    problem = int(measured['problem'][i])
    trace = seen[problem] = seen.get(problem, -1) + 1
    points = []
    for j in dict.fromkeys([*range(0, count, group_size), count]):
      columns = slice(0, int(ends[i, j]) + 1)
      real = np.asarray(measured['token_mask'][i][columns], bool)
      prefix = np.asarray(measured['tokens'][i][columns])[real].tolist()
      points.append(
        {
          'tokens': len(prefix) + len(stop_ids),
          'text': decode(prefix) + stop.removesuffix(answer_prefix),
          'answers': [
            _own_answer(
              answers[i, j, m],
              np.asarray(answer_mask[i, j, m], bool),
              log_probs[i, j, m],
              lambda ids: answer_prefix + decode(ids),
              None if correct is None else bool(correct[i, j, m]),
            )
            for m in range(shape[2])
          ],
        }
      )
    rows.append(
      {
        'problem': problem,
        'trace': trace,
        'gold': golds[problem],
        'points': points,
      }
    )
  return rows


def _own_answer(tokens, mask, log_probs, decode, correct) -> dict[str, Any]:
  drawn = np.asarray(log_probs, np.float64)[mask]
  answer = {
    'text': decode(np.asarray(tokens)[mask].tolist()),
    'tokens': int(mask.sum()),
  }
  if len(drawn):
    answer['log_prob'] = min(float(drawn.mean()), 0.0)
  return answer if correct is None else answer | {'correct': correct}
