#!/usr/bin/env bash
# What `make test-sshd` runs: the matrix, a socket-started ssh and the reader against the OpenSSH of Debian 11 (8.4),
# 12 (9.2) and 13 (10.0). Each suite is a root file system of its own, built once; nothing is started outside of it.
set -euo pipefail
cd "$(dirname "$0")/.."
suites=${SUITES:-bullseye bookworm trixie}
cache=${KEYPAIR_SUITES:-${XDG_CACHE_HOME:-$HOME/.cache}/keypair-agent/suites}

say() { printf '\n=== %s (%d s)\n' "$*" "$SECONDS"; }
[ "$(id -u)" = 0 ] || { echo "the suites need root: mounts, namespaces and sshd" >&2; exit 1; }
bash demo/install-tools.sh sshd ssh ssh-keygen strace setfacl ip unshare nsenter mmdebstrap systemd-nspawn

say "the agent, for the oldest C library of the three"
. packaging/tools.sh
target=$(uname -m)-unknown-linux-gnu
cargo zigbuild --quiet -p keypair-agent --bin keypair-agent --target "$target.2.28"
agent=$PWD/target/$target/debug/keypair-agent

root_of() { # SUITE -> its root file system
  local root=$cache/$1
  if [ ! -e "$root/usr/bin/setfacl" ]; then
    mkdir -p "$cache"
    rm -rf "$root" "$root.new"
    mmdebstrap --quiet --variant=minbase --include=openssh-server,openssh-client,systemd-sysv,dbus,iproute2,passwd,acl \
      --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' "$1" "$root.new" >&2
    mkdir -p "$root.new/run/sshd"
    mv "$root.new" "$root"
  fi
  echo "$root"
}

for suite in $suites; do
  say "$suite"
  root=$(root_of "$suite")
  KEYPAIR_MATRIX_ROOT=$root KEYPAIR_MATRIX_AGENT=$agent \
    cargo test --quiet -p keypair-agent --test matrix --test socket_unit -- --nocapture
  # The reader writes its configurations to the temporary directory: the suite's sshd finds them there too.
  asker=$PWD/target/sshd-of-$suite
  printf '#!/bin/sh\nexec chroot "%s" /usr/sbin/sshd "$@"\n' "$root" >"$asker"
  chmod 755 "$asker"
  KEYPAIR_TEST_SSHD=$asker TMPDIR=/tmp unshare --mount sh -ec \
    'mount --bind /tmp "$1/tmp"; mount --bind /dev "$1/dev"; mkdir -p "$1/run/sshd"
     exec cargo test --quiet -p keypair-agent --test sshd_agrees -- --nocapture' sh "$root"
done
say "done"
