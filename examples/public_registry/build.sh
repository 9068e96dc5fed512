#!/usr/bin/env bash
# Build a public registry from a list of repositories, and write it as one file that others can import.
# Usage: build.sh LIST FILE [KEY [NAME]]
# LIST: a line per repository; KEY: a private key that signs the file; NAME: how the registry calls itself.
#
# It reads a sample of each large model by byte ranges, never whole files. A run that was stopped, or a list that grew,
# goes on: what is enrolled at the same commit is not read again. A repository that cannot be read does not stop the
# others; the file is written without it, and the exit code is then 1.
set -uo pipefail

fail() {
  echo "build.sh: $2" >&2
  exit "$1"
}

[ "$#" -ge 2 ] && [ "$#" -le 4 ] || fail 2 "give a list and a file: $0 LIST FILE [KEY [NAME]]"
[ -r "$1" ] || fail 2 "the list $1 cannot be read"
[ "$#" -eq 2 ] || [ -r "$3" ] || fail 2 "the key $3 cannot be read"
command -v stemma > /dev/null || fail 127 "there is no program 'stemma' on the path"

stemma add --hub-list "$1"
failed=$?
[ "$failed" -le 1 ] || fail "$failed" "the list was not enrolled (exit code $failed)"
stemma check || fail 1 "the registry is damaged, or a source changed: nothing was published"

options=()
[ "$#" -eq 2 ] || options=(--sign "$3")
[ "$#" -lt 4 ] || options+=(--name "$4")
stemma registry export "$2" ${options[@]+"${options[@]}"} || fail 1 "the registry was not written to $2"
[ "$failed" -eq 0 ] || fail 1 "$2 is written, without what could not be read (see above)"
echo "$2 is written"
