#!/usr/bin/env bash
# What `make test-packages` runs: builds the packages twice and holds them against what they promise. They are installed
# by `make test-guests`. PACKAGE_ARCHITECTURES: as for build.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
architectures=${PACKAGE_ARCHITECTURES:-x86_64 aarch64}

passed=0 failed=0
verdict() { # NAME STATUS WHAT-WAS-SEEN
  if [ "$2" = 0 ]; then passed=$((passed + 1)); printf 'ok    %-44s %s\n' "$1" "$3"
  else failed=$((failed + 1)); printf 'FAIL  %-44s %s\n' "$1" "$3"; fi
}
holds() { # NAME SEEN COMMAND...: the command has to succeed
  local name=$1 seen=$2; shift 2
  if "$@"; then verdict "$name" 0 "$seen"; else verdict "$name" 1 "$seen"; fi
}

bash demo/install-tools.sh lintian rpmlint readelf
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

PACKAGES=$work/first bash packaging/build.sh >/dev/null
PACKAGES=$work/second bash packaging/build.sh >/dev/null
for package in "$work"/first/*; do
  name=$(basename "$package")
  holds "the same bytes again" "$name" cmp -s "$package" "$work/second/$name"
done
count=$(find "$work/first" -type f | wc -l)
holds "both formats for each architecture" "$count packages for $architectures" test "$count" = $((2 * $(wc -w <<<"$architectures")))

for architecture in $architectures; do
  binary=target/packages-build/$architecture-unknown-linux-gnu/release/keypair-agent
  highest=$(readelf --dyn-syms --wide "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
  holds "highest GLIBC symbol, $architecture" "$highest" \
    test "$(printf '%s\nGLIBC_2.17\n' "$highest" | sort -V | tail -n 1)" = GLIBC_2.17
  # Of the home what Rust's tools have there: constants stand side by side in it, `/root` and `/run` among them.
  # shellcheck disable=SC2016
  holds "names no directory of the builder's, $architecture" "$PWD, $HOME" \
    sh -c '! grep -qaF -e "$1/" -e "$2/.cargo" -e "$2/.rustup" "$3"' sh "$PWD" "$HOME" "$binary"
  run=("$binary")
  if [ "$architecture" != "$(uname -m)" ]; then
    bash demo/install-tools.sh "qemu-$architecture" "/usr/$architecture-linux-gnu/lib/libc.so.6"
    run=("qemu-$architecture" -L "/usr/$architecture-linux-gnu" "$binary")
  fi
  version=$("${run[@]}" --version) || version="it does not run"
  holds "runs, $architecture" "$version" test "${version% *}" = keypair-agent
done

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
