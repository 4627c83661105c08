"""The training step in a few calls, each jitted once per shape by its caller.

    generate   prompts -> traces and their KV cache
    prove      traces -> rewards, episode boundaries, J at each boundary
    score      traces -> log-probs under other parameters (the reference)
    value      traces -> the critic's values, of algorithms that have one
    update     traces and what was measured -> new parameters

Each `make_*` binds what is static and returns a pure function of arrays;
`fused` is their composition, one program for tasks that verify on the device.
Sharding, pmap and the host loop live with the callers.
"""

from meta_rl.steps.boundaries import BOUNDARIES, find_boundaries
from meta_rl.steps.branches import (
  PREFIX_POLICIES,
  PREFIX_SUCCESS,
  make_branch_prove,
  make_branches,
)
from meta_rl.steps.generate import make_generate
from meta_rl.steps.metrics import rollout_metrics
from meta_rl.steps.prove import PROVERS, answers_of, make_prove, per_trace
from meta_rl.steps.summaries import (
  join_rows,
  sample_summaries,
  summary_rows,
)
from meta_rl.steps.train import (
  fused,
  make_advantages,
  make_loss,
  make_rows,
  make_score,
  make_update,
  training_batch,
)
from meta_rl.steps.value import make_value, make_value_term

__all__ = [
  'BOUNDARIES',
  'PREFIX_POLICIES',
  'PREFIX_SUCCESS',
  'PROVERS',
  'answers_of',
  'find_boundaries',
  'fused',
  'join_rows',
  'make_advantages',
  'make_branch_prove',
  'make_branches',
  'make_generate',
  'make_loss',
  'make_prove',
  'make_rows',
  'make_score',
  'make_update',
  'make_value',
  'make_value_term',
  'per_trace',
  'rollout_metrics',
  'sample_summaries',
  'summary_rows',
  'training_batch',
]
