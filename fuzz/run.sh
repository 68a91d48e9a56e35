#!/usr/bin/env bash
# Runs every fuzz target, or those that are named, for FUZZ_SECONDS each (60). What they reach is kept in
# target/fuzz; a finding goes by itself into fuzz/corpus, where `make test` tries it from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
command -v cargo-fuzz >/dev/null || export PATH=$PWD/target/tools/bin:$PATH
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz --root "$PWD/target/tools"
bash demo/install-tools.sh ip unshare c++

# cargo-fuzz asks for flags that stable Rust hides. The agent has no unsafe code: no sanitizer would find anything.
export RUSTC_BOOTSTRAP=1
alone=()
fuzz() { "${alone[@]}" cargo fuzz "$1" --fuzz-dir fuzz --sanitizer none --target-dir target/fuzz/build "${@:2}"; }

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)
fuzz build
failed=0
for target in "${targets[@]}"; do
  mkdir -p "target/fuzz/$target"
  found=target/fuzz/$target.log
  # Each answer is a connection: in a network of its own, where none is kept for a minute after its end.
  alone=()
  if [ "$target" = http ] && [ "$(id -u)" = 0 ]; then
    alone=(unshare --net sh -ec 'ip link set lo up; echo 16 >/proc/sys/net/ipv4/tcp_max_tw_buckets; exec "$@"' sh)
  fi
  # 64 KiB is the most that any of them reads.
  if fuzz run "$target" "target/fuzz/$target" "fuzz/corpus/$target" -- -max_total_time="$seconds" \
    -max_len=66000 -timeout=10 -rss_limit_mb=1024 -artifact_prefix="fuzz/corpus/$target/finding-" >"$found" 2>&1; then
    echo "$target: $(grep -a '^Done' "$found" | tail -n 1), no finding"
  else
    failed=1
    echo "$target: a finding" >&2
    tail -n 30 "$found" >&2
  fi
done
exit $failed
