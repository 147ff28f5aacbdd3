#!/usr/bin/env bash
# Runs the tests marked `gpu` and prints a table with one line a test; then, unless FULGUR_BENCH=0, measures a step on
# two ranks beside a loop written by hand. Fails when a test fails, when none ran, or when there is no GPU. The tests of
# several ranks use NCCL with as many GPUs as there are, one at least. Installs nothing: it takes the torch and pytest
# of $PYTHON (default: python3).
#
#   scripts/gpu_check.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
report=$(mktemp)
trap 'rm -f "$report"' EXIT

"$PYTHON" - <<'PY'
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("gpu_check: torch sees no CUDA device; these tests need one.")
names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}, {names}")
PY

status=0
"$PYTHON" -m pytest -m gpu --junit-xml="$report" -o junit_family=xunit2 -p no:cacheprovider -q "$@" || status=$?

"$PYTHON" - "$report" <<'PY'
import sys
import xml.etree.ElementTree as ET

rows, counts = [], {"passed": 0, "FAILED": 0, "skipped": 0}
for case in ET.parse(sys.argv[1]).iter("testcase"):
    bad = case.find("failure") is not None or case.find("error") is not None
    result = "FAILED" if bad else "skipped" if case.find("skipped") is not None else "passed"
    counts[result] += 1
    rows.append((result, float(case.get("time") or 0), f"{case.get('classname')}::{case.get('name')}"))
print(f"\n{'result':<8} {'seconds':>8}  test")
for result, seconds, name in rows:
    print(f"{result:<8} {seconds:>8.2f}  {name}")
print(", ".join(f"{n} {result}" for result, n in counts.items()))
if not counts["passed"]:
    sys.exit("gpu_check: no test ran on the GPU.")
PY
if [[ "${FULGUR_BENCH:-1}" != 0 ]]; then
    "$PYTHON" benchmarks/distributed.py --rounds 5 --steps 200 || status=$?
fi
exit "$status"
