r"""MRT on Hidden, the task whose optimum is known: find one of 8 options.

The best policy never tries an option twice; its area under J is 36/64 = 0.5625
of the horizon and nothing beats it (meta_rl/tasks/hidden.py). The warm start
tries at random, with repeats, and stops too early or too late. Two commands,
the first makes what the second starts from:

    python -m meta_rl.train --config=configs/mrt_hidden.py:sft \
      --workdir=runs/hidden_sft
    python -m meta_rl.train --config=configs/mrt_hidden.py \
      --workdir=runs/hidden --config.init_from=runs/hidden_sft

Both take 4 minutes of CPU time and reach 96% to 99.8% of that area. With
--config.algorithm.outcome_mass=0.3 it is no more (LOG.md, 2026-11-27).
`:tiny` and `:sft,tiny` run in seconds.
"""

import ml_collections
from ml_collections import config_dict

from meta_rl.configs import mrt_countdown


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'sft', for the warm start, and 'tiny'."""
  args = [a for a in arg.split(',') if a]
  if unknown := set(args) - {'sft', 'tiny'}:
    raise ValueError(
      f'unknown argument {sorted(unknown)}: allowed are sft and tiny.'
    )
  config = mrt_countdown.get_config('tiny' if 'tiny' in args else '')
  config.name = 'MRT, hidden'
  config.init_from = ''
  config.task = {'name': 'hidden', 'n': 8, 'num_problems': 8192}
  config.rollout.thinking_budget = 16  # tokens: 8 episodes of 2
  config.prover.max_episodes = 8
  # All budgets alike: the objective is the area under J itself.
  config.algorithm.outcome_mass = 0.0
  config.batching.length_buckets = ()
  if 'tiny' not in args:
    config.total_steps = 400
    config.model.update({'num_layers': 2, 'width': 64, 'num_heads': 4})
    config.model.update({'ffn_width': 128, 'tie_embeddings': False})
    config.rollout.update({'num_prompts': 32, 'group_size': 8})
    config.batching.micro_batches = 1
    config.optimizer.update({'learning_rate': 1e-3, 'schedule': 'cosine'})
    config.eval.every = 100
    config.checkpoint.every = 50
    config.log.samples_every = 100
    config.log.print_every = 10
  if 'sft' in args:
    _warm_start(config, tiny='tiny' in args)
  return config


def _warm_start(config, *, tiny):
  """Turns the config into that of the warm start."""
  config.name = 'SFT, hidden'
  config.algorithm = {'name': 'sft'}
  config.data = {
    'source': 'traces',
    'path': '',
    'orders': config_dict.placeholder(int),  # a problem has one prompt
    'traces': {
      'ordinary_episodes': 8,
      'max_episodes': 16,  # positions beyond the budget of RL
      'long_share': 0.1,
      'p_stop': 0.08,  # chance to give up after a failed episode
      'p_continue': 0.25,  # chance to go on after a success
      # A guess is an option that was not tried: what is left must be known to
      # guess, and reinforcement may then learn to try it.
      'p_informed': 1.0,
    },
    'buckets': {'all': {'batch_size': 16 if tiny else 64, 'length': 48}},
    'pattern': ('all',),
  }
  config.batching.update({'mini_batches': 1, 'micro_batches': 1})
  if not tiny:
    config.total_steps = 800
    config.eval.every = 400
    config.checkpoint.every = 100
    config.log.print_every = 50
    config.optimizer.update({'learning_rate': 3e-3, 'warmup_steps': 30})
