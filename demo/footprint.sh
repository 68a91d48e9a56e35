#!/usr/bin/env bash
# Prints the release binary's size and the daemon's memory while it idles in a long poll, and how it was measured.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release -p keypair-agent
cargo build --quiet -p keypair-controlplane
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
agent=$target/release/keypair-agent
folder=$(mktemp -d "${XDG_RUNTIME_DIR:-/run}/keypair-agent-size.XXXXXX")
pids=()
cleanup() {
  for pid in ${pids[@]+"${pids[@]}"}; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap cleanup EXIT

"$target/debug/keypair-controlplane" serve --api 127.0.0.1:0 --metadata 127.0.0.1:0 --instance i-size \
  >"$folder/out" 2>/dev/null &
pids+=($!)
until [ -s "$folder/out" ]; do sleep 0.05; done
echo 3.0.1042 >"$folder/componentInfo.cfg"
cat >"$folder/config.toml" <<CONFIG
metadata_url = "$(sed -n 's/.*"i-size":"\([^"]*\)".*/\1/p' "$folder/out")"
component_info = "$folder/componentInfo.cfg"
state_dir = "$folder/state"
run_dir = "$folder/run"
CONFIG
"$agent" run --config "$folder/config.toml" 2>/dev/null &
pids+=($!)
sleep 8 # past READY=1 and the first report: it now waits in a long poll of 60 s

size=$(stat -c %s "$agent")
printf 'binary    %d bytes (release: stripped, opt-level z, fat LTO)\n' "$size"
awk '/^(VmRSS|RssAnon|RssFile|Threads)/ { print $1, $2, $3 }' "/proc/${pids[-1]}/status"
[ "$size" -lt $((2 * 1024 * 1024)) ] || { echo "the binary is over 2 MiB" >&2; exit 1; }
