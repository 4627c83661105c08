"""The training step in a few calls, each jitted once per shape by its caller.

    generate   prompts -> traces and their KV cache
    prove      traces -> rewards, episode boundaries, J at each boundary
    score      traces -> log-probs under other parameters (the reference), or
               under the policy's own for traces that another engine sampled
    value      traces -> the critic's values, of algorithms that have one
    update     traces and what was measured -> new parameters

Each `make_*` binds what is static and returns a pure function of arrays;
`fused` is their composition, one program for tasks that verify on the device,
and `make_block` several of these in one dispatch.
Sharding, pmap and the host loop live with the callers.
"""

from meta_rl.rollout import answers_of
from meta_rl.steps.answers import make_answers
from meta_rl.steps.block import Block, Limits, left_of, make_block
from meta_rl.steps.boundaries import BOUNDARIES, find_boundaries
from meta_rl.steps.branches import (
  PREFIX_POLICIES,
  PREFIX_SUCCESS,
  make_branch_prove,
  make_branches,
)
from meta_rl.steps.generate import make_generate
from meta_rl.steps.metrics import rollout_metrics
from meta_rl.steps.pathwise import (
  PATHWISE,
  differentiated_tokens,
  make_pathwise_term,
  make_prepare,
  with_answers,
)
from meta_rl.steps.prove import (
  BLOCK_ROWS,
  KINDS,
  PROVERS,
  make_prove,
  per_trace,
)
from meta_rl.steps.replay import (
  CORRECTIONS,
  make_correction,
  replay,
  with_given_rewards,
)
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
  'BLOCK_ROWS',
  'BOUNDARIES',
  'Block',
  'CORRECTIONS',
  'KINDS',
  'Limits',
  'PATHWISE',
  'PREFIX_POLICIES',
  'PREFIX_SUCCESS',
  'PROVERS',
  'answers_of',
  'differentiated_tokens',
  'find_boundaries',
  'fused',
  'join_rows',
  'left_of',
  'make_advantages',
  'make_answers',
  'make_block',
  'make_branch_prove',
  'make_branches',
  'make_correction',
  'make_generate',
  'make_loss',
  'make_pathwise_term',
  'make_prepare',
  'make_prove',
  'make_rows',
  'make_score',
  'make_update',
  'make_value',
  'make_value_term',
  'per_trace',
  'replay',
  'rollout_metrics',
  'sample_summaries',
  'summary_rows',
  'training_batch',
  'with_answers',
  'with_given_rewards',
]
