"""What ends a run, or warns, when its numbers say that it learns nothing.

A step whose metrics are not finite, traces that are not of the policy, and
signs that learning is silently dead.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping


class NonFiniteError(FloatingPointError):
  """A NaN or infinite loss; the message is one line.

  Attributes:
    step: the step that it appeared in.
    names: the offending metrics.
    last_checkpoint_step: step of the last good checkpoint, or None.
  """

  def __init__(self, step, names, values, last_checkpoint_step):
    self.step = step
    self.names = names
    self.last_checkpoint_step = last_checkpoint_step
    what = ', '.join(f'{n} is {v}' for n, v in zip(names, values, strict=True))
    lower = 'Lower the learning rate or max_grad_norm'
    if last_checkpoint_step is None:
      then = (
        f'no checkpoint was saved yet. {lower} and begin in another workdir'
      )
    else:
      # Finite metrics do not show that the weights behind them are sound.
      then = (
        f'the last good checkpoint is step {last_checkpoint_step}. {lower} '
        '(--allow_change=optimizer lets it through) and run again from there; '
        'if that stops at once, delete the folder of that checkpoint to go on '
        'from the one before'
      )
    super().__init__(f'step {step}: {what}; {then}')


def check_finite(
  step: int,
  metrics: Mapping[str, float],
  last_checkpoint_step: int | None,
  *,
  ignore: Iterable[str] = (),
):
  """Raises `NonFiniteError` if a metric is NaN or infinite.

  Args:
    step: the step that gave the metrics.
    metrics: name -> number; pass those that the update depends on.
    last_checkpoint_step: step of the last good checkpoint, or None.
    ignore: names that may be non-finite.
  """
  ignore = set(ignore)
  bad = {
    name: value
    for name, value in ((n, float(v)) for n, v in metrics.items())
    if name not in ignore and not math.isfinite(value)
  }
  if bad:
    raise NonFiniteError(
      step, list(bad), list(bad.values()), last_checkpoint_step
    )


def check_gap(step: int, row: dict[str, float], limit: float):
  """Stops a run whose sampler and trainer disagree on log-probs.

  The gap is that of the first mini-batch, which is trained on the very
  parameters that sampled it: beyond rounding it means a wrong mask, position,
  temperature or dtype, and the policy gradient is then biased.
  """
  gap = row['policy/log_prob_gap']
  if gap > limit:
    raise ValueError(
      f'step {step}: the sampler and the trainer differ by {gap:.3g} nats a '
      f'token (max_log_prob_gap={limit:g}): the update would be off-policy. '
      'Use one dtype for both, or raise the limit.'
    )


def check_mismatch(step: int, row: Mapping[str, float], limit: float):
  """Stops a run whose given rollouts are too far from its policy.

  Beyond some nats a token the weights say more of the cap than of the policy:
  another tokenizer, temperature or model, or a policy that has moved away.

  Args:
    step: for the message.
    row: metrics of the step.
    limit: nats a token.
  """
  gap = row['external/mismatch_mean']
  if not gap <= limit:
    raise ValueError(
      f'step {step}: the log-probs of the rollouts differ from the policy by '
      f'{gap:.3g} nats a token (external.max_mismatch={limit:g}; at most '
      f'{row["external/mismatch_max"]:.3g}, effective share '
      f'{row["external/ess"]:.2g}): sample again from the policy as it is now, '
      'at its temperature, or raise the limit.'
    )


# Signs that learning is silently dead: metric, test, what to say.
_SYMPTOMS = (
  (
    'rollout/truncation_rate',
    lambda v: v >= 1.0,
    'every trace was truncated: no answer is ever given, so all rewards are '
    'equal; raise max_new_tokens or the thinking budget',
  ),
  (
    'rollout/zero_variance_share',
    lambda v: v >= 1.0,
    'every group had constant rewards: an outcome says nothing about its '
    'traces; change the difficulty of the problems, or raise group_size or the '
    'temperature',
  ),
  (
    'reward/none_share',
    lambda v: v >= 1.0,
    'no trace had a reward: nothing is learnt; look at the functions of '
    'config.rewards, which gave None or NaN',
  ),
  (
    'optimizer/grad_norm',
    lambda v: v == 0.0,
    'the gradient was exactly 0: nothing is learnt; look at the rewards, the '
    'loss mask and the learning rate',
  ),
)


class Watchdog:
  """Warns when learning is silently dead for `patience` steps on end.

  Each warning is said once, and again only after the symptom went away.

  Args:
    patience: consecutive steps that make a symptom a warning, >= 1.
    symptoms: (metric name, predicate, advice); steps whose metrics lack the
      name neither count nor reset.
  """

  def __init__(self, patience: int = 3, symptoms=_SYMPTOMS):
    if patience < 1:
      raise ValueError(f'patience={patience} is given; allowed is >= 1')
    self._patience, self._symptoms = patience, symptoms
    self._streak = Counter()

  def update(self, step: int, metrics: Mapping[str, float]) -> list[str]:
    """Returns the warnings that are new at this step, mostly none."""
    said = []
    for name, is_dead, advice in self._symptoms:
      if name not in metrics:
        continue
      self._streak[name] = (
        self._streak[name] + 1 if is_dead(float(metrics[name])) else 0
      )
      if self._streak[name] == self._patience:
        said.append(
          f'WARNING: step {step}: for {self._patience} steps on end {advice} '
          f'({name} = {float(metrics[name]):g})'
        )
    return said
