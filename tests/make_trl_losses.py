"""Writes tests/data/trl_losses.json: TRL's GRPO losses on random inputs.

    TRL_PYTHON tests/make_trl_losses.py tests/data/trl_losses.json

in an environment that has torch and trl, which meta_rl itself never needs. The
method that computes the loss is TRL's own, called on a trainer that was not
built: it gets log-probs in place of a model's. The inputs come from numpy seeds
(`make_inputs`), so that the file holds results alone.

`tests/test_losses_trl.py` reads the file, and imports this module for the cases
and their inputs; trl is imported inside functions only.
"""

import collections
import itertools
import json
import pathlib
import sys
import types

import numpy as np

ROWS, LENGTH = 5, 7
CONSTANT = 11  # max_completion_length, the denominator of dr_grpo
# In TRL's terms: a ratio in [1 - EPSILON, 1 + EPSILON_HIGH], and for cispo
# capped at CISPO_CAP itself.
EPSILON, EPSILON_HIGH, CISPO_CAP = 0.2, 0.28, 1.5

LOSS_TYPES = ('grpo', 'dr_grpo', 'dapo', 'bnpo', 'cispo')
# Means over tokens: of the whole batch, or of each micro-batch, then of those.
TOKEN_MEANS = ('dapo', 'bnpo')
LEVELS = ('token', 'sequence')
BETAS = (0.0, 0.1)
SEEDS = (0, 1, 2)
# One advantage a trace, as TRL gives them, or one a token, which it takes too.
ADVANTAGES = ('trace', 'token')
# Rows of the batches that the batch is accumulated from: of unlike numbers of
# tokens, so that dapo and bnpo part.
WHOLE = ((0, ROWS),)
MICRO_BATCHES = ((0, 3), (3, ROWS))


def cases():
  """Returns the options of every case, as dicts."""
  names = ('loss_type', 'level', 'beta', 'seed', 'advantages', 'micro_batches')
  product = itertools.product
  rows = product(LOSS_TYPES, LEVELS, BETAS, SEEDS, ADVANTAGES[:1], [1])
  # Per token with the first seed alone.
  more = product(LOSS_TYPES, LEVELS, BETAS[:1], SEEDS[:1], ['token'], [1])
  parts = product(TOKEN_MEANS, LEVELS, BETAS, SEEDS, ADVANTAGES[:1], [2])
  return [dict(zip(names, row)) for row in (*rows, *more, *parts)]


def row_ranges(micro_batches):
  """Returns the first and last + 1 row of every micro-batch."""
  return WHOLE if micro_batches == 1 else MICRO_BATCHES


def make_inputs(seed, advantages):
  """Returns log_probs, behavior, reference, advantages [B,T] and a mask.

  Rows are of 1 to T tokens, the longest without a gap and others with holes, as
  tool outputs leave them; log-ratios are large enough for both clips to act.
  """
  rng = np.random.default_rng(seed)
  shape = (ROWS, LENGTH)
  log_probs = -rng.random(shape) - 0.1
  behavior = log_probs + 0.4 * rng.standard_normal(shape)
  behavior += 0.4 * rng.standard_normal((ROWS, 1))
  reference = log_probs + 0.3 * rng.standard_normal(shape)
  width = 1 if advantages == 'trace' else LENGTH
  advantage = np.broadcast_to(rng.standard_normal((ROWS, width)), shape)
  lengths = rng.permutation([1, 3, 5, LENGTH - 1, LENGTH])[:, None]
  mask = np.arange(LENGTH) < lengths
  mask[:, 1:] &= (rng.random((ROWS, LENGTH - 1)) < 0.6) | (lengths == LENGTH)
  arrays = (log_probs, behavior, reference, advantage)
  return *(x.astype(np.float32) for x in arrays), mask


def trl_loss(loss_type, level, beta, seed, advantages, micro_batches):
  """Returns TRL's loss and its gradient with respect to the log-probs.

  Over several micro-batches both are accumulated: TRL divides each by what it
  takes for its share.
  """
  import torch
  from trl import GRPOTrainer

  arrays = make_inputs(seed, advantages)
  log_probs, behavior, reference, advantage = (
    torch.tensor(x, dtype=torch.float64) for x in arrays[:4]
  )
  mask = torch.tensor(arrays[4], dtype=torch.int64)
  log_probs.requires_grad_(True)
  trainer = object.__new__(GRPOTrainer)
  settings = {
    'loss_type': loss_type,
    'importance_sampling_level': level,
    'beta': beta,
    'epsilon_low': EPSILON,
    'epsilon_high': CISPO_CAP if loss_type == 'cispo' else EPSILON_HIGH,
    'max_completion_length': CONSTANT,
    # Everything else off, and one process, one optimizer step a batch.
    'args': types.SimpleNamespace(
      delta=None,
      use_bias_correction_kl=False,
      steps_per_generation=micro_batches,
    ),
    'accelerator': types.SimpleNamespace(
      num_processes=1, reduce=lambda x, **_: x, gather=lambda x: x
    ),
    'model': types.SimpleNamespace(training=True),
    'current_gradient_accumulation_steps': micro_batches,
    'aux_loss_enabled': False,
    'top_entropy_quantile': 1.0,
    'off_policy_mask_threshold': None,
    'use_vllm': False,
    'vllm_importance_sampling_correction': False,
    '_entropy_bonus_enabled': False,
    '_metrics': {'train': collections.defaultdict(list)},
  }
  for name, value in settings.items():
    object.__setattr__(trainer, name, value)
  total = 0.0
  for first, end in row_ranges(micro_batches):
    rows = slice(first, end)
    # What the model would say of these rows.
    scored = log_probs[rows], torch.zeros(end - first, LENGTH), None
    trainer._get_per_token_logps_and_entropies = lambda *_, s=scored, **__: s
    tokens = torch.zeros_like(mask[rows])
    given = advantage[rows]
    loss = trainer._compute_loss(
      trainer.model,
      {
        'prompt_ids': tokens[:, :1],
        'prompt_mask': torch.ones_like(tokens[:, :1]),
        'completion_ids': tokens,
        'completion_mask': torch.ones_like(tokens),
        'tool_mask': mask[rows],
        'advantages': given[:, 0] if advantages == 'trace' else given,
        'old_per_token_logps': behavior[rows],
        'ref_per_token_logps': reference[rows],
        'num_items_in_batch': mask.sum(),
      },
    )
    loss.backward()
    total += loss.item()
  return total, log_probs.grad.numpy()


def versions():
  """Returns the versions that the results are of."""
  import torch
  import trl

  return {'trl': trl.__version__, 'torch': torch.__version__}


def results():
  """Returns the cases with their `loss` and `gradient`, to 7 digits."""
  rows = []
  for case in cases():
    loss, gradient = trl_loss(**case)
    digits = lambda x: float(f'{x:.7g}')
    gradient = [[digits(x) for x in row] for row in gradient.tolist()]
    rows.append(case | {'loss': digits(loss), 'gradient': gradient})
  return rows


def main(path):
  """Writes the file, one case a line."""
  lines = ',\n'.join(f'  {json.dumps(row)}' for row in results())
  head = json.dumps(versions())
  text = f'{{"versions": {head}, "cases": [\n{lines}\n]}}\n'
  pathlib.Path(path).write_text(text, 'utf-8')


if __name__ == '__main__':
  main(sys.argv[1])
