import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_rl import optimizers


def rates(steps, **kwargs):
  schedule_fn = optimizers.make_schedule(learning_rate=0.1, **kwargs)
  return [float(schedule_fn(i)) for i in steps]


def test_constant_with_warmup():
  # 0.1 * (1/4, 2/4, 3/4, 4/4, 1, 1): no update is made with a rate of 0.
  got = rates(range(6), schedule='constant', warmup_steps=4)
  np.testing.assert_allclose(got, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], 1e-6)


def test_linear():
  # N - W = 10 - 2 = 8: 1 at i = 2, 1 - 4/8 at i = 6, 0 from i = 10 on.
  got = rates(
    [0, 1, 2, 6, 10, 99], schedule='linear', warmup_steps=2, total_steps=10
  )
  np.testing.assert_allclose(got, [0.05, 0.1, 0.1, 0.05, 0, 0], atol=1e-8)


def test_cosine_with_a_final_fraction():
  # 0.1 * (0.2 + 0.8 * (1 + cos(pi * i / 4)) / 2), i = 0, 2, 4: 1, 0.6, 0.2.
  got = rates(
    [0, 2, 4, 9], schedule='cosine', total_steps=4, final_fraction=0.2
  )
  np.testing.assert_allclose(got, [0.1, 0.06, 0.02, 0.02], rtol=1e-5)


def test_the_schedule_traces():
  schedule_fn = optimizers.make_schedule(
    learning_rate=0.1, schedule='cosine', total_steps=8
  )
  got = jax.jit(jax.vmap(schedule_fn))(jnp.arange(8))
  np.testing.assert_allclose(got, [schedule_fn(i) for i in range(8)], 1e-5)


def test_decay_is_for_matrices_and_never_for_stacked_norms():
  params = {
    'embedding': jnp.ones((4, 2)),
    'layers': {'norm': {'scale': jnp.ones((3, 2))}, 'w': jnp.ones((3, 2, 2))},
    'q': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)},
  }
  assert optimizers.decay_mask(params) == {
    'embedding': True,
    'layers': {'norm': {'scale': False}, 'w': True},
    'q': {'kernel': True, 'bias': False},
  }


def oracle(params, grads, *, lr, b1, b2, eps, decay, clip):
  """AdamW of Loshchilov and Hutter in numpy, float64."""
  params = {k: np.array(v, float) for k, v in params.items()}
  m = {k: 0 * v for k, v in params.items()}
  v2 = {k: 0 * v for k, v in params.items()}
  for t, g in enumerate(grads, 1):
    norm = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in g.values()))
    for k in params:
      x = np.asarray(g[k], float) * min(1, clip / norm)
      m[k] = b1 * m[k] + (1 - b1) * x
      v2[k] = b2 * v2[k] + (1 - b2) * x**2
      step = m[k] / (1 - b1**t) / (np.sqrt(v2[k] / (1 - b2**t)) + eps)
      params[k] -= lr * (
        step + (decay if params[k].ndim >= 2 else 0) * params[k]
      )
  return params


def test_equals_an_independent_adamw():
  rng = np.random.default_rng(0)
  draw = lambda: {
    'w': jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
    'b': jnp.asarray(rng.normal(size=3), jnp.float32),
  }
  params, grads = draw(), [draw() for _ in range(3)]
  optimizer, _ = optimizers.make_optimizer(
    learning_rate=0.1, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.3,
    max_grad_norm=0.5,
  )  # fmt: skip
  want = oracle(
    params, grads, lr=0.1, b1=0.8, b2=0.9, eps=1e-3, decay=0.3, clip=0.5
  )
  state = optimizer.init(params)
  for g in grads:
    updates, state = optimizer.update(g, state, params)
    params = optax.apply_updates(params, updates)
  for name in want:
    np.testing.assert_allclose(params[name], want[name], rtol=2e-5)


def test_clipping_keeps_the_direction():
  # Without adam's rescaling seen: the first moment after one step is
  # (1 - b1) * clipped, and ||(3, 4)|| = 5 clips to (0.6, 0.8).
  optimizer, _ = optimizers.make_optimizer(learning_rate=1.0, b1=0.5)
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  _, state = optimizer.update(grads, optimizer.init(params), params)
  mu = optax.tree_utils.tree_get(state, 'mu')
  np.testing.assert_allclose([mu['a'][0], mu['b'][0]], [0.3, 0.4], 1e-6)


def test_no_clipping():
  optimizer, _ = optimizers.make_optimizer(
    learning_rate=1.0, b1=0.5, max_grad_norm=None
  )
  params = {'a': jnp.zeros(1)}
  _, state = optimizer.update(
    {'a': jnp.array([6.0])}, optimizer.init(params), params
  )
  np.testing.assert_allclose(optax.tree_utils.tree_get(state, 'mu')['a'], 3.0)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'learning_rate': 0.0}, 'learning_rate=0.0 is given; allowed'),
    ({'learning_rate': float('nan')}, 'learning_rate=nan'),
    ({'schedule': 'cosin'}, "schedule='cosin' is given; allowed is .*cosine"),
    ({'schedule': 'cosine'}, 'total_steps=None'),
    ({'schedule': 'linear', 'total_steps': 5, 'warmup_steps': 5}, 'total_ste'),
    ({'warmup_steps': -1}, 'warmup_steps=-1'),
    ({'final_fraction': 2.0}, 'final_fraction=2.0'),
    ({'weight_decay': -0.1}, 'weight_decay=-0.1'),
    ({'b1': 1.0}, 'b1=1.0'),
    ({'b2': -0.1}, 'b2=-0.1'),
    ({'eps': 0.0}, 'eps=0.0'),
    ({'max_grad_norm': 0.0}, 'max_grad_norm=0.0 .*None'),
  ],
)
def test_nonsense_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    optimizers.make_optimizer(**({'learning_rate': 0.1} | change))
