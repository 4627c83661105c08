"""Stop rules of a policy: heads and calibrated thresholds, in one file.

`meta_rl.calibrate` writes it beside a checkpoint; whoever samples from the
checkpoint reads it: an evaluation, the server, `anytime.generate`.
"""

import dataclasses
import json
import os

import numpy as np

from meta_rl import eval_partial, stopping, weights
from meta_rl.weights import WeightsError

NAME = 'stop_rules.safetensors'
_KEY = 'meta_rl_stop_rules'
_FIELDS = tuple(f.name for f in dataclasses.fields(stopping.ProgressHead))


@dataclasses.dataclass(frozen=True)
class StopRules:
  """What is known of stopping one policy.

  Attributes:
    heads: mode ('own', 'forced') -> the head that predicts progress.
    choices: a dict each: 'rule' (of `stopping.KINDS`), 'mode', 'threshold'
      (None: no threshold was shown to be safe), 'risk', 'p_value', 'tested',
      'traces', 'accuracy', 'tokens_mean'.
    about: 'alpha', 'delta', 'budget' (thinking tokens), 'max_looks' (of
      `anytime.generate`), 'policy' (a digest of its weights), 'problems' and
      'traces' that were tested, 'full' ('accuracy', 'tokens_mean' at the own
      stop), and how well the heads fit.
  """

  heads: dict[str, stopping.ProgressHead]
  choices: list[dict]
  about: dict

  def check(self, budget: int, params=None):
    """Raises ValueError unless they are of this budget and this policy.

    Args:
      budget: thinking tokens.
      params: the policy; None: it is not looked at.
    """
    if self.about['budget'] != budget:
      raise ValueError(
        f'the stop rules were calibrated for a budget of '
        f'{self.about["budget"]} thinking tokens, and this one is {budget}: '
        'calibrate again (python -m meta_rl.calibrate).'
      )
    if params is None:
      return
    if self.about.get('policy') != eval_partial.digest_of(params):
      raise ValueError(
        'the stop rules were calibrated for other weights than these: '
        'calibrate again (python -m meta_rl.calibrate).'
      )

  def threshold(self, rule: str, *, forced: bool = False) -> float:
    """Returns the calibrated threshold of a rule.

    Raises:
      ValueError: there is none.
    """
    mode = 'forced' if forced else 'own'
    for choice in self.choices:
      if (choice['rule'], choice['mode']) == (rule, mode):
        if choice['threshold'] is None:
          raise ValueError(
            f'stop rule {rule!r} ({mode}): no threshold was shown to spoil at '
            f'most {self.about["alpha"]:g} of the answers; give one yourself, '
            'or calibrate on more traces.'
          )
        return choice['threshold']
    known = sorted({f'{c["rule"]} ({c["mode"]})' for c in self.choices})
    raise ValueError(
      f'stop rule {rule!r} ({mode}) was not calibrated; there are {known}.'
    )


def save(path: str | os.PathLike, rules: StopRules):
  """Writes the rules, whole or not at all."""
  tensors = {
    mode: {name: getattr(head, name) for name in _FIELDS}
    for mode, head in rules.heads.items()
  }
  text = json.dumps({'choices': rules.choices, 'about': rules.about})
  weights.save_safetensors(path, tensors, {_KEY: text})


def load(path: str | os.PathLike) -> StopRules:
  """Returns the rules of a file, or of the run folder that holds one.

  Raises:
    WeightsError: a missing or damaged file, or one of another kind.
  """
  if os.path.isdir(path):
    path = os.path.join(path, NAME)
  tensors, metadata = weights.load_safetensors(path)
  try:
    said = json.loads(metadata[_KEY])
    heads = {
      mode: stopping.ProgressHead(**{n: np.asarray(own[n]) for n in _FIELDS})
      for mode, own in tensors.items()
    }
    return StopRules(heads, list(said['choices']), dict(said['about']))
  except (KeyError, TypeError, ValueError):
    raise WeightsError(
      f'{path} holds no stop rules: write them with python -m '
      'meta_rl.calibrate.'
    ) from None
