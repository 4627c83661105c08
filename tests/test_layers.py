"""The rooms import forward only: each row of LAYERS, rows above it.

Modules of one row may use each other as long as no cycle comes of it; those of
the pure row may not.
"""

import ast
import graphlib
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'meta_rl'

# A new module needs a place here; a package (`models`) counts as one module.
LAYERS = [
  'types checks masked env stops places aot',
  'episodes regret advantages shaping losses sampling costs curriculum '
  'stopping',
  'models cache scoring decode refill rollout streaming probes tries '
  'listed_answers prover prover_gradient continuations algorithms lora update '
  'value looking anytime progress_head',
  'tasks tokenizer data sharding checkpoint weights metrics optimizers '
  'answers text_tokenizer statistics token_curves votes eval_figures waste '
  'eval_regrets eval_difficulty eval_partial batchwise study_statistics '
  'gradient_variance calibration stop_figures stop_rules '
  'signals workdir files leaves chat profiler rewards external guards hf '
  'verifiers segments chat_template',
  'steps compiled heap dynamic_sampling',
  'setup_run setup_steps setup_own setup_devices preemption train_calls '
  'train_blocks check_config command_line config_keys trace_text held_out '
  'stop_traces stop_evaluation '
  'evaluation evaluate eval_problems eval_samples eval_policies eval_compare '
  'eval_headline protocol plot_style plot_labels plots '
  'headline runs report report_page report_charts report_style report_traces '
  'report_views report_viewer report_script report_adaptive report_waste '
  'report_budgets report_parts serving',
  'train sft study study_cells study_files study_cell study_results '
  'study_tables study_charts study_page study_report study_variance '
  'plan plan_programs plan_report export generate converse calibrate serve '
  'notebook',
]
LAYERS = [row.split() for row in LAYERS]
PURE = LAYERS[1]
# These read a ConfigDict; all others take keyword arguments.
COMMANDS = [*LAYERS[-1], 'setup_run', 'check_config', 'command_line']
COMMANDS += [
  'config_keys',
  'setup_steps',
  'setup_own',
  'setup_devices',
  'train_calls',
  'train_blocks',
  'held_out',
  'stop_traces',
  'eval_policies',
  'evaluation',
  'evaluate',
  'report',
]
MODULES = sorted(PACKAGE.rglob('*.py'))


def name_of(path):
  """Returns 'models' for meta_rl/models/transformer.py; '' for the package."""
  first = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
  return '' if first == '__init__' else first


def row_of(name):
  """Returns the row of a module in LAYERS, counted from 0."""
  for row, names in enumerate(LAYERS):
    if name in names:
      return row
  raise AssertionError(f'meta_rl.{name} has no row: add it to LAYERS')


def imports(source):
  """Returns the dotted names that a module imports, inside functions too."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'line {node.lineno}: a relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def inner(names):
  """Returns the modules of the package among imported names."""
  parts = [name.split('.') for name in names]
  return {p[1] for p in parts if p[0] == 'meta_rl' and len(p) > 1}


def allowed(name, other):
  """Returns whether the rows let module `name` import module `other`."""
  if row_of(other) == row_of(name):
    return name not in PURE
  return row_of(other) < row_of(name)


def violations(name, source):
  """Returns a line for each import that the layers forbid module `name`."""
  names = imports(source)
  lines = [
    f'meta_rl.{name} imports meta_rl.{other}, against the rows'
    for other in sorted(inner(names) - {name, 'configs'})
    if not allowed(name, other)
  ]
  outer = {n.split('.')[0] for n in names} - {'meta_rl'}
  if name in PURE:
    outer -= {'jax', 'chex'} | set(sys.stdlib_module_names)
    lines += [f'meta_rl.{name} is pure and imports {n}' for n in sorted(outer)]
  elif name not in COMMANDS and 'ml_collections' in outer:
    lines.append(f'meta_rl.{name} is no command and imports ml_collections')
  return lines


@pytest.mark.parametrize(
  'path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_back(path):
  name = name_of(path)
  if name:
    assert violations(name, path.read_text('utf-8')) == []


def test_no_cycle():
  graph = {}
  for path in MODULES:
    name = name_of(path)
    others = inner(imports(path.read_text('utf-8'))) - {name}
    graph[name] = graph.get(name, set()) | others
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
  'name, source',
  [
    ('regret', 'from meta_rl import rollout'),
    ('regret', 'import numpy as np'),
    ('rollout', 'def f():\n  import meta_rl.train'),
    ('regret', 'from meta_rl import episodes'),
    ('evaluate', 'from meta_rl.train import restore'),
    ('rollout', 'from ml_collections import ConfigDict'),
  ],
)
def test_a_forbidden_import_is_seen(name, source):
  assert len(violations(name, source)) == 1


@pytest.mark.parametrize(
  'name, source',
  [
    ('regret', 'import jax.numpy as jnp\nfrom meta_rl import types'),
    ('models', 'from meta_rl.models import transformer'),
    ('train', 'import ml_collections\nfrom meta_rl.evaluate import run'),
    ('episodes', 'import re\nimport chex'),
  ],
)
def test_an_allowed_import_passes(name, source):
  assert violations(name, source) == []


def test_a_module_without_a_row_is_named():
  with pytest.raises(AssertionError, match='meta_rl.attic has no row'):
    violations('regret', 'import meta_rl.attic')
