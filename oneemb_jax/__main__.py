"""Runs the command line: python -m oneemb_jax."""

import sys

from oneemb_jax.cli import main

sys.exit(main())
