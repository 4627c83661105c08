"""Curves of accuracy against tokens, on the host: read off, and their area.

A curve is N points (t_0, a_0), (t_1, a_1), … of one trace: a_i is the share of
the answers given after t_i tokens that are right. Between the points there are
two readings:

  trapezoid   straight lines between the points, the published figure
  step        a value holds from its own point until the next: what a policy
              gets that answers at measured points alone

Numpy in float64, one trace at a time: `regret.normalized` is the same on arrays
in jax. What comes before the first point and where the horizon cuts is the
caller's (`with_origin`, `area`).
"""

from collections.abc import Sequence

import numpy as np

FORMS = ('trapezoid', 'step')


def as_curve(
  tokens: Sequence[float], accuracy: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (tokens f64[N], accuracy f64[N]), checked.

  Raises:
    ValueError: no point, lengths that differ, NaN, or tokens below 0.
  """
  x, y = np.asarray(tokens, np.float64), np.asarray(accuracy, np.float64)
  if x.ndim != 1 or x.shape != y.shape or not len(x):
    raise ValueError(
      f'tokens has shape {x.shape} and accuracy {y.shape}: one accuracy a '
      'number of tokens is needed, and at least one.'
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()) or (x < 0).any():
    raise ValueError(
      'tokens must be finite and >= 0, and accuracy finite: leave out what was '
      'not measured.'
    )
  return x, y


def with_origin(
  tokens: np.ndarray, accuracy: np.ndarray, value: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a curve with the point (0, value) in front."""
  return np.append(0.0, tokens), np.append(value, accuracy)


def area(
  tokens: np.ndarray,
  accuracy: np.ndarray,
  horizon: float,
  *,
  form: str = 'trapezoid',
  cut: bool = True,
) -> float:
  """Returns (1/H) ∫_0^H a(t) dt of a curve that begins at 0 tokens.

  It is flat after the last point. Of the points before H and the next one the
  value at H is read. Tokens that run backwards are taken as they come, which is
  no area any more: lift them first (`statistics.monotone`).

  Args:
    tokens: f64[N], the first 0.
    accuracy: f64[N].
    horizon: H > 0, tokens.
    form: one of FORMS.
    cut: False: points beyond the horizon are integrated too, and then back to
      H at the last value.

  Returns:
    A mean accuracy; NaN or infinite only for tokens that run backwards.
  """
  x, y = tokens, accuracy
  before = x < horizon
  if not cut or before.all():
    x, y = np.append(x, horizon), np.append(y, y[-1])
  else:
    i = before.sum() - 1
    end = y[i]
    if form == 'trapezoid':
      with np.errstate(all='ignore'):  # x[i + 1] is x[i] only if it runs back
        share = (horizon - x[i]) / (x[i + 1] - x[i])
        end = y[i] + share * (y[i + 1] - y[i])
    x, y = np.append(x[before], horizon), np.append(y[: i + 1], end)
  height = y[:-1] if form == 'step' else (y[:-1] + y[1:]) / 2
  return float(np.dot(np.diff(x), height) / horizon)


def at_tokens(
  tokens: np.ndarray,
  accuracy: np.ndarray,
  at: np.ndarray | Sequence[float],
  *,
  form: str = 'trapezoid',
) -> np.ndarray:
  """Returns a curve read at any tokens: a_0 before the first, flat at the end.

  Of points at the same tokens the last one counts, as the one that was measured
  after more thinking.

  Args:
    tokens: f64[N], not decreasing.
    accuracy: f64[N].
    at: f64[...], tokens.
    form: one of FORMS.

  Returns:
    f64[...].
  """
  at = np.asarray(at, np.float64)
  i = np.searchsorted(tokens, at, side='right') - 1
  left = np.maximum(i, 0)
  if form == 'step':
    return accuracy[left]
  right = np.minimum(i + 1, len(tokens) - 1)
  width = tokens[right] - tokens[left]
  # Before the first and after the last point left is right.
  share = np.where(width > 0, (at - tokens[left]) / np.maximum(width, 1e-9), 0)
  return accuracy[left] + share * (accuracy[right] - accuracy[left])
