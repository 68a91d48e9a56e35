#!/usr/bin/env bash
# What `make test` runs: every test program, several at a time, since most of them wait for somebody most of the time.
set -euo pipefail
cd "$(dirname "$0")/.."

LANES=${KEYPAIR_TEST_LANES:-3}
# Those that take a minute and more begin first, or one of them is left over at the end.
LONGEST='matrix|hostile_channel|model|trial|power_cut|sshd_questions|silent|outside_unit|sshd_agrees'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export work

# PROGRAM ROOT-OF-ITS-PACKAGE, a line each.
cargo test --workspace --lib --bins --tests --no-run --message-format=json |
  sed -n 's|.*"manifest_path":"\([^"]*\)/Cargo.toml".*"test":true},"features".*"executable":"\([^"]*\)".*|\2 \1|p' >"$work/programs"

# shellcheck disable=SC2016 # the inner shell expands it
run='program=$1 root=$2
log=$work/${program##*/}
cd "$root"
"$program" >"$log" 2>&1 || echo "${program##*/}" >>"$work/failed"
{ flock 9; printf "     Running %s\n" "${program##*/}"; cat "$log"; } 9>"$work/lock"'
{
  grep -E "/deps/($LONGEST)-" "$work/programs"
  grep -vE "/deps/($LONGEST)-" "$work/programs"
} | xargs -P "$LANES" -L 1 bash -c "$run" bash

cargo test --workspace --doc
if [ -e "$work/failed" ]; then
  printf 'error: %s failed\n' "$(sort "$work/failed" | paste -sd' ')" >&2
  exit 1
fi
