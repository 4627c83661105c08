"""Serving a policy: requests that share a device, behind OpenAI's API.

    request -> openai_api -> voices -> engine [slots, ticks] -> openai_replies

  slots, ticks     one KV ring for all rows, and one compiled call of some steps
  tickets, engine  what is asked and given; continuous batching in one thread
  voices, writer   text to tokens and back, of a checkpoint or a token task
  openai_api,      JSON in, JSON out, with no server
  openai_replies
  exchange, asgi,  one HTTP request; the application; Prometheus' counts
  metrics
  connections      who is let in, how many, and for how long

The command is `meta_rl.serve`.
"""
