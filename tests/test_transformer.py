"""Tests of meta_rl.models.transformer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from toys import lively_params, tiny

from meta_rl import models, places
from meta_rl.models import attention, rope
from meta_rl.scoring import positions_of

BIG = {
  'num_layers': 1,
  'num_heads': 6,
  'num_kv_heads': 2,
  'head_dim': 4,
  'qkv_bias': True,
  'qk_norm': True,
  'tie_embeddings': False,
  'rope_base': 50.0,
}
WINDOW = {
  'sliding_window': 2,
  'local_layers': (True, False),
  'local_rope_base': 20.0,
}
CONFIGS = {
  'llama': tiny(),
  'qwen': tiny(**BIG),
  'scan': tiny(scan_layers=True),
  'bfloat16': tiny(num_layers=1, dtype='bfloat16'),
  'window': tiny(**WINDOW),
  'window, scan': tiny(**WINDOW, scan_layers=True),
}
# Left-padded, right-padded, whole, with a gap.
MASK = np.array(
  [
    [0, 0, 1, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 0, 0],
    [1, 1, 1, 1, 1, 1, 1],
    [0, 1, 1, 0, 0, 1, 1],
  ],
  bool,
)
TOKENS = np.random.default_rng(0).integers(0, 32, MASK.shape, np.int32)
POSITIONS = np.asarray(positions_of(MASK))
WRITES = (3, 1, 2, 1)


@functools.cache
def params_of(name):
  return lively_params(CONFIGS[name])


@functools.cache
def forward(config):
  model = models.make_model(config)
  return jax.jit(lambda p, t, s, m: model.apply_fn(p, t, s, None, m)[0])


def run(config, params, tokens=TOKENS, positions=POSITIONS, mask=None):
  return np.asarray(forward(config)(params, tokens, positions, mask))


# --- an independent forward pass, one token and one head at a time ---


def _norm(x, scale):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def _turn(x, position, base):
  half = len(x) // 2
  angle = position / base ** (np.arange(half) / half)
  pair = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
  return np.concatenate([pair.real, pair.imag])


def _oracle(c, params, tokens):
  """Logits f64[T,V] of one row without padding."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = params['embedding'][tokens]
  for i in range(c.num_layers):
    layer = params[f'layers_{i}']
    a = layer['attention']
    y = _norm(x, layer['attention_norm']['scale'])
    q, k, v = (
      (y @ a[n]['kernel'] + a[n].get('bias', 0)).reshape(len(x), -1, c.dim)
      for n in 'qkv'
    )
    if c.qk_norm:
      q, k = _norm(q, a['q_norm']['scale']), _norm(k, a['k_norm']['scale'])
    out = np.zeros_like(q)
    for t in range(len(x)):
      for h in range(c.num_heads):
        n = h * c.kv_heads // c.num_heads
        base, first = c.rope_base, 0
        if c.is_local[i]:
          base, first = c.local_rope_base, max(0, t + 1 - c.sliding_window)
        turned = _turn(q[t, h], t, base)
        seen = range(first, t + 1)
        scores = np.array([turned @ _turn(k[s, n], s, base) for s in seen])
        weights = np.exp(scores / np.sqrt(c.dim))
        out[t, h] = weights @ v[first : t + 1, n] / weights.sum()
    x = x + out.reshape(len(x), -1) @ a['o']['kernel']
    y = _norm(x, layer['ffn_norm']['scale'])
    gate = y @ layer['gate']['kernel']
    inner = gate / (1 + np.exp(-gate)) * (y @ layer['up']['kernel'])
    x = x + inner @ layer['down']['kernel']
  head = params['embedding'].T if c.tie_embeddings else params['head']
  return _norm(x, params['final_norm']['scale']) @ head


@pytest.mark.parametrize('name', ['llama', 'qwen', 'window'])
def test_equals_a_naive_forward_pass(name):
  # Padding of any kind included: only the real tokens are shown to the oracle.
  config, params = CONFIGS[name], params_of(name)
  logits = run(config, params)
  for row, mask in enumerate(MASK):
    expected = _oracle(config, params, TOKENS[row][mask])
    np.testing.assert_allclose(logits[row][mask], expected, atol=3e-4)


@pytest.mark.parametrize('name', ['llama', 'qwen', 'scan', 'bfloat16'])
def test_the_defaults_compute_what_they_did_before_there_were_switches(name):
  # Recorded before sliding windows, caps and scales came in; where it was
  # recorded, the bits were the same after.
  recorded = np.load(ROOT / 'tests' / 'data' / 'transformer_logits.npz')[name]
  found = run(CONFIGS[name], params_of(name))
  atol = 0.05 if name == 'bfloat16' else 1e-5
  np.testing.assert_allclose(found[MASK], recorded[MASK], atol=atol)


@pytest.mark.parametrize('name', CONFIGS)
def test_cached_equals_uncached(name):
  config, params = CONFIGS[name], params_of(name)
  model = models.make_model(config)

  @jax.jit
  def cached(params, tokens, positions):
    # Two slots more than there are tokens stay empty and unseen.
    cache = model.init_cache(tokens.shape[0], tokens.shape[1] + 2)
    out, start = [], 0
    for size in WRITES:
      part = slice(start, start + size)
      logits, cache = model.apply_fn(
        params, tokens[:, part], positions[:, part], cache
      )
      out.append(logits)
      start += size
    return jnp.concatenate(out, 1), cache

  logits, cache = cached(params, TOKENS, POSITIONS)
  assert logits.dtype == jnp.float32
  tolerance = 0.1 if config.dtype == 'bfloat16' else 1e-4
  expected = run(config, params)
  np.testing.assert_allclose(logits[MASK], expected[MASK], atol=tolerance)
  # A padding column leaves a void slot, zeros in it.
  np.testing.assert_array_equal(cache['valid'][:, :7], MASK)
  assert not cache['valid'][:, 7:].any()
  assert cache['index'] == 7
  for leaf in jax.tree.leaves(cache['layers']):
    keys = np.moveaxis(np.asarray(leaf, np.float32), -2, -3)
    keys = keys.reshape(-1, 4, 9, *keys.shape[-2:])  # layers, rows, slots
    assert not keys[:, :, :7][:, ~MASK].any()
    assert keys[:, :, :7][:, MASK].any((-1, -2)).all()


def test_scanned_layers_write_the_cache_in_place():
  """It is carried from layer to layer, not cut into slices and put together."""
  config = CONFIGS['scan']
  model = models.make_model(config)
  cache = model.init_cache(4, 9)
  jaxpr = jax.make_jaxpr(model.apply_fn)(
    params_of('scan'), TOKENS[:, :1], POSITIONS[:, :1], cache
  )
  (scan,) = [e for e in jaxpr.eqns if e.primitive.name == 'scan']
  shape = cache['layers']['k'].shape
  first = scan.params['num_consts']
  carry = scan.invars[first : first + scan.params['num_carry']]
  assert [v.aval.shape for v in carry].count(shape) == 2
  assert [v.aval.shape for v in scan.outvars].count(shape) == 2
  assert len(scan.outvars) == scan.params['num_carry']


def test_padding_content_changes_nothing():
  config, params = CONFIGS['llama'], params_of('llama')
  other = np.where(MASK, TOKENS, 31 - TOKENS)
  first, second = run(config, params), run(config, params, other)
  np.testing.assert_array_equal(first[MASK], second[MASK])
  assert np.isfinite(first).all()


def test_mask_replaces_the_causal_default():
  config, params = CONFIGS['llama'], params_of('llama')
  causal = np.broadcast_to(np.tril(np.ones((7, 7), bool)), (4, 7, 7))
  same = run(config, params, mask=causal)
  np.testing.assert_allclose(same, run(config, params), atol=1e-6)
  # Everything visible: the last token of the whole row sees what it saw, the
  # first now sees what comes after it. Padding stays hidden either way.
  full = run(config, params, mask=np.ones((4, 7, 7), bool))
  assert np.abs(full[2, 0] - same[2, 0]).max() > 0.01
  other = np.where(MASK, TOKENS, 31 - TOKENS)
  again = run(config, params, other, mask=np.ones((4, 7, 7), bool))
  np.testing.assert_array_equal(full[MASK], again[MASK])


def test_two_rows_packed_into_one_by_a_mask():
  config, params = CONFIGS['qwen'], params_of('qwen')
  single = run(config, params)
  tokens = np.concatenate([TOKENS[0][MASK[0]], TOKENS[3][MASK[3]]])[None]
  owner = np.array([0] * 5 + [3] * 4)
  mask = np.tril(owner[:, None] == owner)[None]
  positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3]], np.int32)
  packed = run(config, params, tokens, positions, mask)[0]
  np.testing.assert_allclose(packed[:5], single[0][MASK[0]], atol=1e-4)
  np.testing.assert_allclose(packed[5:], single[3][MASK[3]], atol=1e-4)


@pytest.fixture(scope='module')
def gradients():
  """Loss and gradient of the same parameters, layers stacked, by config."""

  def of(config, params):
    model = models.make_model(config)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
      logits, _ = model.apply_fn(params, TOKENS, POSITIONS, None)
      return jnp.where(MASK[..., None], jnp.sin(logits), 0).sum()

    return loss(params)

  params = params_of('llama')
  stacked = stack(params)
  unrolled = of(CONFIGS['llama'], params)
  return {
    'unrolled': (unrolled[0], stack(unrolled[1])),
    'scan': of(CONFIGS['scan'], stacked),
    'remat': (lambda v: (v[0], stack(v[1])))(of(tiny(remat=True), params)),
    **{
      f'scan, {kept}': of(tiny(scan_layers=True, remat=kept), stacked)
      for kept in ('full', 'attention+up', 'products')
    },
  }


def stack(params):
  """Parameters of unrolled layers with the leading layer axis of a scan."""
  layers = [params[f'layers_{i}'] for i in range(2)]
  rest = {k: v for k, v in params.items() if not k.startswith('layers_')}
  return rest | {'layers': jax.tree.map(lambda *x: jnp.stack(x), *layers)}


@pytest.mark.parametrize(
  'kind',
  ['scan', 'remat', 'scan, full', 'scan, attention+up', 'scan, products'],
)
def test_scan_and_remat_change_no_number(gradients, kind):
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
  jax.tree.map(close, gradients[kind], gradients['unrolled'])


def count_products(remat):
  """Matrix products of a gradient, a layer's loop counted once."""
  config = tiny(scan_layers=True, remat=remat)
  model, params = models.make_model(config), stack(params_of('llama'))

  def loss(params):
    return model.features_fn(params, TOKENS, POSITIONS, None)[0].sum()

  return str(jax.make_jaxpr(jax.grad(loss))(params)).count('dot_general')


def test_remat_computes_again_what_it_does_not_keep():
  none, products, attention, full = map(
    count_products, ('none', 'products', 'attention', 'full')
  )
  # A layer has 7 matrices, of which the last is of no use for the gradient, and
  # attention has 2 products: scores, and what they weigh.
  assert full == none + 8
  assert attention == full - 1
  assert count_products('attention+up') == full - 2
  assert products == none + 1


def test_remat_names_what_is_kept():
  assert tiny(remat=True).remat == 'full'
  assert tiny(remat=False) == tiny()
  with pytest.raises(
    ValueError, match=r"remat='attention\+some': 'some' is un"
  ):
    tiny(remat='attention+some')
  with pytest.raises(ValueError, match='allowed are none, full, products, or'):
    tiny(remat=3)


def test_a_scanned_config_makes_stacked_parameters():
  shapes = jax.tree.map(jnp.shape, params_of('scan'))
  assert shapes == jax.tree.map(jnp.shape, stack(params_of('llama')))
  # Each layer draws its own numbers.
  kernel = params_of('scan')['layers']['attention']['q']['kernel']
  assert not np.allclose(kernel[0], kernel[1])


def test_bfloat16_is_near_float32():
  params = params_of('bfloat16')
  exact = run(tiny(num_layers=1), params)
  rounded = run(CONFIGS['bfloat16'], params)
  assert rounded.dtype == np.float32
  gap = np.abs(rounded - exact)[MASK].max()
  assert 0 < gap < 0.2
  cache = models.make_model(CONFIGS['bfloat16']).init_cache(1, 2)
  assert cache['layers'][0]['k'].dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}


def test_features_and_unembed_are_the_two_halves_of_apply():
  config, params = CONFIGS['qwen'], params_of('qwen')
  model = models.make_model(config)
  features, _ = model.features_fn(params, TOKENS, POSITIONS, None)
  assert features.shape == (4, 7, 16)
  logits = model.unembed_fn(params, features)
  np.testing.assert_allclose(logits, run(config, params), atol=1e-4)
  np.testing.assert_allclose(
    model.unembed_fn(params, features[:, -1]), logits[:, -1], atol=1e-5
  )


def test_stored_in_bfloat16():
  config = tiny(param_dtype='bfloat16', tie_embeddings=False, **WINDOW)
  params = models.init_params(config, jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
  # Computing is as in float32 from the rounded numbers: the same bits.
  wide = tiny(tie_embeddings=False, **WINDOW)
  upcast = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  np.testing.assert_array_equal(run(config, params), run(wide, upcast))


def test_a_window_counts_tokens_and_not_slots():
  # Position 5 with a window of 2 sees 4 and 5 (and what comes later, if a mask
  # lets it), wherever their slots are.
  keys = np.array([[0, 1, -1, -1, 4, 5, 6]])
  found = attention.in_window(np.array([[5, 1]]), keys, 2)
  expected = [[[0, 0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1]]]
  real = keys[:, None] >= 0
  np.testing.assert_array_equal(np.asarray(found) & real, expected)


def test_a_window_under_a_mask_that_packs_rows():
  config, params = CONFIGS['window'], params_of('window')
  single = run(config, params)
  tokens = np.concatenate([TOKENS[0][MASK[0]], TOKENS[3][MASK[3]]])[None]
  owner = np.array([0] * 5 + [3] * 4)
  mask = np.tril(owner[:, None] == owner)[None]
  positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3]], np.int32)
  packed = run(config, params, tokens, positions, mask)[0]
  np.testing.assert_allclose(packed[:5], single[0][MASK[0]], atol=1e-4)
  np.testing.assert_allclose(packed[5:], single[3][MASK[3]], atol=1e-4)


def test_a_soft_cap():
  # 2 tanh(1 / 2) = 0.924234, and no more than 2 ever.
  found = attention.soft_cap(jnp.array([1.0, -1.0, 1e6]), 2.0)
  np.testing.assert_allclose(found, [0.924234, -0.924234, 2.0], atol=1e-6)
  x = jnp.array([3.0])
  assert attention.soft_cap(x, None) is x


def test_rope_scaling_by_hand():
  # dim 4, base 100: frequencies 1 and 0.1.
  plain, one = rope.frequencies(4, 100.0)
  np.testing.assert_allclose(plain, [1.0, 0.1], atol=1e-6)
  assert one == 1
  linear = rope.RopeScaling(kind='linear', factor=4.0)
  found, one = rope.frequencies(4, 100.0, linear)
  np.testing.assert_allclose(found, [0.25, 0.025], atol=1e-6)
  # llama3, context 10 pi: the pairs turn 5 and 0.5 times in it. Above 4 turns
  # kept, below 1 stretched by 8: 1, 0.0125. With context 20 pi and bounds 0.5
  # and 2.5, the second turns once: a quarter kept, 0.1 (0.25 + 0.75 / 8).
  fields = {'kind': 'llama3', 'factor': 8.0}
  near = rope.RopeScaling(
    **fields, original_length=31.415927, low_freq_factor=1, high_freq_factor=4
  )
  np.testing.assert_allclose(
    rope.frequencies(4, 100.0, near)[0], [1.0, 0.0125], atol=1e-6
  )
  between = rope.RopeScaling(
    **fields,
    original_length=62.831853,
    low_freq_factor=0.5,
    high_freq_factor=2.5,
  )
  np.testing.assert_allclose(
    rope.frequencies(4, 100.0, between)[0], [1.0, 0.034375], atol=1e-6
  )
  # yarn, context 20 pi: pair i turns 10 / 10^i times, so 10 turns are pair 0
  # and 0.1 are pair 2: the ramp is 0 and 1/2. Factor 0.1 ln 8 + 1 = 1.207944.
  yarn = rope.RopeScaling(
    kind='yarn',
    factor=8.0,
    original_length=62.831853,
    beta_fast=10.0,
    beta_slow=0.1,
    truncate=False,
  )
  found, factor = rope.frequencies(4, 100.0, yarn)
  np.testing.assert_allclose(found, [1.0, 0.1 * (0.5 + 0.5 / 8)], atol=1e-6)
  assert factor == pytest.approx(1.2079442)
  cos, sin = rope.rope_angles(jnp.array([[0]]), 4, 100.0, yarn)
  np.testing.assert_allclose(cos, np.full((1, 1, 1, 2), 1.2079442), atol=1e-6)
  assert not sin.any()


def test_num_params():
  # Embedding 32*16 = 512. A layer: q, o 16*16 each, k, v 16*8 each = 768;
  # gate, up, down 3*16*24 = 1152; two norms 32: 1952. Two layers 3904, final
  # norm 16: 4432.
  assert models.num_params(params_of('llama')) == 4432


def test_the_gradient_of_a_rotation_is_the_rotation_back():
  x = jax.random.normal(jax.random.key(0), (2, 3, 5, 8))
  cos, sin = rope.rope_angles(jnp.tile(jnp.arange(-1, 4), (2, 1)), 8, 100.0)

  def plain(x):
    first, second = jnp.split(x, 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1)

  found, pull = jax.vjp(lambda x: rope.rotate(x, cos, sin), x)
  wanted, plain_pull = jax.vjp(plain, x)
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  np.testing.assert_allclose(pull(x)[0], plain_pull(x)[0], atol=1e-6)


def test_angles_of_nothing_but_padding_are_finite():
  for x in rope.rope_angles(jnp.full((2, 3), -1), 8, 100.0):
    assert x.shape == (2, 1, 3, 4)
    assert np.isfinite(x).all()


def test_rope_depends_on_the_difference_of_positions_alone():
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

  def product(p, s):
    at = lambda i: rope.rope_angles(jnp.array([[i]]), 8, 100.0)
    return float((rope.rotate(q, *at(p)) * rope.rotate(k, *at(s))).sum())

  assert product(5, 3) == pytest.approx(product(12, 10), abs=1e-5)
  assert product(5, 3) != pytest.approx(product(5, 4), abs=1e-3)
  assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)


@pytest.mark.parametrize(
  'values, message',
  [
    ({'width': 18}, 'width=18 is not divisible by num_heads=4'),
    ({'num_kv_heads': 3}, 'num_heads=4 is not a multiple of num_kv_heads=3'),
    ({'head_dim': 5}, 'head_dim=5 is odd'),
    ({'wdith': 16}, r"unknown \['wdith'\]"),
    ({'activation': 'relu'}, "activation must be one of .*'relu'"),
    ({'dtype': 'int8'}, 'dtype must be one of'),
    ({'sliding_window': 0}, 'sliding_window=0 must be above 0'),
    ({'logit_softcap': -1.0}, 'logit_softcap=-1.0 must be above 0'),
    ({'local_layers': [True]}, 'local layers are like the others'),
    ({'local_rope_base': 5.0}, 'local_rope_base needs local_layers'),
    (
      {'sliding_window': 4, 'local_layers': [True, False]},
      'local_layers has 2 flags for 1 layers',
    ),
    ({'sliding_window': 4, 'local_layers': [False]}, 'no layer .* is local'),
    (
      {'rope_scaling': {'kind': 'ntk', 'factor': 2}},
      'rope_scaling.kind must be',
    ),
    ({'rope_scaling': {'knid': 'yarn'}}, r"rope_scaling: unknown \['knid'\]"),
    (
      {'rope_scaling': {'kind': 'linear', 'factor': 2, 'beta_fast': 3}},
      r"'linear' does not use \['beta_fast'\]",
    ),
    (
      {'rope_scaling': {'kind': 'yarn', 'factor': 2}},
      r"'yarn' needs \['original_length'\]",
    ),
  ],
)
def test_a_bad_config_is_refused(values, message):
  sizes = {'vocab_size': 32, 'num_layers': 1, 'width': 16, 'num_heads': 4}
  with pytest.raises(ValueError, match=message):
    models.config_from_dict(sizes | {'ffn_width': 8} | values)


def test_wrong_shapes_are_refused():
  model = models.make_model(CONFIGS['llama'])
  params = params_of('llama')
  with pytest.raises(ValueError, match=r'must have one shape \[B,Q\]'):
    model.apply_fn(params, TOKENS, POSITIONS[:, :6], None)
  with pytest.raises(ValueError, match=r'expected \[B,Q,L\] = \(4, 7, 7\)'):
    model.apply_fn(params, TOKENS, POSITIONS, None, np.ones((4, 7, 6), bool))
  cache = model.init_cache(4, 9)
  with pytest.raises(ValueError, match=r'expected \[B,Q,L\] = \(4, 7, 9\)'):
    model.apply_fn(params, TOKENS, POSITIONS, cache, np.ones((4, 7, 7), bool))


@pytest.mark.parametrize('shape', [(6, 4), (4, 6), (5, 5)])
def test_the_gradient_of_a_weight_is_the_outer_product(shape):
  rng = np.random.default_rng(0)
  x, y = (rng.normal(size=(7, n)).astype(np.float32) for n in shape)
  found = jax.jit(places.outer, static_argnums=2)(x, y, '')
  np.testing.assert_allclose(found, x.T @ y, atol=1e-6)
