"""The checker of traces: flaws by hand, flaws in generated traces, shares."""

import numpy as np
import pytest

from meta_rl import held_out, tokenizer
from meta_rl.configs import mrt_countdown
from meta_rl.tasks import check, countdown, traces

EASY = countdown.make_problem((3, 5, 7), 9, '+-')


def ids(text):
  return tokenizer.encode(f'<bos> 3 5 7 = 9 <think> {text}')


@pytest.mark.parametrize(
  'text, flaws',
  [
    ('7 5 + 12 3 + 15 no ; back 1 - 9 yes ;', ['', 'form values verdict']),
    ('7 5 + 12 3 + 15 no ; back 1 3 - 9 yes ;', ['', '']),
    # The value is wrong, and what is claimed of the target is of the truth.
    ('7 5 + 12 3 + 15 no ; back 1 3 - 8 no ;', ['', 'values verdict']),
    ('7 5 + 13 3 - 9 yes ;', ['values']),
    # A wrong value is judged where it is written, not where it is kept.
    ('7 5 + 13 3 + 16 no ; back 1 3 - 10 yes ;', ['values', '']),
    ('7 5 + 12 3 + 15 yes ;', ['verdict']),
    ('7 5 + 12 3 - 9 no ;', ['verdict']),
    # Nothing to go back to, too far, and back to the same.
    ('back 0 7 5 + 12 3 - 9 yes ;', ['form values verdict']),
    (
      '7 5 + 12 3 + 15 no ; back 2 3 - 9 yes ;',
      ['', 'form values reuse verdict'],
    ),
    ('7 5 + 12 3 + 15 no ; back 1 3 + 15 no ;', ['', 'reuse']),
    ('7 5 + 12 3 + 15 no ; back 0 7 5 + 12 3 + 15 no ;', ['', 'reuse']),
    ('7 5 + 12 3 + 15 no ; 7 5 + 12 3 - 9 yes ;', ['', 'reuse']),
    (
      '7 5 + 12 3 + 15 no ; back yes 3 - 9 yes ;',
      ['', 'form values reuse verdict'],
    ),
    # Not canonical: the smaller first, a negative value, a number not given,
    # one used twice, one left over.
    ('5 7 + 12 3 - 9 yes ;', ['form values verdict']),
    ('7 5 - 2 3 - 1 no ;', ['form values verdict']),
    ('7 6 + 13 3 - 10 no ;', ['form values verdict']),
    ('7 7 + 14 5 - 9 yes ;', ['form values verdict']),
    ('7 5 + 12 no ;', ['form values verdict']),
    # An operator that is not allowed, one without a value, words of no step.
    ('7 5 * 35 3 - 32 no ;', ['form values verdict']),
    ('7 5 + 3 - 9 yes ;', ['form values verdict']),
    ('7 5 + 12 3 - 9 = yes ;', ['form verdict']),
    # Cut off, and without a verdict.
    ('7 5 + 12 3 - 9 yes', ['form values verdict']),
    ('7 5 + 12 3 - 9 ;', ['form values verdict']),
    (';', ['form values verdict']),
    # What comes behind the marker or EOS is no thought.
    ('7 5 + 12 3 - 9 yes ; </think> 7 5 + 3 - <eos>', ['']),
    ('7 5 + 12 3 - 9 yes ; <eos> ; ;', ['']),
    ('</think> 7', []),
  ],
)
def test_flaws_by_hand(text, flaws):
  found = check.check_trace(ids(text), mode='backtrack', ops='+-')
  names = ('form', 'values', 'reuse', 'verdict')
  shown = [
    ' '.join(name for name in names if not getattr(episode, name))
    for episode in found
  ]
  assert shown == flaws
  assert [episode.valid for episode in found] == [not flaw for flaw in flaws]


def test_restarts_are_checked_too():
  text = '7 5 + 12 3 + 15 no ; 7 5 + 12 3 + 15 no ; back 1 3 - 9 yes ;'
  found = check.check_trace(ids(text))
  assert [episode.valid for episode in found] == [True, True, False]
  # Division must be exact, values within the limit.
  rules = {'ops': '+-*/', 'max_value': 30}
  for text, good in (
    ('7 5 / 1 3 - 0 no ;', False),
    ('7 5 * 35 3 - 32 no ;', False),
    ('7 5 3 / 1 + 8 no ;', False),
    ('7 3 * 21 5 - 16 no ;', True),
  ):
    found = check.check_trace(ids(text), **rules)
    assert [episode.valid for episode in found] == [good], text
  padded = [0, 0, *ids('7 5 + 12 3 - 9 yes ;'), 0]
  assert [e.valid for e in check.check_trace(padded)] == [True]
  # Padding that a policy writes into its thought is a word like any other.
  padded.insert(padded.index(tokenizer.DELIMITER), 0)
  assert [e.form for e in check.check_trace(padded)] == [False]


@pytest.mark.parametrize(
  'text',
  ['7 5 +', '<bos> 3 5 9 <think> 7', '<bos> 3 + = 9 <think>', '<think> 3'],
)
def test_a_trace_without_its_prompt_is_refused(text):
  with pytest.raises(ValueError, match='must begin with its prompt'):
    check.check_trace(tokenizer.encode(text))


def test_one_wrong_token_is_found():
  """The steps kept, a value, a verdict: the checker says which is wrong."""
  rng = np.random.default_rng(6)
  found = {'kept': 0, 'value': 0, 'verdict': 0}
  rules = {'mode': 'backtrack', 'ops': '+-'}
  while min(found.values()) < 20:
    tokens, start = traces.sample_trace(
      EASY, rng, mode='backtrack', direct_share=0.0
    )
    episode, before, signs = 0, 0, (tokenizer.PLUS, tokenizer.MINUS)
    for i in range(start, tokens.tolist().index(tokenizer.END_THINK)):
      wrong, kind = tokens.copy(), None
      if before == tokenizer.BACKTRACK:
        kind, wrong[i] = 'kept', tokenizer.integer(1) - tokens[i] + 16
      elif before in signs:
        kind, wrong[i] = 'value', tokens[i] + (1 if tokens[i] < 50 else -1)
      elif tokens[i] in (tokenizer.YES, tokenizer.NO):
        kind, wrong[i] = 'verdict', 15 - tokens[i]
      if kind:
        found[kind] += 1
        checked = check.check_trace(wrong, **rules)[episode]
        assert checked.form == (kind != 'kept')
        assert checked.values == (kind == 'verdict')
        assert checked.verdict == (kind == 'value')
        assert not checked.valid
      episode += tokens[i] == tokenizer.DELIMITER
      before = tokens[i]


def test_shares_of_episodes_by_hand():
  texts = [
    '7 5 + 12 3 - 9 yes ; 7 5 + 12 3 - 9 yes ;',  # true, and not a going back
    '7 5 + 12 3 + 15 no ; back 1 3 - 8 yes ; </think> 7',  # a value is wrong
    '</think> 7',
    '7 5 + 12 3 + 15 no ; back 1 3',  # the budget cut off the second
    '7 ' * 20,  # it is longer than an episode can be
  ]
  rows = [ids(text) for text in texts]
  tokens = np.zeros((len(rows), 40), np.int32)
  for row, own in zip(tokens, rows):
    row[40 - len(own) :] = own  # left-padded
  spaces = np.cumsum(tokens == tokenizer.THINK, 1) > 0
  spaces &= tokens != tokenizer.THINK
  spaces &= np.cumsum(tokens == tokenizer.END_THINK, 1) == 0
  found = {
    'tokens': tokens,
    'token_mask': tokens > 0,
    'thinking_mask': spaces,
    'forced': np.array([False, False, False, True, True]),
  }
  config = mrt_countdown.get_config('backtrack')
  # Of 2 + 2 + 0 + 1 + 1 episodes 1 + 2 + 1 are well-formed, 1 + 1 + 1 true.
  assert held_out.episode_shares(found, config) == pytest.approx(
    {'eval/episodes_well_formed': 4 / 6, 'eval/episodes_true': 3 / 6}
  )
  # Stopped by itself, what was cut off counts.
  found['forced'][:] = False
  assert held_out.episode_shares(found, config) == pytest.approx(
    {'eval/episodes_well_formed': 4 / 7, 'eval/episodes_true': 3 / 7}
  )
  third = {name: x[2:3] for name, x in found.items()}
  assert held_out.episode_shares(third, config) == {}
  config.task = {'name': 'hidden', 'n': 4}
  assert held_out.episode_shares(found, config) == {}
