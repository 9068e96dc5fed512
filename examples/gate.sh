#!/usr/bin/env bash
# A gate for CI: refuse a checkpoint that is an enrolled model, as it is, disguised or rounded, or kin to one under a licence we cannot take.
# Usage: examples/gate.sh CHECKPOINT   (enrol what you know beforehand: stemma add DIR --license L)
set -euo pipefail

if stemma trace "$1" --deny-license gpl-3.0 agpl-3.0 --fail-on copy reformatted permuted quantized --json > trace.json; then
  echo "accepted; the evidence is in trace.json"
else
  code=$?
  test "$code" -eq 3 && echo "refused by policy; the evidence is in trace.json" >&2
  exit "$code"
fi
