#!/usr/bin/env bash
# A gate for CI: refuse a checkpoint that is an enrolled model, as it is, disguised or rounded, or kin to one under a licence we cannot take.
# Usage: examples/gate.sh CHECKPOINT   (enrol what you know beforehand: stemma add DIR --license L)
#
# It fails closed: only an answer that says it is open is accepted. Whatever else happens (no stemma, an error, a file that
# cannot be read, an empty registry, a licence that nobody recorded) refuses, with an exit code that is not 0.
set -uo pipefail

DENIED=(gpl agpl)
REFUSED=(copy reformatted permuted quantized)

refuse() {
  echo "refused: $2" >&2
  exit "$1"
}

[ "$#" -eq 1 ] && [ -n "$1" ] || refuse 2 "give one checkpoint: $0 CHECKPOINT"
command -v stemma > /dev/null || refuse 127 "there is no program 'stemma' on the path"
rm -f trace.json || refuse 1 "an old trace.json cannot be removed"

stemma trace --deny-license "${DENIED[@]}" --fail-on "${REFUSED[@]}" --json -- "$1" > trace.json
code=$?

[ "$code" -ne 3 ] || refuse 3 "by policy, for the reasons above; the evidence is in trace.json"
[ "$code" -eq 0 ] || refuse "$code" "stemma failed with exit code $code"
grep -q '"closed": false' trace.json || refuse 1 "trace.json does not say that the gate is open"
echo "accepted; the evidence is in trace.json"
