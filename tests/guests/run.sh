#!/usr/bin/env bash
# What `make test-guests` runs: the packages, installed in Debian guests that boot systemd and sshd (lab.sh), and what
# an owner, an operator and an image builder see there. A table of it at the end; exit status 1 where anything failed.
#
#   SUITES="bookworm"         some of the suites: bullseye bookworm trixie qemu rpm; or power-1 power-2; or points-bookworm points-trixie; or selinux
#   SCENES="login boot"       some of the scenes: the files beside this one
#   KEYPAIR_GUESTS=FOLDER     where root file systems are kept
#   GUEST_PACKAGES=FOLDER     packages that were built already: two versions of them
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin

[ "$(id -u)" = 0 ] || { echo "guests need root: they boot systemd in namespaces" >&2; exit 1; }
bash demo/install-tools.sh mmdebstrap systemd-nspawn qemu-system-x86_64 mkfs.ext4 ssh ssh-keygen sshpass curl jq ip \
  unshare nsenter findmnt rpm

export CACHE=${KEYPAIR_GUESTS:-${XDG_CACHE_HOME:-$HOME/.cache}/keypair-agent/guests}
export VERSION PREVIOUS PACKAGES_FOLDER CONTROL_PLANE
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
PREVIOUS=$VERSION~prev
PACKAGES_FOLDER=${GUEST_PACKAGES:-$PWD/target/guests}
if [ -z "${GUEST_PACKAGES:-}" ]; then
  for version in "$VERSION" "$PREVIOUS"; do
    PACKAGE_VERSION=$version PACKAGE_ARCHITECTURES=x86_64 PACKAGES=$PACKAGES_FOLDER bash packaging/build.sh
  done
fi
# At boot it runs inside the oldest of the guests.
. packaging/tools.sh
cargo zigbuild --quiet -p keypair-controlplane --target x86_64-unknown-linux-gnu.2.17
CONTROL_PLANE=$PWD/target/x86_64-unknown-linux-gnu/debug/keypair-controlplane

export RUN CGROUP
RUN=$(mktemp -d "${TMPDIR:-/var/tmp}/keypair-guests.XXXXXX")
group=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)$(sed -n 's/^0:://p' /proc/self/cgroup)
CGROUP=${group%/}/${RUN##*/}
mkdir "$CGROUP"

# Guests, mounts and programs live in a PID and a mount namespace: with its first process everything ends.
inside=
cleanup() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  if [ -n "$inside" ]; then
    kill -9 "$inside" 2>/dev/null || true
    wait "$inside" 2>/dev/null || true
  fi
  rm -rf --one-file-system "$RUN"
  for _ in $(seq 50); do
    find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -e "$CGROUP" ] || break
    sleep 0.1
  done
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

unshare --mount --pid --fork --kill-child --mount-proc bash tests/guests/suites.sh &
inside=$!
status=0
wait "$inside" || status=$?
inside=
exit "$status"
