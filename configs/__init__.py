"""Configs, one file a run; installed as `meta_rl.configs`.

Each file has `get_config(arg)`, which returns a `ConfigDict` (the commands lock
it); with the argument 'tiny' (`--config=configs/mrt_countdown.py:tiny`) it runs
in seconds, from random weights: reward 0 and a warning about constant rewards
are normal then.
"""

from collections.abc import Sequence

import ml_collections


def split_argument(
  arg: str, *own: str, one_of: Sequence[str] = ()
) -> tuple[list[str], str]:
  """Returns a config's own words of its argument, and the scale in the rest.

  'rloo,tiny' of a config whose own words are 'dr' and 'rloo' gives (['rloo'],
  'tiny'): the scale goes on to the config that it starts from.

  Args:
    arg: words joined by commas.
    *own: those that the config knows beside 'hard', 'tiny' and 'backtrack'.
    one_of: more of them, of which only one may be given.

  Raises:
    ValueError: a word that is neither, or two of `one_of`.
  """
  own = (*own, *one_of)
  words = [word for word in arg.split(',') if word]
  allowed = [*own, 'hard', 'tiny', 'backtrack']
  if unknown := sorted(set(words) - set(allowed)):
    raise ValueError(
      f'unknown argument {unknown}: allowed are {", ".join(allowed)}, '
      'several with commas between.'
    )
  if len(set(words) & set(one_of)) > 1:
    *rest, last = one_of
    raise ValueError(
      f'argument {arg!r}: give one of {", ".join(rest)} and {last}.'
    )
  scale = [word for word in words if word not in own]
  return [word for word in words if word in own], ','.join(scale)


def refuse_imitating_problems(arg: str, words: Sequence[str]):
  """Raises ValueError where both 'sft' and 'files' are among the words."""
  if {'sft', 'files'} <= set(words):
    raise ValueError(
      f'argument {arg!r}: files are problems, not solutions to imitate; of '
      'chats give sft, --config.data.source=jsonl and --config.data.path.'
    )


def take_rollouts(config: ml_collections.ConfigDict):
  """Makes a config train on a file of rollouts (meta_rl/external)."""
  config.name = f'{config.name}, given rollouts'
  config.rollout.source = 'jsonl:rollouts.jsonl'
  config.external = {
    'reward': 'task',  # its verifier, or 'row': the row's own
    'correction': 'token',  # or 'sequence', 'none'
    'cap': 2.0,  # of the importance weights
    # Mean |log-prob of the file - of the policy|, nats a token: beyond it the
    # run stops.
    'max_mismatch': 0.5,
    'buckets': (),  # response columns; () is one, of the longest response
  }
