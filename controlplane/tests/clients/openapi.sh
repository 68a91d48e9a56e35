#!/usr/bin/env bash
# What `make test-openapi` runs: schemathesis holds docs/openapi.yaml against the running server, one face after the other.
set -euo pipefail
cd "$(dirname "$0")/../../.."

. controlplane/tests/clients/environment.sh
environment=$target/openapi
install_into "$environment" schemathesis==4.32.5

folder=$(mktemp -d)
pid=
cleanup() {
  [ -z "$pid" ] || { kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; }
  rm -rf "$folder"
}
trap cleanup EXIT
"$binary" serve --api 127.0.0.1:0 --metadata 127.0.0.1:0 --attach-wait 0 \
  --instance i-demo --instance i-other >"$folder/out" 2>"$folder/log" &
pid=$!
until [ -s "$folder/out" ]; do kill -0 "$pid" || { cat "$folder/log" >&2; exit 1; }; sleep 0.05; done
api=$(sed -n 's/.*"api":"\([^"]*\)".*/\1/p' "$folder/out")
metadata=$(sed -n 's/.*"i-demo":"\(http:\/\/[^/]*\).*/\1/p' "$folder/out")

# Something for the examples of the document to find.
"$environment/bin/python" - "$api/v1/regions/cn-north-1" <<'PYTHON'
import json, sys, urllib.request
for path, body in [("keypairs", {"keyName": "my-test"}),
                   ("keypairs/my-test:attach", {"instanceIds": ["i-demo"], "passWordAuth": "no"})]:
    urllib.request.urlopen(urllib.request.Request(f"{sys.argv[1]}/{path}", json.dumps(body).encode(), method="POST"))
PYTHON

here=$PWD
face() { # URL PATHS
  # It keeps notes where it runs.
  (cd "$folder" && "$environment/bin/schemathesis" --config-file "$here/controlplane/tests/clients/schemathesis.toml" \
    run "$here/docs/openapi.yaml" --url "$1" --include-path-regex "$2" --seed "${SEED:-20261128}" \
    --max-examples "${EXAMPLES:-50}" --no-color)
}
face "$api" '^/(v1/|metrics$)'
face "$metadata" '^/\{instanceId\}/'
kill -0 "$pid" # it lives through all of it
