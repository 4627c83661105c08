"""What Prometheus reads."""

import re

from meta_rl.serving.metrics import Metrics


def test_text():
  metrics = Metrics()
  metrics.count('requests_total', path='/a', status='200')
  metrics.count('requests_total', path='/a', status='200')
  metrics.count('tokens_total', 5, kind='answer')
  metrics.count('stops_total', by='model')
  for seconds in (0.004, 0.005, 0.02, 100.0):
    metrics.observe('request_seconds', seconds)
  rounds = {'engine_rounds_total': 1_234_567_890}
  text = metrics.text({'rows': 3}, rounds)
  lines = text.splitlines()
  for line in (
    'meta_rl_rows 3',
    '# TYPE meta_rl_rows gauge',
    'meta_rl_engine_rounds_total 1234567890',  # not 1.23457e+09
    '# TYPE meta_rl_engine_rounds_total counter',
    '# HELP meta_rl_rows Requests that can be under way at once.',
    'meta_rl_requests_total{path="/a",status="200"} 2',
    'meta_rl_tokens_total{kind="answer"} 5',
    'meta_rl_stops_total{by="model"} 1',
    # Bounds belong to their buckets, which add up.
    'meta_rl_request_seconds_bucket{le="0.005"} 2',
    'meta_rl_request_seconds_bucket{le="0.01"} 2',
    'meta_rl_request_seconds_bucket{le="0.025"} 3',
    'meta_rl_request_seconds_bucket{le="60"} 3',
    'meta_rl_request_seconds_bucket{le="+Inf"} 4',
    'meta_rl_request_seconds_sum 100.029000',
    'meta_rl_request_seconds_count 4',
    'meta_rl_first_token_seconds_count 0',
    '# TYPE meta_rl_request_seconds histogram',
  ):
    assert line in lines
  assert text.endswith('\n')
  sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [\d.]+')
  for line in lines:
    assert line.startswith('# ') or sample.fullmatch(line), line
