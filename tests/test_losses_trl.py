"""Our losses against those of TRL, which is not ours.

What TRL's GRPOTrainer says on random inputs is recorded in
tests/data/trl_losses.json by tests/make_trl_losses.py. The test marked `full`
asks it again: it needs an environment with torch and trl, this one or the one
whose Python META_RL_TRL_PYTHON names. `bash test.sh trl` makes it and runs this
file.

    TRL loss_type   losses.policy_gradient
    grpo            aggregate='sequence_mean'
    dr_grpo         aggregate='constant', constant=max_completion_length
    bnpo            aggregate='token_mean'
    dapo            aggregate='token_mean'
    cispo           the same with surrogate='cispo', clip_low=1 (none) and
                    clip_high=epsilon_high - 1

    importance_sampling_level   ratio
    beta                        beta times losses.kl_penalty(estimator='k3')

Where the two differ:

- dapo divides by the tokens of the whole batch and bnpo by those of a
  micro-batch, so that they are the same where there is one. Ours is always
  dapo's: sums are divided once. bnpo over two micro-batches is the mean of our
  losses of each.
- cispo caps the ratio at epsilon_high itself, from above alone.
- TRL's sequence level is plain GSPO: its gradient spreads over a trace. Ours is
  GSPO-token, which is the same where a trace has one advantage, and gives each
  token its own where it has not.
- grpo counts a row without a token in its mean, as 0; ours leaves it out.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import jax
import make_trl_losses as trl
import numpy as np
import pytest
from conftest import ROOT

from meta_rl import losses

SCRIPT = ROOT / 'tests' / 'make_trl_losses.py'
DATA = ROOT / 'tests' / 'data' / 'trl_losses.json'
AGGREGATES = {
  'grpo': 'sequence_mean',
  'dr_grpo': 'constant',
  'bnpo': 'token_mean',
  'dapo': 'token_mean',
  'cispo': 'token_mean',
}
EACH = [(t, level) for t in trl.LOSS_TYPES for level in trl.LEVELS]


@functools.cache
def recorded():
  """The cases of the file, each with TRL's loss and gradient."""
  return json.loads(DATA.read_text('utf-8'))['cases']


@functools.partial(jax.jit, static_argnames=('loss_type', 'level', 'ranges'))
def our_loss(log_probs, behavior, reference, advantage, mask, beta, **which):
  """Our value, its gradient in log_probs, and the last micro-batch's metrics.

  Of several micro-batches, rows of `ranges`, sums are added and divided once,
  but for 'bnpo', which is the mean of each one's own quotient.
  """
  shared = {
    'aggregate': AGGREGATES[which['loss_type']],
    'constant': trl.CONSTANT,
  }
  clip = {'clip_low': trl.EPSILON, 'clip_high': trl.EPSILON_HIGH}
  if which['loss_type'] == 'cispo':
    clip = {'clip_low': 1.0, 'clip_high': trl.CISPO_CAP - 1}
    clip['surrogate'] = 'cispo'

  def part(x, first, end):
    rows = slice(first, end)
    x, old, initial = x[rows], behavior[rows], reference[rows]
    loss, metrics = losses.policy_gradient(
      x,
      old,
      advantage[rows],
      mask[rows],
      ratio=which['level'],
      **clip,
      **shared,
    )
    kl, _ = losses.kl_penalty(x, initial, mask[rows], estimator='k3', **shared)
    return loss.total + beta * kl.total, loss.weight, metrics

  def value(x):
    parts = [part(x, *rows) for rows in which['ranges']]
    total, weight, metrics = zip(*parts)
    if which['loss_type'] == 'bnpo':
      quotients = [t / w for t, w in zip(total, weight)]
      return sum(quotients) / len(quotients), metrics[-1]
    return sum(total) / sum(weight), metrics[-1]

  return jax.value_and_grad(value, has_aux=True)(log_probs)


def ours(case):
  """(value, gradient, metrics) of our loss in a case."""
  arrays = trl.make_inputs(case['seed'], case['advantages'])
  (value, metrics), gradient = our_loss(
    *arrays,
    case['beta'],
    loss_type=case['loss_type'],
    level=case['level'],
    ranges=trl.row_ranges(case['micro_batches']),
  )
  return value, np.asarray(gradient), metrics


def same_gradient(case):
  """Whether TRL and we mean the same gradient: see the head of this file."""
  return (
    case['advantages'] == 'trace'
    or case['level'] == 'token'
    or case['loss_type'] == 'cispo'
  )


def check(case):
  """Compares our loss with the case's record of TRL's."""
  value, gradient, _ = ours(case)
  np.testing.assert_allclose(value, case['loss'], atol=1e-5)
  if same_gradient(case):
    np.testing.assert_allclose(gradient, case['gradient'], atol=1e-5)


@pytest.mark.parametrize('loss_type, level', EACH)
def test_value_and_gradient_are_those_that_trl_gave(loss_type, level):
  found = [
    case
    for case in recorded()
    if (case['loss_type'], case['level']) == (loss_type, level)
  ]
  # Three seeds with and without KL, and one with an advantage a token; the six
  # in two micro-batches, too, where that can matter.
  assert len(found) == (13 if loss_type in trl.TOKEN_MEANS else 7)
  for case in found:
    check(case)


@pytest.mark.parametrize('level', trl.LEVELS)
def test_dapo_and_bnpo_part_over_micro_batches_alone(level):
  """Otherwise their comparisons above would be one comparison twice."""
  found = {
    (c['loss_type'], c['micro_batches']): np.asarray(c['gradient'])
    for c in recorded()
    if (c['level'], c['beta'], c['seed'], c['advantages'])
    == (level, 0.0, 0, 'trace')
  }
  whole, parts = found['dapo', 1], found['bnpo', 2]
  np.testing.assert_array_equal(found['bnpo', 1], whole)
  np.testing.assert_allclose(found['dapo', 2], whole, atol=1e-7)
  assert np.abs(parts - whole).max() > 0.01
  # Of n tokens a micro-batch has m: 1/(2 m) in place of 1/n.
  mask = trl.make_inputs(0, 'trace')[-1]
  tokens = [mask[slice(*rows)].sum() for rows in trl.MICRO_BATCHES]
  for rows, own in zip(trl.MICRO_BATCHES, tokens):
    np.testing.assert_allclose(
      parts[slice(*rows)],
      whole[slice(*rows)] * sum(tokens) / (2 * own),
      atol=1e-6,
    )


def test_the_file_holds_every_case():
  results = ('loss', 'gradient')
  found = [
    {k: v for k, v in case.items() if k not in results} for case in recorded()
  ]
  assert found == trl.cases()


def test_the_inputs_try_what_can_differ():
  """Holes, rows of one token, and ratios on both sides of both clips."""
  tokens, rows, holes = [], [], 0
  for seed in trl.SEEDS:
    log_probs, behavior, _, _, mask = trl.make_inputs(seed, 'trace')
    assert (mask.sum(1).min(), mask.sum(1).max()) == (1, trl.LENGTH)
    holes += (np.diff(mask.astype(int)) > 0).sum()
    log_ratio = log_probs - behavior
    tokens += np.exp(log_ratio)[mask].tolist()
    rows += [np.exp(x[m].mean()) for x, m in zip(log_ratio, mask)]
  assert holes > 2
  for ratio in (tokens, rows):
    assert min(ratio) < 1 - trl.EPSILON
    assert max(ratio) > max(trl.CISPO_CAP, 1 + trl.EPSILON_HIGH)
    assert np.mean(np.abs(np.log(ratio)) < np.log(1.2)) > 0.1
  # The gradient of a clipped token is 0 in TRL's record too.
  (case,) = [
    c
    for c in recorded()
    if c['advantages'] == 'token' and c['loss_type'] == 'dapo'
    if c['level'] == 'token'
  ]
  mask = trl.make_inputs(0, 'token')[-1]
  zeros = (np.asarray(case['gradient']) == 0)[mask].mean()
  assert 0.1 < zeros < 0.9
  _, _, metrics = ours(case)
  np.testing.assert_allclose(metrics['clip_fraction'].value, zeros, rtol=1e-6)


@pytest.mark.parametrize('loss_type', ['grpo', 'dr_grpo', 'dapo', 'bnpo'])
def test_a_token_keeps_its_own_credit_at_sequence_level(loss_type):
  """GSPO-token where TRL has plain GSPO: the same sums, spread otherwise."""
  (case,) = [
    c
    for c in recorded()
    if (c['advantages'], c['loss_type'], c['level'])
    == ('token', loss_type, 'sequence')
  ]
  mask = trl.make_inputs(case['seed'], 'token')[-1]
  theirs = np.asarray(case['gradient'])
  _, gradient, _ = ours(case)
  np.testing.assert_allclose(gradient.sum(1), theirs.sum(1), atol=1e-5)
  spread = [np.ptp(g[m]) for g, m in zip(theirs, mask)]
  np.testing.assert_allclose(spread, 0, atol=1e-6)
  assert np.max([np.ptp(g[m]) for g, m in zip(gradient, mask)]) > 0.01


def test_gspo_token_by_hand():
  # Row 0: log-ratios .1, .3, mean .2: s = e^.2 = 1.221403 on both, within 1.28.
  # Its A are 1 and -3; over 2 tokens and 2 rows: -s·A/4 = -.305351, .916052.
  # Row 1: log-ratio .5: s = 1.648721 is cut at 1.28 where A > 0, and where
  # A < 0 it is not: -min(s·A, 1.28·A) = -s·A: gradients 0 and s·2/4 = .824361.
  log_probs = np.array([[-1.0, -2.0], [-1.5, -0.5]], np.float32)
  behavior = log_probs - np.array([[0.1, 0.3], [0.4, 0.6]], np.float32)
  advantages = np.array([[1.0, -3.0], [1.0, -2.0]], np.float32)

  def value(x):
    loss, _ = losses.policy_gradient(
      x,
      behavior,
      advantages,
      np.ones((2, 2), bool),
      clip_high=0.28,
      ratio='sequence',
      aggregate='sequence_mean',
    )
    return loss.value

  np.testing.assert_allclose(
    jax.grad(value)(log_probs),
    [[-0.305351, 0.916052], [0.0, 0.824361]],
    atol=1e-6,
  )


def test_a_row_without_a_token_is_left_out():
  """TRL's grpo divides by all rows: by hand, for the record has none such."""
  arrays = [np.ones((2, 3), np.float32)] * 3
  mask = np.array([[True, True, False], [False, False, False]])
  loss, _ = losses.policy_gradient(*arrays, mask)
  assert (loss.total, loss.weight) == (-1, 1)  # in place of 2


@pytest.mark.full
def test_trl_itself_says_the_same(tmp_path):
  python = os.environ.get('META_RL_TRL_PYTHON')
  if python is None:
    if importlib.util.find_spec('trl') is None:
      pytest.skip('no trl here, and META_RL_TRL_PYTHON names no environment')
    python = sys.executable
  result = subprocess.run(
    [python, SCRIPT, tmp_path / 'now.json'],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert result.returncode == 0, result.stderr
  now = json.loads((tmp_path / 'now.json').read_text('utf-8'))
  assert len(now['cases']) == len(recorded())
  for case, before in zip(now['cases'], recorded()):
    assert case.keys() == before.keys()
    np.testing.assert_allclose(case['loss'], before['loss'], atol=1e-6)
    np.testing.assert_allclose(case['gradient'], before['gradient'], atol=1e-6)
    check(case)
