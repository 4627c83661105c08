"""Rows of one KV cache that come and go: continuous batching on the device.

S rows share a cache of L slots, which is a ring. Every step writes one token a
row into the slot `index`, the same for all rows, and moves on, round and round:

    L = 8, index 5; row 0 has come four steps ago with a prompt of 3 tokens
    slot     0 1 2 3 4 5 6 7
    row 0    a b c . . ^ p p     p: written last round, one more prompt token at
    row 1    . . . p d ^ . .     slot 0 ... in the order 6 7 0 1 2 3 4

What a row may see is `valid` of the cache: the slots that it has written itself
since it came. Positions are explicit, so nothing depends on where a row lies;
it can come at any step, its prompt being put into the slots behind `index`, and
has room for L tokens. (A place of its own to write at for each row would need a
scatter into the cache a step.)

What a step does is in meta_rl/serving/ticks.py.

Axes: S rows, L slots, R rows that come at once, m stop tokens, A answer tokens,
V vocabulary, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from meta_rl import stopping
from meta_rl.scoring import positions_of
from meta_rl.stops import StopTable
from meta_rl.types import Array, Cache, Model, Params

RULES = {kind: index for index, kind in enumerate(stopping.KINDS)}
NO_LIMIT = 2**30


@dataclasses.dataclass(frozen=True)
class Marks:
  """The tokens that steer a row; static.

  Attributes:
    end_ids: tokens that end a response, at least one.
    think_end_id: the answer marker; None: responses have no thought.
    stop_ids: what is forced behind a thought to get the answer.
    delimiter_ids: thinking tokens behind which an episode ends.
    answer_length: A, tokens of a probe's answer at most, its end included.
    stop_table: of the strings that end an answer too; None: there are none.
  """

  end_ids: tuple[int, ...]
  think_end_id: int | None = None
  stop_ids: tuple[int, ...] = ()
  delimiter_ids: tuple[int, ...] = ()
  answer_length: int = 1
  stop_table: StopTable | None = None

  @property
  def probe_length(self) -> int:
    """Tokens of the longest probe."""
    return len(self.stop_ids) + self.answer_length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
  """What the requests of rows ask for, one value a row.

  Attributes:
    seed: u32, and branch: i32; step t draws from
      fold_in(fold_in(key(seed), branch), t), as trace `branch` of `generate`.
    temperature: f32, 0 is greedy.
    top_p: f32 in (0, 1].
    most: i32, tokens of the response at most.
    budget: i32, thinking tokens at most; NO_LIMIT: no limit.
    least: i32, thinking tokens before a thought may end.
    rule: i32, a value of RULES.
    threshold: f32, as in `stopping.stops`.
    every: i32, thinking tokens between two checks besides those at delimiters;
      0: at delimiters alone.
    max_looks: i32, checks after the one before any thought, at most; NO_LIMIT:
      no limit.
    greedy_answer: bool, the answer takes the likeliest token, whatever the
      temperature of the thought.
  """

  seed: Array
  branch: Array
  temperature: Array
  top_p: Array
  most: Array
  budget: Array
  least: Array
  rule: Array
  threshold: Array
  every: Array
  max_looks: Array
  greedy_answer: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
  """All rows between two steps; a carry that is donated.

  Attributes:
    cache: of the model, S rows and L slots; its index is below L.
    asked: of each row.
    key: u32[S,2], data of the row's key.
    active: bool[S], the row has a request that is not done.
    last, position: i32[S], the token that is fed next, and where it stands.
    step: i32[S], response tokens so far; those of probes do not count.
    room: i32[S], slots that the row may still write.
    thinking: bool[S], the answer marker has not come yet.
    thoughts: i32[S], thinking tokens so far.
    to_force: i32[S], index of the next stop token to force, -1 for none.
    due: bool[S], a check comes before the next token.
    looked: i32[S], checks so far.
    stop_state: i32[S], how much of a stop string the answer ends with.
    probing: bool[S], a probe is being written.
    probed: i32[S], tokens of the probe that are in the cache.
    saved: i32[S], the token that follows the thought if it goes on.
    answered: i32[S], tokens of the probe's answer.
    log_prob: f32[S], nats, of the probe's answer.
    answer, before: i32[S,A], answers of this probe and the one before, -1
      behind their ends.
    run: f32[S], how many answers in a row were equal.
  """

  cache: Cache
  asked: Asked
  key: Array
  active: Array
  last: Array
  position: Array
  step: Array
  room: Array
  thinking: Array
  thoughts: Array
  to_force: Array
  due: Array
  looked: Array
  stop_state: Array
  probing: Array
  probed: Array
  saved: Array
  answered: Array
  log_prob: Array
  answer: Array
  before: Array
  run: Array


def check_cache(model: Model) -> None:
  """Raises ValueError unless a model's cache can be a ring."""
  cache = jax.eval_shape(lambda: model.init_cache(1, 2))
  known = isinstance(cache, dict) and {'layers', 'valid', 'index'} <= set(cache)
  if model.features_fn is None or not known:
    raise ValueError(
      'serving needs a model of meta_rl.models.make_model: the cache of this '
      'one is not known, and rows could not come and go in it'
    )


def empty(model: Model, rows: int, length: int, marks: Marks) -> Slots:
  """Returns S rows without a request, and a cache of L slots."""
  ints = lambda value=0: jnp.full(rows, value, jnp.int32)
  flags = lambda: jnp.zeros(rows, bool)
  floats = lambda: jnp.zeros(rows, jnp.float32)
  answers = lambda: jnp.full((rows, marks.answer_length), -1, jnp.int32)
  asked = Asked(
    seed=jnp.zeros(rows, jnp.uint32),
    branch=ints(),
    temperature=floats(),
    top_p=floats() + 1,
    most=ints(),
    budget=ints(),
    least=ints(),
    rule=ints(),
    threshold=floats(),
    every=ints(),
    max_looks=ints(),
    greedy_answer=flags(),
  )
  return Slots(
    cache=model.init_cache(rows, length),
    asked=asked,
    key=jnp.zeros((rows, 2), jnp.uint32),
    active=flags(),
    last=ints(),
    position=ints(),
    step=ints(),
    room=ints(),
    thinking=flags(),
    thoughts=ints(),
    to_force=ints(-1),
    due=flags(),
    looked=ints(),
    stop_state=ints(),
    probing=flags(),
    probed=ints(),
    saved=ints(),
    answered=ints(),
    log_prob=floats(),
    answer=answers(),
    before=answers(),
    run=floats(),
  )


def join(
  model: Model,
  params: Params,
  slots: Slots,
  marks: Marks,
  tokens: Array,
  lengths: Array,
  rows: Array,
  asked: Asked,
) -> Slots:
  """Returns the slots with R requests more.

  The keys and values of a prompt but for its last token are computed apart and
  put behind `index`; the next step feeds the last one, and so gives the first
  token of the response.

  Args:
    model, params: the network.
    slots: in which the rows are free.
    marks: as everywhere.
    tokens: i32[R,Tp], prompts, each at the right; Tp <= L.
    lengths: i32[R], of the prompts, at least 1.
    rows: i32[R], where each goes; S: nowhere.
    asked: of R rows.
  """
  length = slots.cache['valid'].shape[1]
  width = tokens.shape[1] - 1
  real = jnp.arange(width) >= width + 1 - lengths[:, None]
  places = (slots.cache['index'] - width + jnp.arange(width)) % length
  cache = dict(slots.cache)
  if width:
    before = model.init_cache(len(tokens), width)
    _, before = model.features_fn(
      params, tokens[:, :-1], positions_of(real), before
    )
    cache['layers'] = jax.tree.map(
      lambda ring, new: _put(ring, new, rows, places),
      slots.cache['layers'],
      before['layers'],
    )
    if 'positions' in cache:
      cache['positions'] = (
        cache['positions']
        .at[rows[:, None], places]
        .set(before['positions'], mode='drop')
      )
  valid = jnp.zeros((len(tokens), length), bool).at[:, places].set(real)
  cache['valid'] = cache['valid'].at[rows].set(valid, mode='drop')
  key = jax.vmap(
    lambda seed, branch: jax.random.key_data(
      jax.random.fold_in(jax.random.key(seed), branch)
    )
  )(asked.seed, asked.branch)
  fresh = empty(model, len(tokens), 1, marks)
  fresh = dataclasses.replace(
    fresh,
    cache=cache,
    asked=asked,
    key=key,
    active=jnp.ones(len(tokens), bool),
    last=tokens[:, -1],
    position=lengths - 1,
    room=length - (lengths - 1),
    thinking=jnp.full(len(tokens), marks.think_end_id is not None),
    due=jnp.ones(len(tokens), bool),
  )
  put = lambda old, new: old.at[rows].set(new, mode='drop')
  merged = {
    field.name: jax.tree.map(
      put, getattr(slots, field.name), getattr(fresh, field.name)
    )
    for field in dataclasses.fields(Slots)
    if field.name != 'cache'
  }
  return Slots(cache=cache, **merged)


def clean(slots: Slots, rows: Array) -> Slots:
  """Returns the slots with the keys and values of rows bool[S] set to 0.

  A hidden value has no weight, but one that is no number would come through.
  """

  def blank(ring):
    keep = ~rows if ring.ndim == 4 else ~rows[None]
    return jnp.where(keep[..., None, None, None], ring, 0)

  layers = jax.tree.map(blank, slots.cache['layers'])
  return dataclasses.replace(slots, cache=slots.cache | {'layers': layers})


def _put(ring, new, rows, places):
  """Returns keys or values [...,S,N,L,E] with those of new rows [...,R,N,Tp,E].

  Layers that are scanned stand in front of the rows.
  """
  if ring.ndim == 5:
    return jax.vmap(_put, (0, 0, None, None))(ring, new, rows, places)
  new = new.swapaxes(1, 2)  # indices come first where a slice is between them
  return ring.at[rows[:, None], :, places].set(new, mode='drop')
