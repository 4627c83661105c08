"""Wrong arguments of the public functions: ValueError, one line, by name.

A row changes one argument of a call that works. Nothing is compiled: the calls
are traced, and checks come before work. What other files check isn't repeated.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
from toys import lively_params, tiny

from meta_rl import (
  advantages,
  checks,
  continuations,
  curriculum,
  episodes,
  lora,
  losses,
  models,
  prover,
  prover_gradient,
  regret,
  rollout,
  sampling,
  scoring,
  segments,
  shaping,
  streaming,
  update,
  value,
)
from meta_rl.types import Episodes, Model, TraceCache, WeightedSum

CONFIG = tiny(num_layers=1)
MODEL = models.make_model(CONFIG)
PARAMS = lively_params(CONFIG)
BARE = models.from_apply_fn(lambda p, t, *_: (jnp.zeros((*t.shape, 32)), None))
KEY = jax.random.key(0)
TOKENS = np.ones((2, 6), np.int32)
MASK = np.ones((2, 6), bool)
FLOATS = np.ones((2, 6), np.float32)
ENDS = np.array([[1, 3, 5], [1, 2, 2]], np.int32)
J = np.full((2, 3), 0.5, np.float32)
GAIN, LENGTHS = J[:, :2], ENDS[:, 1:]
COUNT = np.array([2, 1], np.int32)
VERIFY = lambda answers, mask: jnp.ones(answers.shape[:3])
SGD = optax.sgd(1.0)
ONE = jnp.ones(())
LOSS = lambda params, part: (WeightedSum(part['x'].sum(), ONE), {})
BYTES = tokenizers.Tokenizer(tokenizers.models.BPE())
TRACES = {
  'model': MODEL,
  'params': PARAMS,
  'tokens': TOKENS,
  'token_mask': MASK,
}
ASKED = TRACES | {'ends': ENDS, 'stop_ids': (4, 9)}
LISTED = {
  'answers': np.ones((2, 1, 2), np.int32),
  'answer_mask': np.ones((2, 1, 2), bool),
}
DRAWN = {'key': KEY, 'num_branches': 2, 'max_answer_len': 2, 'eos_id': 2}
DRAWN |= {'row_offset': 0, 'block_rows': 2, 'temperature': 1.0}
GROUPS = {'rewards': J, 'lengths': np.ones((2, 3), np.int32)}

# A call that works for each function.
CALLS = {
  checks.as_array: {'name': 'x', 'x': FLOATS, 'spec': 'float[B,T]'},
  episodes.split_spans: {
    'text': 'a',
    'markers': ('Wait',),
    'min_paragraphs': 1,
    'max_cuts': 1,
  },
  episodes.split_text: {'text': 'a', 'markers': ('Wait',)},
  episodes.merge: {'episodes': ['a', 'b'], 'group_size': 2},
  episodes.from_delimiters: {
    'tokens': TOKENS,
    'thinking_mask': MASK,
    'delimiter_ids': (5,),
    'max_episodes': 2,
    'start': COUNT,
  },
  episodes.from_budgets: {
    'thinking_mask': MASK,
    'budgets': (1, 2),
    'start': COUNT,
  },
  episodes.equal_budgets: {'total': 10, 'num': 2},
  episodes.token_ids: {'episodes': Episodes(ENDS, COUNT), 'length': 6},
  segments.token_texts: {'ids': [1, 2], 'tokenizer': BYTES},
  segments.split_ids: {
    'ids': [1, 2],
    'tokenizer': BYTES,
    'max_episodes': 2,
    'group_size': 1,
    'markers': ('Wait',),
  },
  segments.from_text: {
    'tokens': TOKENS,
    'thinking_mask': MASK,
    'tokenizer': BYTES,
    'max_episodes': 2,
    'start': COUNT,
  },
  regret.progress: {'success': J, 'count': COUNT},
  regret.cumulative: {'success': J, 'comparator': 1.0, 'count': COUNT},
  regret.token_weighted: {
    'success': J,
    'ends': ENDS,
    'horizon': 4,
    'comparator': 1.0,
  },
  regret.shares: {'ends': ENDS, 'horizon': 4},
  regret.normalized: {
    'accuracy': J,
    'tokens': J,
    'horizon': 4,
    'comparator': 1.0,
    'form': 'step',
  },
  advantages.group_normalize: {
    'rewards': J,
    'scale': 'std',
    'ddof': 1,
    'eps': 0.1,
    'valid': np.ones((2, 3), bool),
  },
  advantages.leave_one_out: {'rewards': J, 'valid': np.ones((2, 3), bool)},
  advantages.brpo: {'scores': J[..., None], 'prior': J[0, :1]},
  advantages.episode_weights: {'ends': ENDS, 'horizon': 4, 'outcome_mass': 0.5},
  advantages.episode_credit: {
    'progress': GAIN,
    'weights': GAIN,
    'kind': 'immediate',
  },
  advantages.returns: {
    'progress': GAIN,
    'weights': GAIN,
    'lengths': LENGTHS,
    'count': COUNT,
    'price': 0.1,
    'horizon': 4,
  },
  advantages.prover_baseline: {
    'returns': J,
    'success': J,
    'count': COUNT,
    'ridge': 0.1,
    'min_rows': 4,
    'rows': 'reaching',
    'axis_name': None,
    'valid': MASK[:, 0],
    'inside': MASK[:, 0],
  },
  advantages.bootstrapped: {
    'returns': J,
    'baseline': J,
    'count': COUNT,
    'decay': 0.5,
  },
  advantages.gae: {
    'rewards': FLOATS,
    'values': FLOATS,
    'mask': MASK,
    'discount': 1.0,
    'decay': 0.5,
  },
  advantages.terminal_rewards: {'rewards': FLOATS[:, 0], 'mask': MASK},
  advantages.to_tokens: {
    'episode_advantages': J,
    'episode_ids': TOKENS,
    'rest': J[:, 0],
    'stop': J[:, 0],
    'stop_index': COUNT,
  },
  losses.aggregate_tokens: {
    'per_token': FLOATS,
    'mask': MASK,
    'aggregate': 'constant',
    'constant': 4,
  },
  losses.policy_gradient: {
    'log_probs': FLOATS,
    'behavior_log_probs': FLOATS,
    'advantages': FLOATS,
    'mask': MASK,
    'clip_low': 0.2,
    'clip_high': 0.2,
    'surrogate': 'clip',
    'ratio': 'token',
    'aggregate': 'constant',
    'constant': 4,
    'weights': FLOATS,
  },
  losses.truncated_importance_weights: {
    'trainer_log_probs': FLOATS,
    'behavior_log_probs': FLOATS,
    'mask': MASK,
    'cap': 2.0,
    'level': 'token',
  },
  losses.importance_metrics: {
    'trainer_log_probs': FLOATS,
    'behavior_log_probs': FLOATS,
    'mask': MASK,
    'cap': 2.0,
    'level': 'token',
  },
  losses.kl_penalty: {
    'log_probs': FLOATS,
    'ref_log_probs': FLOATS,
    'mask': MASK,
    'estimator': 'k1',
  },
  losses.value_loss: {
    'values': FLOATS,
    'targets': FLOATS,
    'mask': MASK,
    'old_values': FLOATS,
    'clip': 0.1,
    'weights': FLOATS,
  },
  losses.entropy_bonus: {'entropy': FLOATS, 'mask': MASK},
  shaping.lcpo_exact: GROUPS | {'target_length': 4, 'alpha': 0.1},
  shaping.lcpo_max: GROUPS | {'max_length': 4, 'alpha': 0.1},
  shaping.length_penalty: GROUPS | {'alpha': 0.1},
  shaping.overlong: GROUPS | {'max_length': 4, 'cache_length': 2},
  curriculum.choose: {'success': J[0], 'doubled': J[0], 'kappa': 2.0},
  sampling.apply_temperature: {'logits': J, 'temperature': 1.0},
  sampling.top_k_mask: {'logits': J, 'top_k': 1},
  sampling.top_p_mask: {'logits': J, 'top_p': 0.5},
  sampling.truncate: {
    'logits': J,
    'temperature': 1.0,
    'top_k': 1,
    'top_p': 0.5,
  },
  sampling.row_keys: {'key': KEY, 'rows': COUNT, 'step': 0},
  sampling.sample: {'key_per_row': jax.random.split(KEY, 2), 'logits': J},
  sampling.token_log_probs: {'logits': J, 'tokens': COUNT},
  sampling.entropy: {'logits': J},
  scoring.positions_of: {'token_mask': MASK},
  scoring.log_softmax_at: {'logits': J, 'targets': COUNT},
  scoring.score: TRACES
  | {
    'positions': TOKENS,
    'mask': np.ones((2, 6, 6), bool),
    'temperature': 1.0,
    'chunk': 2,
    'features': np.ones((2, 6, 16), np.float32),
  },
  rollout.generate: {
    'model': MODEL,
    'params': PARAMS,
    'prompts': TOKENS,
    'prompt_mask': MASK,
    'key': KEY,
    'max_new_tokens': 8,
    'eos_id': 2,
    'temperature': 1.0,
    'group_size': 1,
    'top_p': 0.5,
    'top_k': 3,
    'think_end_id': 4,
    'thinking_budget': 4,
    'stop_ids': (4, 9),
    'prefix': TOKENS,
    'prefix_length': COUNT,
    'observe_fn': None,
    'min_thinking': 1,
    'wait_ids': (7,),
    'pad_id': 0,
    'row_offset': 0,
    'check_every': 2,
  },
  streaming.stream: {
    'model': MODEL,
    'params': PARAMS,
    'prompt': (1, 3),
    'key': KEY,
    'max_new_tokens': 8,
    'eos_id': 2,
    'temperature': 1.0,
    'top_p': 0.5,
    'top_k': 3,
    'think_end_id': 4,
    'thinking_budget': 2,
    'stop_ids': (4, 9),
    'bucket': 8,
  },
  prover.exact: ASKED
  | LISTED
  | {
    'temperature': 1.0,
    'cache': None,
    'top_k': 3,
    'top_p': 0.5,
    'block_rows': 2,
    'block_pairs': 2,
  },
  prover.sampled: ASKED | DRAWN | {'verify_fn': VERIFY, 'cache': None},
  prover.sample_answers: ASKED | DRAWN | {'top_k': 3, 'top_p': 0.5},
  prover.control_variate: ASKED
  | LISTED
  | DRAWN
  | {'verify_fn': VERIFY, 'num_enumerated': 1, 'cache': None},
  prover_gradient.differentiable: ASKED
  | LISTED
  | {'boundary_weights': J, 'temperature': 1.0, 'block_pairs': 2},
  continuations.continued: ASKED
  | DRAWN
  | {'verify_fn': VERIFY, 'thinking_budget': 4, 'think_end_id': 4},
  continuations.sample_continuations: ASKED
  | DRAWN
  | {'thinking_budget': 4, 'think_end_id': 4, 'observe_fn': None},
  value.init_head: {'width': 16},
  value.with_head: {'params': PARAMS, 'head': {}},
  value.without_head: {'params': PARAMS},
  value.features: TRACES,
  value.read_out: {
    'params': value.with_head({}, value.init_head(16)),
    'features': np.ones((2, 6, 16), np.float32),
    'token_mask': MASK,
  },
  lora.split: {'params': PARAMS, 'trainable': lora.is_factor},
  lora.add: {'params': PARAMS, 'config': CONFIG, 'key': KEY},
  lora.join: {'own': {}, 'frozen': {}},
  lora.without: {'params': PARAMS},
  lora.merge: {'params': PARAMS, 'config': CONFIG},
  update.init_state: {
    'params': PARAMS,
    'optimizer': SGD,
    'seed': 0,
    'trainable': None,
  },
  update.split_batch: {'batch': {'x': FLOATS}, 'parts': 2},
  update.gradients: {
    'loss_fn': LOSS,
    'params': {},
    'batch': {'x': FLOATS},
    'micro_batches': 2,
    'length_buckets': (),
    'axis_name': None,
    'trainable': None,
  },
  update.update: {
    'state': update.init_state({}, SGD, 0),
    'batch': {'x': FLOATS},
    'loss_fn': LOSS,
    'optimizer': SGD,
    'mini_batches': 1,
    'epochs': 1,
  },
}
# None is an array that is not given.
OPTIONAL = {
  *('valid', 'inside', 'stop', 'stop_index', 'old_values', 'positions'),
  *('prefix', 'prefix_length'),
}
# Numbers that need not be whole.
REAL = {'horizon', 'constant', 'target_length', 'max_length', 'cache_length'}
REAL |= {'comparator'}

WRONG_ARRAYS = ('text', [[1], [1, 2]], {}, object(), KEY)
WRONG_NUMBERS = ('a', [1, 'a'], 1j, float('nan'), True, {}, object(), KEY)
WRONG_NUMBERS += (np.ones(5), np.array(True), np.array('a'), b'1')
WRONG_COUNTS = (1.5, np.float32(1), -5, 10**12)


def refused(function, argument, *wrong):
  """Asserts that each is refused in one line that names the argument."""

  def call(given):
    found = function(**CALLS[function] | {argument: given})
    return next(found) if function is streaming.stream else found

  def calls():
    for given in wrong:
      with pytest.raises(ValueError) as error:
        call(given)
      line = str(error.value)
      assert '\n' not in line
      assert len(line) < 250
      assert re.search(rf'\b{argument}\b', line), line

  jax.eval_shape(calls)


def each(kind):
  """The (function, argument) of all calls whose argument is of a kind."""
  return [
    pytest.param(function, name, id=f'{function.__name__}-{name}')
    for function, arguments in CALLS.items()
    for name, given in arguments.items()
    if kind(name, given)
  ]


@pytest.mark.parametrize(
  'function, argument', each(lambda name, given: isinstance(given, np.ndarray))
)
def test_arrays(function, argument):
  own = CALLS[function][argument]
  shape = own[:1, None] if argument == 'start' else own[(0,) * own.ndim]
  wrong = [*WRONG_ARRAYS, own.astype(complex), shape]
  left_out = argument in OPTIONAL or (
    # Where these are no part of what the function is of.
    (function, argument)
    in [
      (scoring.score, 'mask'),
      (scoring.score, 'features'),
      (losses.policy_gradient, 'weights'),
      (losses.value_loss, 'weights'),
    ]
  )
  refused(function, argument, *(wrong + [None] * (not left_out)))


@pytest.mark.parametrize(
  'function, argument',
  each(lambda name, given: isinstance(given, int | float)),
)
def test_numbers(function, argument):
  whole = isinstance(CALLS[function][argument], int) and argument not in REAL
  refused(
    function, argument, *(WRONG_NUMBERS + (WRONG_COUNTS if whole else ()))
  )


@pytest.mark.parametrize(
  'function, argument',
  each(
    lambda name, given: isinstance(given, str) and name not in ('name', 'spec')
  ),
)
def test_names_of_choices(function, argument):
  refused(function, argument, 3, None, ['std'], np.ones(2))


@pytest.mark.parametrize(
  'function, argument',
  each(lambda name, given: name in ('model', 'key', 'key_per_row')),
)
def test_models_and_keys(function, argument):
  wrong = [3, None, 'a', TOKENS, jax.random.split(KEY, 3)]
  refused(function, argument, *(wrong + [np.zeros(3, np.uint32), Model]))


@pytest.mark.parametrize(
  'function, argument',
  each(lambda name, given: name.endswith(('_ids', 'prompt', 'length_buckets'))),
)
def test_token_ids(function, argument):
  if argument == 'episode_ids':
    return  # an array
  wrong = [5.7, -5, (-5,), (1.5,), ('a',), 'ab', {}, (10**12,), (True,)]
  wrong += [np.ones(2), np.ones((2, 2), int), jnp.ones(2), (None,), KEY]
  may_be_none = ('wait_ids', 'length_buckets', 'delimiter_ids')
  wrong += [] if argument in may_be_none else [()]
  refused(function, argument, *wrong)


@pytest.mark.parametrize(
  'function, argument',
  each(lambda name, given: name.endswith('_fn') or name == 'trainable'),
)
def test_functions(function, argument):
  optional = argument in ('observe_fn', 'trainable')
  optional &= function is not lora.split
  refused(function, argument, *([3, 'a', TOKENS] + [None] * (not optional)))


@pytest.mark.parametrize(
  'function, argument', each(lambda name, given: name == 'axis_name')
)
def test_an_axis_that_is_not_mapped(function, argument):
  refused(function, argument, 'nope', 3, ['nope'])


@pytest.mark.parametrize(
  'function, argument', each(lambda name, given: name == 'cache')
)
def test_caches(function, argument):
  short = TraceCache(MODEL.init_cache(2, 5), jnp.int32(5))
  other = TraceCache(BARE.init_cache(2, 6), jnp.int32(6))
  refused(function, argument, 3, 'a', TOKENS, short, other, short.cache)


CONTINUED = continuations.continued, continuations.sample_continuations
GENERATED = rollout.generate, streaming.stream
PROVERS = prover.sampled, prover.control_variate, prover.sample_answers
ASKING = *PROVERS, prover.exact, prover_gradient.differentiable
TEXTS = episodes.split_spans, episodes.split_text, segments.split_ids
NO_ROW, NO_COLUMN = np.ones((0, 6), int), np.ones((2, 0), int)
ROWS = [
  *((f, 'eos_id', x) for f in PROVERS for x in (None, 99)),
  *((f, 'stop_ids', (4, 99)) for f in ASKING),
  *((f, 'temperature', x) for f in ASKING for x in (-1.0, np.inf)),
  *((f, 'temperature', 0.0) for f in (prover.exact, scoring.score)),
  (scoring.score, 'temperature', np.inf),
  *((f, 'temperature', np.inf) for f in GENERATED),
  *((f, 'top_p', x) for f in GENERATED for x in (0.0, 1.5)),
  *((f, 'top_k', 0) for f in (*GENERATED, prover.exact)),
  *(
    (rollout.generate, name, 99)
    for name in ('eos_id', 'think_end_id', 'pad_id')
  ),
  *((rollout.generate, name, (4, 99)) for name in ('stop_ids', 'wait_ids')),
  (rollout.generate, 'row_offset', np.ones(2)),
  (rollout.generate, 'thinking_budget', np.ones((2, 1), int)),
  (rollout.generate, 'thinking_budget', [1, 2, 3]),
  (rollout.generate, 'min_thinking', np.ones(3, int)),
  (rollout.generate, 'observe_fn', lambda last, thinking, rows: 'a'),
  *((rollout.generate, 'prompts', x) for x in (NO_ROW, NO_COLUMN)),
  *((f, 'tokens', NO_COLUMN) for f in (*ASKING, *CONTINUED, scoring.score)),
  (rollout.generate, 'stop_ids', ()),
  (rollout.generate, 'return_cache', 'no'),
  *((f, 'return_mask', 0) for f in PROVERS[:2]),
  (prover.sample_answers, 'return_log_probs', None),
  (segments.split_ids, 'with_blank_line', 'no'),
  *(
    (f, 'verify_fn', g)
    for f in (*PROVERS[:2], continuations.continued)
    for g in (lambda a, m: 'a', lambda a, m: None, lambda a, m: m)
  ),
  *((f, 'answers', np.ones((2, 0, 2), int)) for f in (prover.exact,)),
  *((f, 'answers', np.ones((2, 1, 0), int)) for f in (prover.exact,)),
  *((f, 'markers', x) for f in TEXTS for x in ('Wait', 3, None, (3,), [b'W'])),
  *((f, 'text', x) for f in TEXTS[:2] for x in (5, None, ['a'], b'a')),
  (episodes.split_spans, 'min_paragraphs', 0),
  *((episodes.merge, 'episodes', x) for x in ('abc', None, [1], 3)),
  *(
    (episodes.from_budgets, 'budgets', x)
    for x in (3, None, ['a'], 'ab', [True], [1, 2.5], {}, np.ones((2, 2), int))
  ),
  (episodes.equal_budgets, 'total', 1),
  *((episodes.token_ids, 'episodes', x) for x in (None, ENDS, 'a')),
  (episodes.token_ids, 'length', -1),
  *((segments.token_texts, 'ids', x) for x in (None, 'ab', [-1], [1.5], [[1]])),
  *((segments.split_ids, 'tokenizer', x) for x in (None, 'gpt2')),
  (episodes.from_delimiters, 'start', 1.5),
  (segments.from_text, 'start', 1.5),
  (advantages.brpo, 'scores', np.ones((2, 3, 0), np.float32)),
  (advantages.to_tokens, 'episode_advantages', np.ones((2, 0), np.float32)),
  (advantages.prover_baseline, 'min_rows', 0),
  (advantages.group_normalize, 'ddof', 2),
  *((losses.aggregate_tokens, 'constant', x) for x in (0, FLOATS[:, 0])),
  *(
    (f, 'logits', np.ones((2, 0))) for f in (sampling.entropy, sampling.sample)
  ),
  (sampling.apply_temperature, 'temperature', np.ones((3, 1))),
  (sampling.top_p_mask, 'top_p', np.ones((3, 1))),
  (shaping.lcpo_exact, 'target_length', np.ones(2)),
  (value.read_out, 'features', np.ones((2, 6, 15), np.float32)),
  *((f, 'params', x) for f in (lora.split, lora.merge) for x in (None, [1])),
  *((f, 'config', None) for f in (lora.add, lora.merge)),
  *((lora.join, name, None) for name in ('own', 'frozen')),
  *((f, 'params', 3) for f in (value.with_head, value.without_head)),
  (value.with_head, 'head', None),
  *((update.split_batch, 'batch', x) for x in ({}, {'x': 3}, None)),
  (update.gradients, 'length_buckets', (4,)),
  *((update.init_state, 'optimizer', x) for x in (None, 'adam')),
  *((update.update, 'state', x) for x in (None, {})),
]


@pytest.mark.parametrize('function, argument, given', ROWS)
def test_rows(function, argument, given):
  refused(function, argument, given)


def test_arguments_that_do_not_go_together():
  arguments = CALLS[advantages.prover_baseline]
  with pytest.raises(ValueError, match='inside must be None'):
    advantages.prover_baseline(**arguments | {'rows': 'continuing'})
  with pytest.raises(ValueError, match='old_values must be None'):
    losses.value_loss(**CALLS[losses.value_loss] | {'clip': None})
  with pytest.raises(ValueError, match='features must be None for a model'):
    scoring.score(**CALLS[scoring.score] | {'model': BARE})
  half = Model(MODEL.apply_fn, MODEL.init_cache, MODEL.features_fn)
  with pytest.raises(ValueError, match='both features_fn and unembed_fn'):
    scoring.score(**CALLS[scoring.score] | {'model': half})
  config = tiny(num_layers=1, lora_rank=2)
  params = lora.add(PARAMS, config, KEY)
  with pytest.raises(ValueError, match='lora_rank=2'):
    lora.merge(params, tiny(num_layers=1, lora_rank=4))


@pytest.mark.parametrize(
  'function', [function for function in CALLS if function != streaming.stream]
)
def test_what_is_changed_works(function):
  """With numpy's numbers; else a row may be refused for another reason."""
  own = CALLS[function]
  kinds = (int, float)
  convert = lambda x: np.asarray(x) if type(x) in kinds else x
  arguments = {name: convert(given) for name, given in own.items()}
  jax.eval_shape(lambda: [function(**arguments)] and None)


HOST = (streaming.stream, segments.split_ids, segments.from_text)
HOST += (segments.token_texts, episodes.split_spans, episodes.split_text)


@pytest.mark.parametrize('function', [f for f in CALLS if f not in HOST])
def test_no_check_looks_at_a_traced_value(function):
  """Of arrays, and of the numbers that need not be known when compiling."""
  kinds = (np.ndarray, float, jax.Array)
  arguments = CALLS[function]
  traced = {k: x for k, x in arguments.items() if isinstance(x, kinds)}
  if function in (rollout.generate, *CONTINUED):
    del traced['temperature']
  jax.eval_shape(lambda x: [function(**arguments | x)] and None, traced)
