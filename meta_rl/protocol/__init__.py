"""The official MRT evaluation, from files of forced answers (__main__.py).

    rows = read_rows('base.jsonl')
    traces, _ = grade_rows(rows)
    evaluate_traces(traces)['regret_normalized']

`[maj@p]_j` of any arrays, and its figures, are those of meta_rl/votes.py.
"""

from meta_rl.protocol.curves import (
  FAULTS,
  Curve,
  curve_of,
  faults_of,
  normalized_regret,
)
from meta_rl.protocol.figures import compare, evaluate_traces
from meta_rl.protocol.grades import Graded, Trace, grade_rows
from meta_rl.protocol.prompts import (
  answer_of,
  finished,
  forced_prompts,
  go_on,
  prefixes,
  rows_of_arrays,
)
from meta_rl.protocol.rows import Row, read_rows
from meta_rl.votes import maj_at_p, vote_figures, vote_weights

__all__ = [
  'FAULTS',
  'Curve',
  'Graded',
  'Row',
  'Trace',
  'answer_of',
  'compare',
  'curve_of',
  'evaluate_traces',
  'faults_of',
  'finished',
  'forced_prompts',
  'go_on',
  'grade_rows',
  'maj_at_p',
  'normalized_regret',
  'prefixes',
  'read_rows',
  'rows_of_arrays',
  'vote_figures',
  'vote_weights',
]
