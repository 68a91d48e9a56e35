#!/usr/bin/env bash
# What `make test-openssh` runs: the matrix on releases of OpenSSH that are installed here, each in a prefix of its own. KEYPAIR_OPENSSH
# names the prefixes, with colons between them.
set -uo pipefail
cd "$(dirname "$0")/.."

skipped() { echo "SKIPPED: $*" >&2; }
if [ -z "${KEYPAIR_OPENSSH:-}" ]; then
  skipped "the matrix on other releases of OpenSSH: KEYPAIR_OPENSSH names no prefix (such as /opt/openssh/8.2:/opt/openssh/9.9)"
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  skipped "the matrix on other releases of OpenSSH: not root"
  exit 0
fi
IFS=: read -ra prefixes <<<"$KEYPAIR_OPENSSH"
status=0 tried=0
for prefix in "${prefixes[@]}"; do
  for program in sbin/sshd bin/ssh bin/ssh-keygen; do
    [ -x "$prefix/$program" ] || { skipped "$prefix: it has no $program"; continue 2; }
  done
  printf '\n=== %s (%d s)\n' "$prefix" "$SECONDS"
  tried=$((tried + 1))
  KEYPAIR_MATRIX_OPENSSH=$prefix cargo test --quiet -p keypair-agent --test matrix -- --nocapture || status=1
done
printf '\n%d of %d prefixes tried\n' "$tried" "${#prefixes[@]}"
exit "$status"
