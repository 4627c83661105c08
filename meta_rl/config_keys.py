"""Which keys every training config has; a config of one's own may lack some.

`tests/test_config_keys.py` holds the table against the shipped configs.
"""

from collections.abc import Iterable, Mapping

import ml_collections

# Sections by name, '' for the top. What an algorithm or a task reads beyond
# these is said by its own check.
TRAINING = {
  '': (
    'name',
    'seed',
    'total_steps',
    'total_cost',
    'total_tokens',
    'init_from',
    'max_log_prob_gap',
    'outcome_weight',
    'rewards',
    'reward_errors',
  ),
  'task': ('name',),
  'model': (),
  'rollout': (
    'source',
    'num_prompts',
    'group_size',
    'thinking_budget',
    'temperature',
    'top_k',
    'top_p',
    'dynamic_sampling.max_rounds',
  ),
  'prover': (
    'kind',
    'boundaries',
    'budgets',
    'max_episodes',
    'num_branches',
    'num_enumerated',
  ),
  'algorithm': ('name',),
  'loss': (
    'aggregate',
    'chunk',
    'clip_high',
    'clip_low',
    'entropy_coef',
    'kl_coef',
    'kl_estimator',
    'ratio',
    'surrogate',
    'pathwise.alone',
    'pathwise.boundaries',
    'pathwise.coef',
  ),
  'optimizer': ('learning_rate',),
  'batching': (
    'epochs',
    'length_buckets',
    'micro_batches',
    'mini_batches',
    'rows_per_device',
  ),
  'curriculum': ('budgets', 'every', 'kappa'),
  'parallel': (
    'kind',
    'mesh.context',
    'mesh.data',
    'mesh.fsdp',
    'mesh.tensor',
  ),
  'eval': ('batch_size', 'every', 'num_problems'),
  'checkpoint': ('every', 'max_to_keep'),
  'log': ('print_every', 'samples_every'),
}
IMITATION = {'data': ('orders', 'path', 'pattern', 'source')}

# Where a run takes place, which changes nothing of what it does: a resumed one
# may have others without being asked.
PLACES = (
  'parallel',
  'batching.micro_batches',
  'batching.rows_per_device',
  'model.attention',
  'model.remat',
  'rollout.slots',
)

# What is read of a run that was recorded, also by an older version.
_NEWER = ('rollout.source', 'rollout.dynamic_sampling.max_rounds')
RECORDED = ('task', 'model', 'rollout', 'algorithm', 'prover')
_TOP_OF_RECORDED = ('name', 'seed', 'init_from')


def first_missing(
  config: Mapping, table: Mapping[str, Iterable[str]]
) -> str | None:
  """Returns the first section or dotted key that a config lacks, or None.

  Args:
    config: a ConfigDict.
    table: sections and their keys.
  """
  for section, keys in table.items():
    if section and not _is_section(config.get(section)):
      return section
    for key in keys:
      node, path = config, [*filter(None, [section]), *key.split('.')]
      for i, part in enumerate(path):
        if not _is_section(node) or part not in node:
          return '.'.join(path[: i + 1])
        node = node[part]
  return None


def _is_section(node) -> bool:
  return isinstance(node, ml_collections.ConfigDict)


def check(config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, unless a training config has its keys."""
  missing = first_missing(config, TRAINING)
  if missing is None and config.algorithm.name == 'sft':
    missing = first_missing(config, IMITATION)
  if missing:
    kind = 'section' if missing in {**TRAINING, **IMITATION} else 'key'
    raise ValueError(
      f'the config has no {kind} {missing!r}: start from that of '
      'configs/mrt_countdown.py (imitation: sft_countdown.py) and change what '
      'differs.'
    )


def check_recorded(folder, config: ml_collections.ConfigDict):
  """Raises ValueError, in one line, unless a recorded config can be used.

  Args:
    folder: whose config.json it is.
    config: what it says.
  """
  table = {section: TRAINING[section] for section in RECORDED}
  table['rollout'] = [
    key for key in TRAINING['rollout'] if f'rollout.{key}' not in _NEWER
  ]
  table[''] = _TOP_OF_RECORDED  # last: a foreign file has no sections either
  missing = first_missing(config, table)
  if missing in table:
    raise ValueError(
      f'{folder}/config.json is of another program: it has no {missing!r} '
      'section. Name a run folder of meta_rl.train.'
    )
  if missing:
    raise ValueError(
      f'{folder}/config.json has no key {missing!r}: put the file back as the '
      'run wrote it.'
    )
