"""Configs, one file a run; installed as `meta_rl.configs`.

Each file has `get_config(arg)`, which returns a `ConfigDict` (the commands lock
it); with the argument 'tiny' (`--config=configs/mrt_countdown.py:tiny`) it runs
in seconds.
"""


def split_argument(arg: str, *own: str) -> tuple[list[str], str]:
  """Returns a config's own words of its argument, and the scale in the rest.

  'rloo,tiny' of a config whose own words are 'dr' and 'rloo' gives (['rloo'],
  'tiny'): the scale goes on to the config that it starts from.

  Args:
    arg: words joined by commas.
    *own: those that the config knows beside 'hard' and 'tiny'.

  Raises:
    ValueError: a word that is neither.
  """
  words = [word for word in arg.split(',') if word]
  allowed = [*own, 'hard', 'tiny']
  if unknown := sorted(set(words) - set(allowed)):
    raise ValueError(
      f'unknown argument {unknown}: allowed are {", ".join(allowed)}.'
    )
  scale = [word for word in words if word not in own]
  return [word for word in words if word in own], ','.join(scale)
