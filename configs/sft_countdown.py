r"""The base policy of Countdown: supervised warm start on imperfect search.

Traces try random attempts with repeats, stop too early or too late, and at
times go on after they have found an answer (meta_rl/tasks/traces.py): that is
what reinforcement is to put right. A share of them has up to 48 episodes, four
times the thinking budget of RL, so that later extrapolation meets no position
that was never trained.

    python -m meta_rl.train --config=configs/sft_countdown.py --workdir=runs/sft
    python -m meta_rl.export --workdir=runs/sft --out=countdown_easy.safetensors

2 cores: about 15 minutes. `:hard` adds products, `:tiny` runs in
seconds. The shipped results are meta_rl/assets/.

`:backtrack` teaches the other form of search (meta_rl/tasks/backtrack.py) to
the shipped policy that restarts, which can add, subtract and copy already; it
combines with `hard` or `tiny`. 2 cores: about 12 minutes.

    python -m meta_rl.train --config=configs/sft_countdown.py:backtrack \
      --workdir=runs/sft_backtrack

`:patient` teaches the shipped policy not to give up: it searches until it has
found an answer. 2 cores: about 5 minutes.
"""

import ml_collections
from ml_collections import config_dict

from meta_rl.configs import mrt_countdown, split_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'patient' or 'backtrack', and a scale."""
  own, rest = split_argument(arg, 'patient')
  config = mrt_countdown.get_config(rest)
  words = own + rest.split(',')
  shipped = config.init_from
  config.name = 'SFT'
  config.total_steps = 1200
  config.init_from = ''
  config.algorithm = {'name': 'sft'}
  config.data = {
    'source': 'traces',  # or 'jsonl': chats or prompt/completion pairs
    'path': '',  # of the JSONL
    # Orders of a problem's numbers that the warm start shows; None: all, as in
    # reinforcement.
    'orders': config_dict.placeholder(int),
    'traces': {
      'max_episodes': 48,
      'ordinary_episodes': 16,
      'p_stop': 0.05,  # chance to give up after a failed episode
      'p_continue': 0.25,  # chance to go on after a success
    },
    'buckets': {
      'short': {
        'batch_size': 96,
        'length': 160,
        'max_episodes': 16,
        'long_share': 0.0,
      },
      'long': {
        'batch_size': 32,
        'length': 448,
        'long_share': 1.0,
        'direct_share': 0.0,
      },
    },
    'pattern': ('short',) * 9 + ('long',),
  }
  config.batching = {
    'mini_batches': 1,
    'epochs': 1,
    'micro_batches': 8,
    'rows_per_device': config_dict.placeholder(int),
    'length_buckets': (),
  }
  config.optimizer = {
    'learning_rate': 2e-3,
    'schedule': 'cosine',
    'warmup_steps': 50,
    'weight_decay': 0.01,
    'b1': 0.9,
    'b2': 0.999,
    'max_grad_norm': 1.0,
  }
  config.eval.update({'every': 200, 'num_problems': 512})
  config.checkpoint.every = 100
  config.log.print_every = 20
  if 'hard' in words:
    # From the easy policy, which can add, subtract and copy already.
    config.init_from = 'asset:countdown_easy'
    config.total_steps = 500
  if 'backtrack' in words:
    # It is the form of the search that is new.
    config.init_from = (
      'asset:countdown_hard' if 'hard' in words else 'asset:countdown_easy'
    )
    config.total_steps = 1200
    # Episodes are 8.8 tokens on average and 11 at most: 52 of them are 450
    # tokens, again four times the thinking budget. Only the form has to be
    # learned, so four fifths of the tokens a step are enough.
    config.data.traces.max_episodes = 52
    config.data.buckets.short.update({'batch_size': 64, 'length': 192})
    config.data.buckets.long.update({'batch_size': 16, 'length': 592})
  if 'patient' in words:
    config.init_from = shipped
    config.total_steps = 300
    config.data.traces.p_stop = 0.0
    # As good as none that do not think at all.
    config.data.buckets.short.direct_share = 0.02
  if 'tiny' in words:
    config.init_from = ''
    config.total_steps = 4
    config.data.buckets.short.batch_size = 8
    config.data.buckets.long.batch_size = 8
    config.data.pattern = ('short', 'long')
    config.batching.micro_batches = 2
    config.eval.update({'every': 2, 'num_problems': 16})
    config.checkpoint.every = 2
    config.optimizer.warmup_steps = 1
  return config
