#!/usr/bin/env bash
# What `make packages` runs: the binaries for glibc 2.17, the .deb and the .rpm of each architecture, in $PACKAGES.
# The same commit gives the same bytes. Needs Rust; installs the rest below target/tools.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=${PACKAGES:-target/packages}
PACKAGE_ARCHITECTURES=${PACKAGE_ARCHITECTURES:-x86_64 aarch64}
crate_version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
PACKAGE_VERSION=${PACKAGE_VERSION:-$crate_version}
# The day of the last change; where there is no repository (an unpacked archive), of the changelog.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH
# The oldest C library: CentOS 7's.
glibc=2.17

say() { printf 'packages: %s (%d s)\n' "$*" "$SECONDS" >&2; }

binary() { # ARCHITECTURE -> the path of its binary
  local target=$1-unknown-linux-gnu
  if ! rustc --print target-libdir --target "$target" | xargs test -d; then
    rustup target add "$target" >&2
  fi
  # No path of this machine in the binary: neither to leak nor to differ.
  RUSTFLAGS="--remap-path-prefix=$PWD=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo" \
    cargo zigbuild --quiet --locked --release -p keypair-agent --bin keypair-agent \
    --target "$target.$glibc" --target-dir target/packages-build >&2
  echo "target/packages-build/$target/release/keypair-agent"
}

stage=target/packages-build/stage

maintainer=$(sed -n 's/^maintainer: //p' packaging/nfpm.yaml)

changes() { # the version's entries in CHANGELOG.md, one a line
  awk -v section="## ${PACKAGE_VERSION%%[~+-]*}" '
    /^## / { inside = $0 == section; next }
    inside && /^- / { if (entry) print entry; entry = substr($0, 3); next }
    inside && entry && /^  / { entry = entry " " substr($0, 3); next }
    entry { print entry; entry = "" }
    END { if (entry) print entry }' CHANGELOG.md
}

stage() { # BINARY: what is made rather than taken from the repository
  rm -rf $stage
  mkdir -p $stage
  install -m 755 "$1" $stage/keypair-agent
  for page in keypair-agent.8 keypair-agent.toml.5; do gzip -n9 <"packaging/man/$page" >"$stage/$page.gz"; done
  # The form is the component's own, MAJOR.MINOR.BUILD[.HASH]: of 3.1.0~prev it says 3.1.0.prev.
  printf '# From the package keypair-agent.\nversion = %s\n' "${PACKAGE_VERSION//[~+-]/.}" >$stage/componentInfo.cfg
  {
    printf 'keypair-agent (%s) stable; urgency=medium\n\n' "$PACKAGE_VERSION"
    changes | while read -r change; do fold -s -w 74 <<<"$change" | sed '1s/^/  * /; 2,$s/^/    /; s/ *$//'; done
    printf '\n -- %s  %s\n' "$maintainer" "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
  } | gzip -n9 >$stage/changelog.gz
  # nfpm would write its own into the .deb too, in a form that Debian's tools do not read.
  {
    cat packaging/nfpm.yaml
    printf 'changelog: %s/changelog.yaml\n' $stage
  } >$stage/rpm.yaml
  {
    printf -- '- semver: %s-1\n  date: %s\n  packager: %s\n  changes:\n' "$PACKAGE_VERSION" \
      "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" "$maintainer"
    changes | sed "s/'/''/g; s/.*/    - note: '&'/"
  } >$stage/changelog.yaml
}

pack() { # ARCHITECTURE BINARY
  stage "$2"
  local name; case $1 in x86_64) name=amd64 ;; aarch64) name=arm64 ;; esac
  export ARCHITECTURE=$name VERSION=$PACKAGE_VERSION
  RELEASE='' nfpm package --config packaging/nfpm.yaml --packager deb --target "$PACKAGES/"
  RELEASE=1 nfpm package --config $stage/rpm.yaml --packager rpm --target "$PACKAGES/"
}

. packaging/tools.sh
mkdir -p "$PACKAGES"
for architecture in $PACKAGE_ARCHITECTURES; do
  say "the binary for $architecture"
  built=$(binary "$architecture")
  say "the packages for $architecture"
  pack "$architecture" "$built"
done
(cd "$PACKAGES" && sha256sum ./*.deb ./*.rpm)
