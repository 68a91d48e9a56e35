#!/usr/bin/env bash
# What `make test-clients` runs: the platform's own Python SDK, as PyPI has it, against the control plane with signatures on.
set -euo pipefail
cd "$(dirname "$0")/../../.."

bash demo/install-tools.sh python3 ssh-keygen
cargo build --quiet -p keypair-controlplane
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
environment=$target/clients
if [ ! -e "$environment/ready" ]; then
  rm -rf "$environment"
  python3 -m venv "$environment" 2>/dev/null || { bash demo/install-tools.sh python3-venv; python3 -m venv "$environment"; }
  "$environment/bin/pip" install --quiet --disable-pip-version-check jdcloud_sdk==1.6.354
  touch "$environment/ready"
fi
exec "$environment/bin/python" -W ignore controlplane/tests/clients/clients.py "$target/debug/keypair-controlplane"
