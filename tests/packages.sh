#!/usr/bin/env bash
# What `make test-packages` runs: builds the packages twice and holds them against what they promise. The .deb is installed
# in real guests by `make test-guests`; the .rpm here, into a root file system of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "needs root: it installs packages into a scratch root" >&2; exit 1; }

passed=0 failed=0
verdict() { # NAME STATUS WHAT-WAS-SEEN
  if [ "$2" = 0 ]; then passed=$((passed + 1)); printf 'ok    %-44s %s\n' "$1" "$3"
  else failed=$((failed + 1)); printf 'FAIL  %-44s %s\n' "$1" "$3"; fi
}
holds() { # NAME SEEN COMMAND...: the command has to succeed
  local name=$1 seen=$2; shift 2
  if "$@"; then verdict "$name" 0 "$seen"; else verdict "$name" 1 "$seen"; fi
}

bash demo/install-tools.sh lintian rpmlint rpm readelf qemu-aarch64
dpkg -s libc6-arm64-cross >/dev/null 2>&1 || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libc6-arm64-cross >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

PACKAGES=$work/first bash packaging/build.sh >/dev/null
PACKAGES=$work/second bash packaging/build.sh >/dev/null
for package in "$work"/first/*; do
  name=$(basename "$package")
  holds "the same bytes again" "$name" cmp -s "$package" "$work/second/$name"
done
verdict "both formats for both architectures" "$([ "$(ls "$work/first" | wc -l)" = 4 ]; echo $?)" "$(ls "$work/first" | wc -l) packages"

for architecture in x86_64 aarch64; do
  binary=target/packages-build/$architecture-unknown-linux-gnu/release/keypair-agent
  highest=$(readelf --dyn-syms --wide $binary | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
  holds "highest GLIBC symbol, $architecture" "$highest" \
    test "$(printf '%s\nGLIBC_2.17\n' "$highest" | sort -V | tail -n 1)" = GLIBC_2.17
  holds "names no directory of the builder's, $architecture" "$PWD, $HOME" \
    sh -c '! grep -qaF -e "$1/" -e "$2/" "$3"' sh "$PWD" "$HOME" $binary
done
version=$(qemu-aarch64 -L /usr/aarch64-linux-gnu target/packages-build/aarch64-unknown-linux-gnu/release/keypair-agent --version)
holds "runs on aarch64 (qemu-user)" "$version" test "${version% *}" = keypair-agent

for deb in "$work"/first/*.deb; do
  seen=$(lintian --allow-root --fail-on error "$deb" 2>&1) && status=0 || status=$?
  verdict "lintian" $status "$(basename "$deb")${seen:+: $seen}"
done
for rpm in "$work"/first/*.rpm; do
  seen=$(rpmlint --config packaging/rpm/rpmlint.toml "$rpm" 2>/dev/null) && status=0 || status=$?
  verdict "rpmlint" $status "$(basename "$rpm"): $(grep -E ': E:|packages and' <<<"$seen")"
done

printf '%d passed, %d failed\n' $passed $failed
[ $failed = 0 ]
