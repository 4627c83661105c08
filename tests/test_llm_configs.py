"""The configs of language models: what they ask for, and that they run."""

import json

import jax
import numpy as np
import pytest
import tokenizers

from meta_rl import (
  check_config,
  export,
  held_out,
  hf,
  metrics,
  models,
  plan_programs,
  setup_run,
  text_tokenizer,
  weights,
  workdir,
)
from meta_rl.aot.sizes import SIZES
from meta_rl.configs import (
  _llm,
  external_countdown,
  mrt_gemma3_1b,
  mrt_llama3_2_3b_backtrack,
  mrt_qwen3_0p6b,
  mrt_r1_distill_qwen_1p5b,
  mrt_smollm2_135m,
)
from meta_rl.hf.config import OVERRIDES

pytest_plugins = ['small_runs']

MATH = (
  mrt_gemma3_1b,
  mrt_llama3_2_3b_backtrack,
  mrt_qwen3_0p6b,
  mrt_r1_distill_qwen_1p5b,
)
SLOW = [
  (mrt_r1_distill_qwen_1p5b, 'tiny'),
  (mrt_smollm2_135m, 'grpo,tiny'),
  (mrt_gemma3_1b, 'tiny'),
  (mrt_llama3_2_3b_backtrack, 'sft,tiny'),
  (mrt_smollm2_135m, 'tiny'),
  (mrt_smollm2_135m, 'sft,tiny'),
]
# What differs in these is their model, which is tested by itself.
SOAK = (mrt_gemma3_1b, mrt_llama3_2_3b_backtrack)
slow = [
  pytest.param(
    *case,
    marks=[pytest.mark.full] + [pytest.mark.soak] * (case[0] in SOAK),
  )
  for case in SLOW
]


@pytest.mark.parametrize(
  'module, arg',
  [
    *((module, '') for module in MATH),
    (mrt_gemma3_1b, 'external'),
    (mrt_llama3_2_3b_backtrack, 'sft'),
    (mrt_qwen3_0p6b, 'external'),
    (mrt_r1_distill_qwen_1p5b, 'external'),
    (mrt_smollm2_135m, 'grpo'),
    (mrt_smollm2_135m, 'gym'),
    (mrt_smollm2_135m, 'files'),
  ],
)
def test_the_config_itself_is_valid(module, arg):
  # At its own size and batch, of which ':tiny' says nothing.
  if arg == 'gym':
    pytest.importorskip('reasoning_gym')
  config = plan_programs.abstract_config(
    module.get_config(arg), SIZES['qwen2.5-0.5b']
  )
  check_config.check(config)


@pytest.mark.parametrize('module', MATH)
def test_a_user_names_the_checkpoint_and_the_problems(module):
  config = module.get_config()
  with pytest.raises(ValueError, match=r'pass --config.model.path=…'):
    workdir.lock_and_check(config)
  config = module.get_config()
  with config.unlocked():
    config.model.path = '/models/own'
  assert config.task.tokenizer == '/models/own'  # of the same checkpoint


@pytest.mark.parametrize('module', MATH)
def test_hyper_parameters_of_the_paper(module):
  config = module.get_config()
  assert config.rollout.num_prompts * config.rollout.group_size == 256
  assert config.rollout.group_size == 4
  assert config.rollout.temperature == 0.9
  assert config.prover.num_branches == 4
  given = config.optimizer
  assert (given.learning_rate, given.schedule) == (1e-6, 'cosine')
  assert (given.weight_decay, given.warmup_steps) == (0.01, 10)
  assert config.total_steps == 100  # warm-up is a tenth of it


def test_the_thought_is_stopped_as_in_the_paper():
  task = mrt_r1_distill_qwen_1p5b.get_config().task
  # Behind a blank line: a budget may end a thought in a sentence.
  assert task.stop.startswith('\n\nTime is up.\n\nGiven the time')
  assert task.stop.endswith('already have.\n</think>')
  assert task.answer_prefix.startswith('\n\n**Step-by-Step Explanation')
  assert not task.segments.with_blank_line


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """A folder with a BPE tokenizer in which '####' is a token, as in real ones.

  Blank lines and full stops with them are tokens too.
  """
  folder = tmp_path_factory.mktemp('bpe')
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merges = [('#', '#'), ('##', '##'), ('\u010a', '\u010a')]
  merges += [('.', '\u010a\u010a'), ('a', 'n'), ('an', 's')]
  words = [*letters, *(''.join(pair) for pair in merges)]
  own = tokenizers.Tokenizer(
    tokenizers.models.BPE({w: i for i, w in enumerate(words)}, merges)
  )
  own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  own.decoder = tokenizers.decoders.ByteLevel()
  own.add_special_tokens(['<eos>', '<think>', '</think>'])
  own.save(str(folder / 'tokenizer.json'))
  template = '{{ messages[0].content }}'
  settings = {'eos_token': '<eos>', 'chat_template': template}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  rows = [{'question': f'{i} + {i}?', 'answer': 2 * i} for i in range(99)]
  text = '\n'.join(map(json.dumps, rows))
  (folder / 'problems.jsonl').write_text(text)
  return folder


@pytest.mark.parametrize('module', MATH)
def test_a_task_of_full_size_can_be_made(module, checkpoint):
  for extra in ('math_verify', 'jinja2'):
    pytest.importorskip(extra, reason="needs pip install 'meta-rl[llm]'")
  config = module.get_config()
  with config.unlocked():
    config.model.path = str(checkpoint)
    config.task.data.path = str(checkpoint / 'problems.jsonl')
  kit, task = setup_run.task_kit(config), setup_run.make_task(config)
  assert task.stop_ids.count(task.think_end_id) == 1
  assert kit.decode(task.stop_ids).startswith('\n\n')
  # What ends a thought is what the prompt asks for, or the model's own mark.
  close = config.task.close
  assert close == '</think>' or close in config.task.instruction


@pytest.mark.parametrize('architecture', _llm._TINY)
def test_tiny_has_the_switches_of_its_architecture(architecture):
  config = _llm.make('tiny', architecture=architecture, thinking='r1')
  shape = setup_run.model_config(config)
  for name, value in _llm._TINY[architecture].items():
    assert getattr(shape, name) == value


@pytest.mark.parametrize('module', MATH)
def test_own_problems_are_rehearsed_on_random_weights(module, checkpoint):
  pytest.importorskip('math_verify', reason="needs pip install 'meta-rl[llm]'")
  config = module.get_config('files,tiny')
  assert config.task.verifier == module.get_config().task.verifier
  with config.unlocked():
    config.task.data.path = str(checkpoint / 'problems.jsonl')
  check_config.check(config)
  problems = setup_run.load_problems(config, 'train')
  assert problems[0]['question'].count(' + ') == 1
  assert len(setup_run.load_problems(config, 'validation')) >= 4


def test_problems_are_nothing_to_imitate():
  with pytest.raises(ValueError, match='files are problems, not solutions'):
    mrt_llama3_2_3b_backtrack.get_config('sft,files,tiny')


@pytest.mark.parametrize('module', [*MATH, mrt_smollm2_135m])
def test_an_unknown_argument_is_refused(module):
  with pytest.raises(ValueError, match='unknown argument'):
    module.get_config('huge')


@pytest.mark.parametrize('module', [*MATH, mrt_smollm2_135m])
def test_rollouts_of_another_engine_are_asked_for_by_a_word(module):
  plain, given = (module.get_config(arg) for arg in ('tiny', 'external,tiny'))
  assert 'external' not in plain
  assert given.external == external_countdown.get_config().external
  assert given.task == plain.task
  check_config.check(given)


def test_one_set_of_problems_at_a_time():
  with pytest.raises(ValueError, match='give one of files, gsm8k and gym'):
    mrt_smollm2_135m.get_config('gsm8k,gym')
  with pytest.raises(ValueError, match='files are problems, not solutions'):
    mrt_smollm2_135m.get_config('files,sft')
  assert mrt_smollm2_135m.get_config('gym,grpo').name == 'GRPO'


@pytest.mark.parametrize('module, arg', slow)
def test_two_steps(module, arg, small, tmp_path):
  config = module.get_config(arg)
  config.total_steps = config.checkpoint.every = config.eval.every = 2
  config.optimizer.warmup_steps = 0
  config.task.data.high = 6
  result = small.run(config, tmp_path / 'run')
  assert result.code == 0, result.err
  first, last = metrics.read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert np.isfinite(last['loss/total'])
  assert 0 <= last['eval/regret_token_weighted'] <= 1
  if config.algorithm.name != 'sft':
    assert last['verifier/timeout_share'] == 0
    assert last['policy/log_prob_gap'] < 1e-3
    assert first['compile/count'] <= last['compile/count']
    if config.prover.boundaries == 'text':
      assert 0 < last['rollout/episodes_mean'] <= config.prover.max_episodes


@pytest.mark.full
@pytest.mark.soak
def test_lora_trains_and_goes_on(small, tmp_path):
  """2 + 2 steps are 4, the reference is the policy without its factors."""

  def config(steps):
    made = mrt_smollm2_135m.get_config('grpo,tiny')
    made.model.lora_rank = 2
    made.loss.kl_coef = 0.1
    made.task.data.high = 6
    made.eval.every = 4
    made.checkpoint.every = 2
    made.total_steps = steps
    return made

  whole = small.run(config(4), tmp_path / 'whole')
  assert whole.code == 0, whole.err
  assert not (tmp_path / 'whole' / setup_run.REFERENCE_NAME).exists()
  assert whole.rows[0]['loss/kl'] == pytest.approx(0, abs=1e-6)
  small.run(config(2), tmp_path / 'parts')
  parts = small.run(config(4), tmp_path / 'parts', allow_change='total_steps')
  assert parts.code == 0, parts.err
  assert parts.rows[-1]['loss/total'] == whole.rows[-1]['loss/total']


def test_lora_cannot_generate_prefixes_of_its_reference():
  config = mrt_smollm2_135m.get_config('tiny')
  config.model.lora_rank = 2
  config.algorithm = {
    'name': 'prefix',
    'form': 'grouped',
    'alpha': 1.0,
    'prefix_policy': 'reference',
    'prefix_success': 'measured',
  }
  with pytest.raises(ValueError, match='lora_rank'):
    check_config.check_lora(config)


def test_configs_are_json(small):
  for module in MATH:
    config = module.get_config('tiny')
    json.dumps(config.to_dict())


@pytest.mark.full
def test_from_a_checkpoint_through_lora_to_a_checkpoint(small, tmp_path):
  """What is exported is what the run's policy computes, LoRA included."""
  shape = models.TransformerConfig(
    vocab_size=262,
    num_layers=2,
    width=16,
    num_heads=2,
    ffn_width=32,
    qkv_bias=True,
  )
  given, folder = tmp_path / 'given', tmp_path / 'run'
  words = text_tokenizer.load('bytes')
  info = hf.TokenizerInfo(
    tokenizer=words.tokenizer,
    chat_template='{{ messages[0].content }}\n',
    bos_id=None,
    eos_ids=(words.eos_id,),
    pad_id=0,
  )
  hf.save_checkpoint(
    given,
    models.init_params(shape, jax.random.key(0)),
    shape,
    hf.config_to_hf(shape, max_position_embeddings=512),
    tokenizer=info,
  )
  config = mrt_smollm2_135m.get_config('sft,tiny')
  config.model = {'path': str(given), 'scan_layers': True, 'lora_rank': 2}
  config.task.tokenizer = str(given)
  config.task.data.high = 6
  config.optimizer.learning_rate = 0.1
  assert small.run(config, folder).code == 0
  out = tmp_path / 'out'
  export.export_hf(str(folder), str(out), which='last', dtype=None)
  own, params, tokenizer = hf.load_model(out)
  assert tokenizer.eos_ids == info.eos_ids
  like = setup_run.abstract_params(config)
  trained = weights.init_from(f'{folder}@last', like)
  tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 262)
  positions = np.tile(np.arange(9), (2, 1))

  def logits(shape, params):
    model = models.make_model(shape)
    return model.apply_fn(params, tokens, positions, None)[0]

  run_shape = setup_run.model_config(config)
  found = logits(own, params)
  np.testing.assert_allclose(found, logits(run_shape, trained), atol=2e-5)
  _, before, _ = hf.load_model(given)
  assert abs(found - logits(own, before)).max() > 1e-3  # it was trained
  with pytest.raises(ValueError, match='exists: give a folder'):
    export.export_hf(str(folder), str(out), which='last', dtype=None)


def test_traces_beyond_a_checkpoints_context_are_refused(tmp_path):
  shape = models.TransformerConfig(
    vocab_size=262, num_layers=1, width=16, num_heads=2, ffn_width=16
  )
  config = mrt_smollm2_135m.get_config('tiny')
  # A prompt, a thought, its end and an answer.
  longest = 128 + 32 + 1 + 16
  for name, limit in (('enough', longest), ('short', longest - 1)):
    values = hf.config_to_hf(shape, max_position_embeddings=limit)
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps(values))
  config.model = {'path': str(tmp_path / 'enough')}
  task = setup_run.make_task(config)
  setup_run.make_model(config, task)
  with pytest.raises(ValueError, match='made for 177 tokens.*may have 209: a'):
    setup_run.check_context(config, task, times=2)
  config.model.path = str(tmp_path / 'short')
  with pytest.raises(ValueError, match='made for 176 tokens.*may have 177: a'):
    setup_run.make_model(config, task)


@pytest.mark.parametrize(
  'rope, length',
  [
    ({}, 128),
    ({'rope_type': 'llama3', 'factor': 8.0}, 128),
    ({'rope_type': 'linear', 'factor': 2.0}, 256),
    ({'type': 'yarn', 'factor': 4.0}, 512),
    (
      {
        'rope_type': 'yarn',
        'factor': 4.0,
        'original_max_position_embeddings': 16,
      },
      128,
    ),
  ],
)
def test_the_context_of_a_checkpoint(tmp_path, rope, length):
  """Qwen's cards say 32,768 positions and YaRN's factor 4 of them."""
  values = {'max_position_embeddings': 128, 'rope_scaling': rope}
  (tmp_path / 'config.json').write_text(json.dumps(values))
  assert hf.context_length(tmp_path) == length
  (tmp_path / 'config.json').write_text('{}')
  assert hf.context_length(tmp_path) is None


def test_what_is_boxed_is_measured_by_the_verifier(tmp_path):
  """A policy that is always right has J = 1, though no list has its answers."""
  for split, count in (('train', 60), ('test', 8)):
    rows = [
      json.dumps({'question': f'{split}: {i} + {4 - i}?', 'answer': '4'})
      for i in range(count)
    ]
    (tmp_path / f'{split}.jsonl').write_text('\n'.join(rows))
  config = mrt_r1_distill_qwen_1p5b.get_config()
  config.unlock()
  config.model = {'vocab_size': 262}
  config.task.update({'tokenizer': 'bytes', 'prompt_length': 192, 'workers': 1})
  config.task.update({'answer_length': 48})
  config.task.data.path = str(tmp_path)
  config.rollout.thinking_budget = 16
  config.prover.max_episodes = 2
  words = text_tokenizer.load('bytes')
  ids = [words.encode(c)[0] for c in '*\\boxed{4}'] + [words.eos_id]
  table = np.full((262, 262), -30.0, np.float32)
  table[:, words.encode('W')[0]] = 0.0  # thinks W W W …
  for last, following in zip(ids, ids[1:]):
    table[last] = -30.0
    table[last, following] = 0.0
  model = models.from_apply_fn(lambda p, tokens, *_: (p[tokens], None))
  task, kit = setup_run.make_task(config), setup_run.task_kit(config)
  batches = held_out.problem_batches(
    setup_run.load_problems(config, 'test'),
    record_arrays=kit.record_arrays,
    num_problems=4,
    batch_size=4,
  )
  found = held_out.measure(
    held_out.make_calls(config, model, task),
    table,
    batches,
    jax.random.key(0),
    at_budgets=True,
    other_key=jax.random.key(1),
  )
  np.testing.assert_array_equal(found['rewards'], 1.0)
  np.testing.assert_array_equal(held_out.final_success(found), 1.0)
  assert held_out.budget_success(found) == [1.0] * 4
  assert found['other_success'].max() < 1e-6  # the listed answer is the bare 4
  assert held_out.summary(found, 16)['eval/regret_token_weighted'] == 0.0


@pytest.mark.parametrize(
  'source, row',
  [
    ('files', {'question': '1 + 1?', 'answer': '2'}),
    ('gsm8k', {'question': '1 + 1?', 'answer': 'It is two.\n#### 2'}),
    ('math', {'problem': '1 + 1?', 'solution': 'So $\\boxed{2}$.'}),
  ],
)
def test_a_source_is_read_as_it_is_written(tmp_path, source, row):
  question = next(iter(row))
  for split in ('train', 'test'):
    rows = [json.dumps(row | {question: f'{split} {i}'}) for i in range(40)]
    (tmp_path / f'{split}.jsonl').write_text('\n'.join(rows))
  config = mrt_qwen3_0p6b.get_config()
  config.unlock()
  config.model = {'vocab_size': 262}
  config.task.update({'tokenizer': 'bytes', 'source': source})
  config.task.data.path = str(tmp_path)
  found = setup_run.load_problems(config, 'train')[0]
  assert found['accepted'] == ('2',)


@pytest.mark.parametrize('key', ['workers', 'template', 'gold_bytes', 'system'])
def test_keys_that_the_readme_names_are_there(key):
  for module in MATH:
    assert key in module.get_config().task


@pytest.mark.parametrize('module', [*MATH, mrt_smollm2_135m])
def test_a_checkpoint_takes_every_key_of_the_model(module):
  assert set(module.get_config().model) - {'path'} <= set(OVERRIDES)
