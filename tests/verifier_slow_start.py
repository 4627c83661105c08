"""A verifier whose module takes for ever to import (test_pool.py)."""

import time

time.sleep(1e6)
