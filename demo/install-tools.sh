#!/usr/bin/env bash
# Installs those of the named programs that are missing, without ever starting a service on port 22.
set -euo pipefail

package_of() { # PROGRAM DISTRIBUTION -> its package there
  case $1:$2 in
    sshd:debian | sshd:fedora) echo openssh-server ;;
    ssh:debian | ssh-keygen:debian) echo openssh-client ;;
    ssh:fedora | ssh-keygen:fedora) echo openssh-clients ;;
    sshd:* | ssh:* | ssh-keygen:*) echo openssh ;;
    setfacl:*) echo acl ;;
    systemd-nspawn:*) echo systemd-container ;;
    ip:fedora) echo iproute ;;
    ip:*) echo iproute2 ;;
    unshare:* | nsenter:* | findmnt:* | setpriv:*) echo util-linux ;;
    initdb:debian) echo postgresql ;;
    initdb:*) echo postgresql-server ;;
    timeout:*) echo coreutils ;;
    readelf:*) echo binutils ;;
    c++:debian) echo g++ ;;
    c++:*) echo gcc-c++ ;;
    qemu-system-x86_64:fedora) echo qemu-system-x86-core ;;
    qemu-system-x86_64:suse) echo qemu-x86 ;;
    qemu-system-x86_64:*) echo qemu-system-x86 ;;
    mkfs.ext4:*) echo e2fsprogs ;;
    qemu-aarch64:* | qemu-x86_64:*) echo qemu-user ;;
    /usr/aarch64-linux-gnu/*:debian) echo libc6-arm64-cross ;;
    /usr/x86_64-linux-gnu/*:debian) echo libc6-amd64-cross ;;
    *) echo "$1" ;;
  esac
}

# Debian keeps PostgreSQL's programs out of the way, a folder a version.
others=(/usr/lib/postgresql/*/bin)
missing=()
for program in "$@"; do
  PATH=$PATH:/usr/sbin:/sbin:${others[-1]} command -v "$program" >/dev/null || missing+=("$program")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if command -v apt-get >/dev/null; then distribution=debian
elif command -v dnf >/dev/null; then distribution=fedora
elif command -v zypper >/dev/null; then distribution=suse
else
  echo "missing: ${missing[*]}; install them with this system's package manager" >&2
  exit 1
fi
packages=()
for program in "${missing[@]}"; do packages+=("$(package_of "$program" "$distribution")"); done
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)

case $distribution in
  debian) command="apt-get install -y --no-install-recommends ${packages[*]}" ;;
  fedora) command="dnf install -y ${packages[*]}" ;;
  suse) command="zypper --non-interactive install ${packages[*]}" ;;
esac
if [ "$(id -u)" != 0 ]; then
  echo "missing: ${missing[*]}; run this once as root: $command" >&2
  exit 1
fi
echo "installing ${packages[*]}" >&2
if [ "$distribution" = debian ]; then
  # policy-rc.d(8) says no while the package is configured: no sshd is started.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
fi
$command >/dev/null
