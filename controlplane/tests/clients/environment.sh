# Sourced at the top of the repository: the control plane, built, and Python packages in an environment of their own.

bash demo/install-tools.sh python3
cargo build --quiet -p keypair-controlplane
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
binary=$target/debug/keypair-controlplane

install_into() { # FOLDER PACKAGE: what is already there stays
  [ "$(cat "$1/ready" 2>/dev/null)" != "$2" ] || return 0
  rm -rf "$1"
  python3 -m venv "$1" 2>/dev/null || { bash demo/install-tools.sh python3-venv; python3 -m venv "$1"; }
  "$1/bin/pip" install --quiet --disable-pip-version-check "$2"
  echo "$2" >"$1/ready"
}
