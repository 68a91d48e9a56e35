#!/usr/bin/env bash
# What `make test-clients` runs: the platform's own Python SDK, as PyPI has it, against the control plane with signatures on.
set -euo pipefail
cd "$(dirname "$0")/../../.."

bash demo/install-tools.sh ssh-keygen
. controlplane/tests/clients/environment.sh
install_into "$target/clients" jdcloud_sdk==1.6.354
exec "$target/clients/bin/python" -W ignore controlplane/tests/clients/clients.py "$binary"
