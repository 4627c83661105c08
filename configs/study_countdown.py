r"""The study on Countdown: does credit for progress beat outcome reward?

A matrix of methods x doses x seeds at equal cost. The dose is u, the successes
that a random search expects within the thinking budget: u = episodes x hit
rate. At small u the outcome of a trace says nearly all about its episodes, at
u = 4 next to nothing (nearly every trace ends right), so that dense credit
should pay there if anywhere.

    python -m meta_rl.study --config=configs/study_countdown.py \
      --workdir=runs/study --max_minutes=240

The same command goes on where it was stopped. `--only=u4/mrt*/0` runs some
cells, `--max_minutes=0` writes the report of what is there, `--num_workers=4`
runs cells side by side, `--variance` measures the variance of the gradient.

A method is one entry of `methods`: a config, its argument, what it overrides.
`core` and `rest` say in which order they run. `:tiny` runs in seconds.
"""

from ml_collections import ConfigDict

# Without these an outcome method would pay for a prover that it doesn't use.
_NO_PROVER = {'prover': {'kind': 'none'}}
_EVERY_20 = {'curriculum': {'every': 20}}
_NO_WEIGHTS = {'credit': 'return_to_go', 'alpha': 0.0}
_LAST = {'loss': {'pathwise': {'boundaries': 'last'}}}

METHODS = {
  'base': {'label': 'base', 'config': 'mrt_countdown', 'train': False},
  'grpo': {
    'label': 'GRPO',
    'config': 'grpo_countdown',
    'overrides': _NO_PROVER,
  },
  'length_penalty': {
    'label': 'length penalty',
    'short': 'length',
    'config': 'length_penalty_countdown',
    'overrides': _NO_PROVER,
  },
  'mrt_rl': {
    # J along a trace would be for the log: its own prefix is measured anyway.
    'label': 'MRT-RL',
    'config': 'mrt_rl_countdown',
    'overrides': _NO_PROVER,
  },
  'mrt_sampled': {
    'label': 'MRT, 4 branches',
    'short': 'MRT ×4',
    'config': 'mrt_countdown',
    'overrides': {'prover': {'kind': 'sampled', 'num_branches': 4}},
  },
  'mrt_exact': {
    'label': 'MRT, exact',
    'short': 'MRT',
    'config': 'mrt_countdown',
  },
  'grpo_token_mean': {
    # GRPO with MRT's aggregation: what is left of the difference is credit.
    'label': 'GRPO, token mean',
    'short': 'GRPO tm',
    'config': 'grpo_countdown',
    'overrides': {**_NO_PROVER, 'loss': {'aggregate': 'token_mean'}},
  },
  'return_to_go': {
    # MRT without weights: the outcome, with the prover as critic.
    'label': 'critic, no weights',
    'short': 'critic',
    'config': 'mrt_countdown',
    'overrides': {'algorithm': _NO_WEIGHTS},
  },
  'return_to_go_1': {
    # The control: at decay 1 the outcome gradient itself, the prover its
    # baseline. Against it `prover_0` has the weights alone.
    'label': 'return to go, decay 1',
    'short': 'to go',
    'config': 'mrt_countdown',
    'overrides': {'algorithm': {**_NO_WEIGHTS, 'decay': 1.0}},
  },
  'dr_grpo': {
    'label': 'Dr. GRPO',
    'config': 'grpo_countdown',
    'arg': 'dr',
    'overrides': _NO_PROVER,
    'seeds': 5,
  },
  'brpo': {'label': 'BRPO', 'config': 'brpo_countdown', 'seeds': 5},
  'immediate': {
    # The literal gradient of the paper's objective.
    'label': 'immediate credit',
    'short': 'immediate',
    'config': 'mrt_countdown',
    'overrides': {'algorithm': {'credit': 'immediate', 'decay': 1.0}},
  },
  'price_01': {
    'label': 'MRT, price 0.1',
    'short': 'λ = 0.1',
    'config': 'mrt_countdown',
    'overrides': {'algorithm': {'price': 0.1}},
  },
  'price_03': {
    'label': 'MRT, price 0.3',
    'short': 'λ = 0.3',
    'config': 'mrt_countdown',
    'overrides': {'algorithm': {'price': 0.3}},
  },
  # The gradient of J through how the policy answers, beside MRT's or alone.
  **{
    f'pathwise_{name}': {
      'label': f'MRT, pathwise {title}',
      'short': f'path {name}',
      'config': 'mrt_countdown',
      'overrides': {'loss': {'pathwise': options}},
      'seeds': seeds,
    }
    for name, title, options, seeds in (
      ('all', 'at all boundaries', {'boundaries': 'all'}, 3),
      ('last', 'at the last', {'boundaries': 'last'}, 5),
      ('alone', 'alone', {'boundaries': 'all', 'alone': True}, 3),
    )
  },
  # Whose gradient bears a larger step, or wants a smaller one?
  **{
    f'{method}_{name}': {
      'label': f'{title}, rate ×{factor:g}',
      'short': f'{short} ×{factor:g}',
      'config': config,
      'overrides': {**overrides, 'optimizer': {'learning_rate': factor * 1e-4}},
      'seeds': 5 if factor == 0.5 else 3,
    }
    for method, title, short, config, overrides in (
      ('grpo', 'GRPO', 'GRPO', 'grpo_countdown', _NO_PROVER),
      ('mrt', 'MRT, exact', 'MRT', 'mrt_countdown', {}),
      ('pathwise', 'MRT, pathwise at the last', 'path', 'mrt_countdown', _LAST),
    )
    for name, factor in (('x025', 0.25), ('x05', 0.5), ('x2', 2.0))
  },
  # A price beside the pathwise term.
  **{
    f'pathwise_price_{name}': {
      'label': f'MRT, pathwise at the last, price {price:g}',
      'short': f'path λ = {price:g}',
      'config': 'mrt_countdown',
      'overrides': {**_LAST, 'algorithm': {'price': price}},
    }
    for name, price in (('03', 0.3), ('1', 1.0), ('2', 2.0))
  },
  # The baseline that traces share against that of those that go on alone. Both
  # judge an episode by all that came later: only then is the second unbiased.
  **{
    f'{baseline}_{name}': {
      'label': f'{title}, price {price:g}',
      'short': f'{baseline[:4]}. {price:g}',
      'config': 'mrt_countdown',
      'overrides': {
        'algorithm': {'baseline': baseline, 'price': price, 'decay': 1.0}
      },
    }
    for baseline, title in (
      ('prover', 'shared baseline'),
      ('continuing', 'continuing baseline'),
    )
    for name, price in (('0', 0.0), ('01', 0.1), ('03', 0.3))
  },
  # Every other algorithm that there is, as its config has it.
  **{
    name: {'label': label, 'config': config, 'arg': arg, 'overrides': overrides}
    for name, label, config, arg, overrides in (
      ('reinforce', 'REINFORCE', 'reinforce_countdown', '', _NO_PROVER),
      ('rloo', 'RLOO', 'grpo_countdown', 'rloo', _NO_PROVER),
      ('dapo', 'DAPO', 'dapo_countdown', '', _NO_PROVER),
      ('gspo', 'GSPO', 'gspo_countdown', '', _NO_PROVER),
      ('cispo', 'CISPO', 'cispo_countdown', '', _NO_PROVER),
      ('ppo', 'PPO, value on J', 'ppo_countdown', '', {}),
      ('star', 'STaR', 'star_countdown', '', _NO_PROVER),
      ('mrt_star', 'MRT-STaR', 'star_countdown', 'mrt', {}),
      ('lcpo_exact', 'LCPO-exact', 'lcpo_countdown', 'exact', _NO_PROVER),
      ('lcpo_max', 'LCPO-max', 'lcpo_countdown', 'max', _NO_PROVER),
      ('vineppo', 'VinePPO', 'vineppo_countdown', '', {}),
      ('pav', 'PAV', 'pav_countdown', '', {}),
      ('rl2', 'RL²', 'rl2_countdown', 'all', {}),
      ('e_rl2', 'E-RL²', 'rl2_countdown', 'last', {}),
      # Chosen by what the evaluations measure, which are every 10 steps here.
      ('e3', 'e3', 'e3_countdown', '', {**_NO_PROVER, **_EVERY_20}),
      (
        'mrt_rl_difference',
        'MRT-RL, difference',
        'mrt_rl_countdown',
        'difference',
        _NO_PROVER,
      ),
      (
        'control_variate',
        'MRT, control variate',
        'mrt_countdown',
        '',
        # Of all answers it is the exact prover: none is left for branches.
        {
          'prover': {
            'kind': 'control_variate',
            'num_branches': 4,
            'num_enumerated': 1,
          }
        },
      ),
    )
  },
}
CORE = ('base', 'grpo', 'length_penalty', 'mrt_rl', 'mrt_sampled', 'mrt_exact')

# Written before any seed of the method was run at that dose (but for p9), p1 to
# p8 and p13 before any of the dose, the others after results that they name.
PREDICTIONS = {
  'p1': {
    'text': 'At u = 0.3 the outcome keeps 99% of the information about the '
    'search: MRT with the exact prover and GRPO cannot be told apart.',
    'dose': 'u03',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'none',
  },
  'p2': {
    'text': 'At u = 1 (92%) they still cannot.',
    'dose': 'u1',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'none',
  },
  'p3': {
    'text': 'At u = 2 (72%) the regret of MRT is lower.',
    'dose': 'u2',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'lower',
  },
  'p4': {
    'text': 'At u = 4 (30%) it is lower.',
    'dose': 'u4',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'lower',
  },
  'p4b': {
    'text': 'At u = 4 it is lower by more than at u = 2.',
    'dose': 'u4',
    'than_dose': 'u2',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'lower',
  },
  'p5': {
    'text': 'At u = 4 the accuracy at the full budget is the same: nearly '
    'every search ends right, and what MRT gains is time.',
    'dose': 'u4',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'accuracy',
    'expect': 'none',
  },
  'p6': {
    'text': 'Four sampled branches are noisier than the exact prover, and at '
    'u = 4 their regret is higher at equal cost.',
    'dose': 'u4',
    'method': 'mrt_sampled',
    'against': 'mrt_exact',
    'figure': 'regret',
    'expect': 'higher',
  },
  'p7': {
    'text': 'The length penalty stops sooner than GRPO at u = 4.',
    'dose': 'u4',
    'method': 'length_penalty',
    'against': 'grpo',
    'figure': 'tokens',
    'expect': 'lower',
  },
  'p8': {
    'text': 'Kept thinking beyond the training budget at u = 2, MRT keeps a '
    'lower regret than GRPO.',
    'dose': 'u2',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret_longest',
    'expect': 'lower',
  },
  'p9': {
    'text': 'From a base that seldom gives up the regret of MRT is lower '
    '(written after u = 4 was run from the other base, and put in other words '
    'while its own cells ran).',
    'dose': 'u4p',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'lower',
  },
  'p9b': {
    'text': 'It is lower by more than from the base that often does.',
    'dose': 'u4p',
    'than_dose': 'u4',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'lower',
  },
  'p10': {
    'text': 'At twice the learning rate MRT with the pathwise term has less '
    'regret than at the given one: its gradient is quiet enough (written '
    'after three seeds at the given one).',
    'dose': 'u4',
    'method': 'pathwise_x2',
    'against': 'pathwise_last',
    'figure': 'regret',
    'expect': 'lower',
  },
  'p10b': {
    'text': 'GRPO has not: at twice the rate it is no better (as before).',
    'dose': 'u4',
    'method': 'grpo_x2',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'none',
  },
  'p11': {
    'text': 'A price of 1 beside the pathwise term stops sooner than GRPO '
    '(written after price 0.3 without the term had stopped 14% sooner).',
    'dose': 'u4',
    'method': 'pathwise_price_1',
    'against': 'grpo',
    'figure': 'tokens',
    'expect': 'lower',
  },
  'p12': {
    'text': 'At half the learning rate for both, the regret of MRT is lower '
    '(written after one seed of GRPO at half the rate, which had gained 1.2 '
    'times what it gains at the given one).',
    'dose': 'u4',
    'method': 'mrt_x05',
    'against': 'grpo_x05',
    'figure': 'regret',
    'expect': 'lower',
  },
  'p13': {
    'text': 'From the base that backtracks the regret of MRT is lower (written '
    'before any cell of it was run).',
    'dose': 'u4b',
    'method': 'mrt_exact',
    'against': 'grpo',
    'figure': 'regret',
    'expect': 'lower',
  },
  'p14': {
    'text': 'A price of 2 stops sooner than one of 1, which stopped 22% sooner '
    'than GRPO (written before any cell of it was run).',
    'dose': 'u4',
    'method': 'pathwise_price_2',
    'against': 'pathwise_price_1',
    'figure': 'tokens',
    'expect': 'lower',
  },
}


def _dose(u, label, arg, episodes, total_cost, extrapolate):
  return {
    'u': u,
    'label': f'u = {u:g}: {label}',
    'arg': arg,
    'total_cost': total_cost,
    'extrapolate': extrapolate,
    'overrides': {
      'rollout': {'thinking_budget': 9 * episodes},
      'prover': {'max_episodes': episodes},
    },
    'of_methods': _of_methods(episodes),
  }


def _of_methods(episodes):
  """Returns what configs derive from the thinking budget, for this one."""
  total, parts = 9 * episodes, {'prover': {'budgets': _budgets(episodes)}}
  return {
    'brpo': parts,
    'vineppo': parts,
    'pav': parts,
    # Their lengths and slopes as shares of the budget, attempts whole.
    'dapo': {
      'algorithm': {
        'max_length': total,
        'cache_length': 9 * max(1, round(episodes / 5)),
      }
    },
    'lcpo_exact': {
      'algorithm': {'target_length': total // 2, 'alpha': 1.08 / total}
    },
    'lcpo_max': {
      'algorithm': {'max_length': total // 2, 'alpha': 1.08 / total}
    },
    'e3': {
      'curriculum': {
        'budgets': (9 * (episodes // 4), 9 * (episodes // 2), total)
      }
    },
  }


def _budgets(episodes):
  """Returns four token budgets at equal distances, or five."""
  parts = 5 if episodes % 4 else 4
  return tuple(9 * episodes * i // parts for i in range(1, parts + 1))


def get_config(arg: str = '') -> ConfigDict:
  """Returns the study; `arg` is '' or 'tiny'."""
  config = ConfigDict()
  config.name = 'Credit for progress against outcome reward, on Countdown'
  # Forward tokens (meta_rl/costs.py) a cell. The
  # warm start saw 48 episodes at most: 4x of 15 goes beyond that, 3x does not.
  config.doses = {
    'u03': _dose(0.3, '+ − ×, 4 episodes', 'hard', 4, 2.4e6, (2, 4)),
    'u1': _dose(1.0, '+ − ×, 12 episodes', 'hard', 12, 2.4e6, (2, 4)),
    'u2': _dose(2.0, '+ −, 8 episodes', '', 8, 2.4e6, (2, 4)),
    'u4': _dose(4.0, '+ −, 15 episodes', '', 15, 2.4e6, (2, 3, 4)),
    # The same from a policy that seldom gives up: 12% of its traces end without
    # a success before them, 35% of u4's do, and so the outcome of those says
    # more about their episodes than u = 4 has it.
    'u4p': _dose(4.0, '+ −, 15 episodes, patient', '', 15, 2.4e6, (2, 3, 4)),
    'u4b': _dose(4.0, '+ −, backtracking', 'backtrack', 15, 2.4e6, (2, 3)),
  }
  config.doses.u4p.apart = True
  config.doses.u4p.overrides.init_from = 'asset:countdown_patient'
  # The paper's other search, where an episode goes back to a step of the one
  # before: 9 tokens in the mean and 6 at least, of which 22 fit the budget.
  config.doses.u4b.apart = True
  config.doses.u4b.overrides.prover.max_episodes = 22
  config.methods = METHODS
  config.core = CORE
  config.rest = tuple(name for name in METHODS if name not in CORE)
  config.base = 'base'
  config.reference = 'grpo'  # what differences and gain ratios are against
  config.hero = 'mrt_exact'
  config.seeds = {'core': 5, 'rest': 3}
  config.overrides = {  # of every cell
    'total_steps': 1000,  # the cost ends a cell long before
    'eval': {'every': 10, 'num_problems': 256},
    'checkpoint': {'every': 5},
    'log': {'samples_every': 1000},
  }
  config.evaluation = {
    'num_problems': 1024,
    'batch_size': 256,
    'samples': 8,
    'sample_problems': 64,
    'extrapolate_problems': 256,
    'base_prover': True,
  }
  config.variance = {
    'method': 'mrt_exact',  # its credit, on the base policy
    'branches': (1, 2, 4, 8, 16),
    'batches': 8,  # of traces: at least 2
    'draws': 4,  # of the prover on each of them: at least 2
  }
  config.predictions = PREDICTIONS
  if arg == 'tiny':
    _make_tiny(config)
  elif arg:
    raise ValueError(f'unknown argument {arg!r}: allowed is tiny.')
  return config


def _make_tiny(config):
  config.doses = {
    'tiny': {
      'u': 0.8,
      'label': 'tiny: + −, 3 episodes',
      'arg': 'tiny',
      'total_cost': 5500.0,  # two or three steps
      'extrapolate': (2,),
      'overrides': {},
    }
  }
  names = 'base', 'grpo', 'mrt_exact'
  config.methods = {name: METHODS[name] for name in names}
  config.core, config.rest = names, ()
  config.seeds = {'core': 2, 'rest': 1}
  config.overrides = {'task': {'high': 8}, 'eval': {'every': 1}}
  config.evaluation.update(
    {
      'num_problems': 16,
      'batch_size': 16,
      'samples': 2,
      'sample_problems': 4,
      'extrapolate_problems': 8,
    }
  )
  config.variance.update({'branches': (1, 2), 'batches': 2, 'draws': 2})
  config.predictions = {'p1': {**PREDICTIONS['p1'], 'dose': 'tiny'}}
