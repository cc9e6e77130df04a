#!/usr/bin/env bash
# Prints the path of a Python whose version lies between MIN and MAX.
#
# usage: tools/find_python.sh [MIN [MAX]]      (3.11 and none by default)
#
# PYTHON, when set, is the only candidate. Candidates are run, not just found:
# a pyenv shim can exist for a version that is not active.
set -euo pipefail

min=${1:-3.11}
max=${2:-3.999}

probe='
import sys, ensurepip, venv
low, high = (tuple(map(int, v.split("."))) for v in sys.argv[1:])
if not low <= sys.version_info[:2] <= high:
    sys.exit(1)
print(sys.executable)
'

if [[ -n ${PYTHON:-} ]]; then
  candidates=("$PYTHON")
else
  candidates=(python3 python3.11 python3.12 python3.13 python3.14)
  candidates+=("${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3)
fi

for candidate in "${candidates[@]}"; do
  if found=$("$candidate" -c "$probe" "$min" "$max" 2>/dev/null); then
    echo "$found"
    exit 0
  fi
done
echo "find_python.sh: no working Python from $min to $max with venv among:" \
  "${candidates[*]}. Choose one with PYTHON=/path/to/python." >&2
exit 1
