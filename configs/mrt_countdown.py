r"""MRT on Countdown from the shipped base policy.

Meta reinforcement fine-tuning (Qu et al. 2025, arXiv 2503.07572), online form:
dense progress from the exact prover, token-weighted, the prover as critic.

The base policy searches at random; training makes it find an answer in fewer
tokens. 2 cores, from nothing to the last step: about 3 minutes.

    python -m meta_rl.train --config=configs/mrt_countdown.py --workdir=runs/mrt

`:hard` adds products and has u < 1 expected hits a trace; `:tiny` runs in
seconds. To train longer: --config.total_steps=200

Departs from the paper: progress counts for the budgets that end after it and
not alike everywhere; J is exact and no mean of a few branches; and `decay=0.5`
makes the credit biased: an episode is judged by where it led, by J, more than
by how later episodes turned out. It buys variance, an eighth of that of
`decay=1` within hits and within misses, and the signal stayed as it was; regret
on test prompts was 0.293 in place of 0.317 (one seed). A later run found 0.9
level and 0 no better (LOG.md, 2026-11-24).

`:backtrack` is the paper's other search: an episode goes back to a step of the
attempt before and goes on from there (meta_rl/tasks/backtrack.py). It has a
base policy of its own; with `hard` it starts from what
`sft_countdown.py:backtrack,hard` leaves in runs/sft_backtrack_hard.

    python -m meta_rl.train --config=configs/mrt_countdown.py:backtrack \
      --workdir=runs/mrt_backtrack
"""

import ml_collections
from ml_collections import config_dict


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` joins 'backtrack' and 'hard' or 'tiny'."""
  words = arg.split(',')
  backtrack = 'backtrack' in words
  arg = ','.join(word for word in words if word != 'backtrack')
  config = ml_collections.ConfigDict()
  config.name = 'MRT'
  config.seed = 0
  config.total_steps = 50  # rollouts, two optimizer steps each
  # Forward tokens (meta_rl/costs.py) after which training ends, if that comes
  # first; the learning rate's schedule is by total_steps all the same.
  config.total_cost = config_dict.placeholder(float)
  # The same for the response tokens of the traces that are sampled; what a
  # prover or a curriculum samples is not among them.
  config.total_tokens = config_dict.placeholder(float)
  config.init_from = 'asset:countdown_easy'

  config.task = {
    'name': 'countdown',
    'n': 3,
    'low': 1,
    'high': 14,
    'ops': '+-',
    'max_answers': 4,  # problems with more accepted answers are left out
    'max_value': 99,
    'orders': 6,  # prompts a problem: orders in which the numbers are shown
  }
  config.model = {
    'vocab_size': 128,
    'num_layers': 3,
    'width': 96,
    'num_heads': 3,
    'ffn_width': 384,
    'rope_base': 1000.0,
  }
  config.rollout = {
    'source': 'policy',  # or 'jsonl:PATH': configs/external_countdown.py
    'num_prompts': 24,
    'group_size': 8,
    'thinking_budget': 108,  # tokens: 12 episodes of 9; the horizon of regret
    'temperature': 1.0,
    'top_p': config_dict.placeholder(float),  # None: the whole support
    'top_k': config_dict.placeholder(int),
    # Traces that decode at a time on a device: a row whose trace has ended
    # takes the next one. Samples are the same. Pays where lengths differ; on
    # CPUs 24 are best, which fit the processor's cache.
    'slots': config_dict.placeholder(int),  # None: all of them at a time
    # Rounds of further prompts in place of groups whose rewards are all equal;
    # 0 is none.
    'dynamic_sampling': {'max_rounds': 0},
  }
  config.prover = {
    # or 'sampled', 'control_variate', 'continued' (of 'segment'), 'none'
    'kind': 'exact',
    'max_episodes': 12,
    # J after every attempt; or 'budgets': after every token budget.
    'boundaries': 'delimiters',
    # None: max_episodes budgets at equal distances.
    'budgets': config_dict.placeholder(tuple),
    'num_branches': 8,  # of the provers that sample
    # Of 'control_variate': how many accepted answers are taken exactly; None:
    # all.
    'num_enumerated': config_dict.placeholder(int),
  }
  config.curriculum = {
    # Thinking budgets to choose from while training, the last of them
    # rollout.thinking_budget (meta_rl/curriculum.py); (): that one alone.
    'budgets': (),
    'kappa': 1.2,  # > 1: a doubling that brings less is not worth it
    'every': 25,  # steps between two choices, a multiple of eval.every
  }
  config.algorithm = {
    'name': 'mrt',
    'credit': 'token_weighted',  # or 'return_to_go', 'immediate'
    'alpha': 1.0,
    'outcome_mass': 0.3,  # rho: share of the budget prior on the full budget
    'price': 0.0,  # lambda: of a horizon of thinking tokens
    'baseline': 'prover',
    # Of GAE, with the prover as critic: 0 judges an episode by where it led,
    # 1 by all that came later.
    'decay': 0.5,
  }
  # Functions of one's own, (('package.module.function', weight), ...), whose
  # values are added to outcome_weight times the task's outcome; a trace that
  # one has no number for is left out of the update (meta_rl/rewards.py).
  config.rewards = ()
  config.outcome_weight = 1.0
  config.reward_errors = 'raise'  # or 'mask': a function that raises
  config.loss = {
    'clip_low': 0.2,
    'clip_high': 0.2,
    'surrogate': 'clip',
    'ratio': 'token',
    # Every token counts alike: a mean within each trace first would weigh the
    # episodes of long searches, where regret arises, less.
    'aggregate': 'token_mean',
    'kl_coef': 0.0,
    'kl_estimator': 'k2',
    'entropy_coef': 0.0,
    # The gradient of J through how the policy answers: at 'all' boundaries or
    # the 'last' one; `alone`: nothing but it. An ablation, off by default.
    'pathwise': {'boundaries': 'none', 'coef': 1.0, 'alone': False},
    # None: all; else positions at a time through the vocabulary matrix.
    'chunk': config_dict.placeholder(int),
  }
  config.batching = {
    'mini_batches': 2,  # optimizer steps a rollout
    'epochs': 1,
    'micro_batches': 6,  # of each mini-batch: 16 traces, which fit the cache
    # At most so many traces on a device at a time: then as many micro-batches
    # as that takes on the devices that are there, and micro_batches is unused.
    'rows_per_device': config_dict.placeholder(int),
    'length_buckets': (48, 80),  # columns to which short traces are cut
  }
  config.optimizer = {
    'learning_rate': 1e-4,
    'schedule': 'constant',
    'warmup_steps': 0,
    'weight_decay': 0.0,
    'b1': 0.9,
    'b2': 0.999,
    'max_grad_norm': 1.0,
  }
  config.parallel = {
    # 'jit' (a mesh), 'pmap' (data parallel), 'none' (one device); 'auto': jit
    # where there are several devices.
    'kind': 'auto',
    # Devices along each axis, -1 the rest. Context cuts traces by their time.
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'context': 1},
    # Whole steps in one program, at most so many a dispatch; 0: a dispatch a
    # phase (meta_rl/train_blocks.py).
    'fused_steps': 0,
  }
  config.eval = {'every': 25, 'num_problems': 512, 'batch_size': 256}
  # Divides eval.every: only a step that is saved can be kept as the best.
  config.checkpoint = {'every': 5, 'max_to_keep': 2}
  config.log = {'samples_every': 25, 'print_every': 5}
  # Mean |log-prob recorded by the sampler - recomputed by the trainer|, nats a
  # token: beyond it the run stops.
  config.max_log_prob_gap = 0.01

  if arg == 'hard':
    config.init_from = 'asset:countdown_hard'
    config.task.update({'high': 10, 'ops': '+-*'})
    # 10 episodes at a hit rate of 0.08 each: u = 0.8.
    config.rollout.thinking_budget = 90
    config.prover.max_episodes = 10
  elif arg == 'tiny':
    config.total_steps = 4
    config.init_from = ''
    config.model.update({'num_layers': 1, 'width': 16, 'num_heads': 2})
    config.model.ffn_width = 32
    config.rollout.update({'num_prompts': 4, 'group_size': 4})
    config.rollout.thinking_budget = 27
    config.prover.max_episodes = 3
    config.batching.micro_batches = 1
    config.curriculum.every = 2
    config.eval.update({'every': 2, 'num_problems': 16, 'batch_size': 16})
    config.checkpoint.every = 2
    config.log.update({'samples_every': 2, 'print_every': 1})
  elif arg:
    raise ValueError(
      f'unknown argument {arg!r}: give one of hard and tiny, backtrack, or two '
      'with a comma: backtrack,tiny.'
    )
  if backtrack:
    config.task.name = 'countdown_backtrack'
    if arg != 'tiny':
      config.init_from = {
        '': 'asset:countdown_backtrack',
        'hard': 'runs/sft_backtrack_hard',
      }[arg]
    # The first episode is 9 tokens, later ones are 6 to 11, 9 on average: as
    # many as the budget can hold have a boundary of their own.
    later = config.rollout.thinking_budget - 9
    config.prover.max_episodes = 1 + -(-later // 6)
  return config
