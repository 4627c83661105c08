"""Problems: splits, prompts and the arrays of the jitted step."""

import itertools

import jax
import numpy as np
import pytest

from meta_rl import tokenizer
from meta_rl.tasks import countdown


@pytest.fixture(scope='module')
def problems():
  return {split: countdown.problem_set(split) for split in countdown.SPLITS}


def key(problem):
  return tuple(sorted(problem.numbers)), problem.target


def test_splits_are_disjoint_and_complete(problems):
  keys = {split: {key(p) for p in problems[split]} for split in problems}
  for one, other in itertools.combinations(countdown.SPLITS, 2):
    assert not keys[one] & keys[other]
  everything = {key(p) for p in countdown.problem_set()}
  assert set.union(*keys.values()) == everything
  assert sum(map(len, problems.values())) == len(everything)


def test_prompts_of_a_problem_share_its_split(problems):
  prompts = {
    split: countdown.prompt_orders(problems[split], orders=6)
    for split in problems
  }
  for split, shown in prompts.items():
    assert {countdown.split_of(p.numbers, p.target) for p in shown} == {split}


def test_the_shipped_range_has_enough_held_out_prompts():
  # 3 numbers 1-14 with + and -: what the headline figures are measured on.
  sizes = {}
  for split in countdown.SPLITS:
    found = countdown.problem_set(split, high=14, max_answers=4)
    sizes[split] = len(countdown.prompt_orders(found, orders=6))
  assert sizes == {'train': 5259, 'validation': 870, 'test': 3979}


def test_splits_do_not_depend_on_the_config():
  test = {key(p) for p in countdown.problem_set('test', ops='+-*/')}
  train = {key(p) for p in countdown.problem_set('train', ops='+-', high=12)}
  assert not test & train


def test_split_of_is_recorded():
  # Recorded values: a change would leak held-out problems into old runs.
  cases = [((3, 5, 7), 9), ((1, 1, 1), 3), ((10, 2, 8), 16), ((4, 4, 9), 1)]
  assert [countdown.split_of(*case) for case in cases] == [
    'test',
    'train',
    'test',
    'train',
  ]
  assert countdown.split_of((7, 3, 5), 9) == countdown.split_of((3, 5, 7), 9)


def test_answers_are_filtered_and_right(problems):
  for problem in problems['validation']:
    assert 1 <= len(problem.answers) <= 8
    assert problem.answers == countdown.answers_for(
      problem.numbers, problem.target, '+-'
    )
  few = countdown.problem_set(max_answers=2, min_target=5, max_target=9)
  assert {len(p.answers) for p in few} == {1, 2}
  assert {p.target for p in few} <= set(range(5, 10))


def test_answers_and_hit_rate_by_hand():
  # 1 2 with + -: '2 1 +' = 3 and '2 1 -' = 1, so each is hit half of the time.
  problem = countdown.make_problem((1, 2), 3, '+-')
  assert problem.answers == (tuple(tokenizer.encode('2 1 +')),)
  assert countdown.hit_rate(problem) == 0.5
  assert countdown.make_problem((1, 2), 50, '+-').answers == ()


def test_doses_have_the_known_hit_rates():
  easy = [countdown.hit_rate(p) for p in countdown.problem_set(max_answers=4)]
  hard = countdown.problem_set(ops='+-*', max_answers=4)
  hard = [countdown.hit_rate(p) for p in hard]
  assert np.mean(easy) == pytest.approx(0.28, abs=0.01)
  assert np.mean(hard) == pytest.approx(0.08, abs=0.01)


def test_large_ranges_are_sampled_reproducibly():
  options = {'n': 4, 'high': 50, 'max_multisets': 20, 'ops': '+-*/'}
  one = countdown.problem_set(**options)
  assert one == countdown.problem_set(**options)
  assert len({tuple(sorted(p.numbers)) for p in one}) == 20
  assert one != countdown.problem_set(**options, seed=1)


def test_orders_are_distinct_and_front_loaded(problems):
  some = problems['validation'][:40]
  shown = countdown.prompt_orders(some, orders=6)
  assert len({(p.numbers, p.target) for p in shown}) == len(shown)
  assert {key(p) for p in shown[:40]} == {key(p) for p in some}
  assert [key(p) for p in shown[:40]] != [key(p) for p in some]
  assert shown == countdown.prompt_orders(some, orders=6)
  assert shown[:40] == countdown.prompt_orders(some, orders=1)
  same = countdown.make_problem((5, 5, 5), 5, '+-')
  assert len(countdown.prompt_orders([same], orders=6)) == 1


def test_prompt_by_hand():
  text = tokenizer.decode(countdown.prompt_tokens((3, 5, 7), 9))
  assert text == '<bos> 3 5 7 = 9 <think>'


def test_problem_arrays():
  three = countdown.make_problem((3, 5, 7), 9, '+-')
  two = countdown.make_problem((1, 2), 3, '+-')
  none = countdown.make_problem((1, 2), 50, '+-')
  arrays = countdown.problem_arrays([three, two, none], max_answers=8)
  shapes = {name: value.shape for name, value in arrays.items()}
  assert shapes == {
    'prompts': (3, 7),
    'prompt_mask': (3, 7),
    'numbers': (3, 3),
    'target': (3,),
    'answers': (3, 8, 6),
    'answer_mask': (3, 8, 6),
  }
  assert tokenizer.decode(arrays['prompts'][1]) == (
    '<pad> <bos> 1 2 = 3 <think>'
  )
  np.testing.assert_array_equal(arrays['numbers'][1], [1, 2, -1])
  np.testing.assert_array_equal(
    arrays['answer_mask'].any(-1).sum(-1), [len(three.answers), 1, 0]
  )
  np.testing.assert_array_equal(arrays['target'], [9, 3, 50])
  answer = arrays['answers'][1, 0][arrays['answer_mask'][1, 0]]
  assert tokenizer.decode(answer) == '2 1 + <eos>'
  # Every listed answer is one that the device verifier accepts.
  scores = jax.jit(countdown.verify_tokens)(
    arrays['answers'],
    arrays['answer_mask'],
    arrays['numbers'][:, None],
    arrays['target'][:, None],
  )
  np.testing.assert_array_equal(scores, arrays['answer_mask'].any(-1))


@pytest.mark.parametrize(
  'options, message',
  [
    ({'split': 'dev'}, "split 'dev'"),
    ({'n': 1}, 'n must be >= 2 and <= 5, got 1'),
    ({'low': 5, 'high': 4}, 'high must be >= 5 and <= 99, got 4'),
    ({'max_answers': 0}, 'max_answers must be >= 1, got 0'),
    ({'high': 100}, 'high must be >= 1 and <= 99, got 100'),
    ({'ops': '^'}, 'distinct characters'),
  ],
)
def test_problem_set_rejects(options, message):
  with pytest.raises(ValueError, match=message):
    countdown.problem_set(**options)


def test_arrays_reject():
  problem = countdown.make_problem((3, 5, 7), 9, '+-')
  with pytest.raises(ValueError, match='no problems given'):
    countdown.problem_arrays([])
  with pytest.raises(ValueError, match='raise num_numbers or max_answers'):
    countdown.problem_arrays([problem], num_numbers=2)
  with pytest.raises(ValueError, match='orders 0'):
    countdown.prompt_orders([problem], orders=0)


def test_a_prompt_is_read_back():
  for numbers, target in (((3, 5, 7), 9), ((0, 99), 0), ((1,), 1)):
    prompt = countdown.prompt_tokens(numbers, target)
    assert countdown.parse_prompt(prompt) == (numbers, target)
    assert countdown.parse_prompt(np.asarray(prompt)) == (numbers, target)


@pytest.mark.parametrize(
  'text',
  [
    '<bos>',
    '<bos> = 9 <think>',
    '<bos> 3 5 9 <think>',
    '3 5 = 9 <think>',
    '<bos> 3 5 = 9',
    '<bos> 3 + = 9 <think>',
    '<bos> 3 5 = = <think>',
    '<pad> <bos> 3 5 = 9 <think>',
  ],
)
def test_what_is_no_prompt(text):
  with pytest.raises(ValueError, match='is none of Countdown') as error:
    countdown.parse_prompt(tokenizer.encode(text))
  assert '\n' not in str(error.value)
  with pytest.raises(ValueError, match='is none of Countdown'):
    countdown.parse_prompt([])
