#!/usr/bin/env bash
# What `make test` runs, once everything is built: every test, those that wait for minutes beside the others.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
# With --workspace, or its dependencies are built anew with other features.
cargo test --workspace --test hostile_channel >"$log" 2>&1 &
waiting=$!
trap 'kill "$waiting" 2>/dev/null || true; rm -f "$log"' EXIT
status=0
cargo test --workspace --lib --bins --test '[!h]*' --test hostile_guest --no-fail-fast || status=$?
wait "$waiting" || status=$?
cat "$log"
cargo test --workspace --doc || status=$?
exit "$status"
