# The .rpm: what is in it, and what it does to a scratch root. That is a Debian's, with a shell and systemctl, so that
# its scriptlets run; `--nodeps`, since rpm knows of no Debian package there. Sourced by suites.sh.

scene_rpm() {
  try "the .rpm: files, scriptlets, requirements" rpm_contents
  try "install into a scratch root" rpm_install
  try "the .rpm upgraded in place" rpm_upgrade
  try "the .rpm removed: config kept, nothing else" rpm_remove
  try "the platform's componentInfo.cfg: untouched" rpm_component
}

rpm_file() { echo "$PACKAGES_FOLDER/keypair-agent-$1-1.x86_64.rpm"; }
in_scratch() { rpm --root "$RUN/guests/rpm" --dbpath /var/lib/rpm "$@"; }

rpm_contents() {
  local list scripts requires path
  list=$(rpm -qp --list "$(rpm_file "$VERSION")")
  scripts=$(rpm -qp --scripts "$(rpm_file "$VERSION")")
  requires=$(rpm -qp --requires "$(rpm_file "$VERSION")")
  printf '%s\n\n%s\n\n%s\n' "$list" "$scripts" "$requires"
  for path in /usr/bin/keypair-agent /usr/lib/systemd/system/keypair-agent.service \
    /usr/lib/systemd/system/keypair-agent-trial.socket /usr/lib/systemd/system/keypair-agent-trial@.service \
    /usr/lib/systemd/system-preset/90-keypair-agent.preset /etc/keypair-agent/config.toml \
    /usr/share/man/man8/keypair-agent.8.gz /usr/share/man/man5/keypair-agent.toml.5.gz; do
    grep -qx "$path" <<<"$list" || fail "no $path"
  done
  [ "$(rpm -qp --configfiles "$(rpm_file "$VERSION")")" = /etc/keypair-agent/config.toml ]
  grep -q '^postinstall scriptlet' <<<"$scripts"
  grep -q '^preuninstall scriptlet' <<<"$scripts"
  grep -q '^postuninstall scriptlet' <<<"$scripts"
  grep -q '^libc.so.6(GLIBC_2.17)(64bit)' <<<"$requires"
  saw "$(wc -l <<<"$list") paths" "$(grep -c scriptlet <<<"$scripts") scriptlets"
}

rpm_install() {
  local root=$RUN/guests/rpm said
  cp -a --reflink=auto "$(root_of bookworm nspawn)" "$root"
  # What every rpm distribution has of its own.
  mkdir -p "$root"/var/lib/rpm "$root"/usr/share/{licenses,zsh/site-functions,fish/vendor_completions.d}
  (cd "$root" && find . -xdev | sort) >"$RUN/rpm-before"
  in_scratch -i --nodeps "$(rpm_file "$PREVIOUS")"
  said=$(sed -n 's/^version *= *//p' "$root$COMPONENT")
  [ "$said" = "$VERSION.prev" ] || fail "componentInfo.cfg: $said"
  [ -L "$root/etc/systemd/system/multi-user.target.wants/keypair-agent.service" ] || fail "not enabled"
  chroot "$root" /usr/bin/keypair-agent --version
  saw "component $said" enabled
}

rpm_upgrade() {
  local root=$RUN/guests/rpm said
  echo 'long_poll_seconds = 50' >>"$root/etc/keypair-agent/config.toml"
  mkdir -p "$root/var/lib/keypair-agent"
  echo state >"$root/var/lib/keypair-agent/state.json"
  in_scratch -U --nodeps "$(rpm_file "$VERSION")"
  [ "$(in_scratch -q keypair-agent)" = "keypair-agent-$VERSION-1.x86_64" ]
  said=$(sed -n 's/^version *= *//p' "$root$COMPONENT")
  [ "$said" = "$VERSION" ] || fail "componentInfo.cfg: $said"
  grep -q '^long_poll_seconds = 50$' "$root/etc/keypair-agent/config.toml"
  grep -qx state "$root/var/lib/keypair-agent/state.json"
  saw "component $said" "config and state kept"
}

rpm_remove() {
  local root=$RUN/guests/rpm left
  in_scratch -e --nodeps keypair-agent
  left=$(cd "$root" && find . -xdev ! -path './var/lib/rpm*' |
    sort | comm -13 "$RUN/rpm-before" -)
  echo "$left"
  saw "$(grep -o '[a-z.]*rpmsave' <<<"$left")"
  # The state goes with an owner's word alone: rpm has no purge.
  [ "$left" = "./etc/keypair-agent
./etc/keypair-agent/config.toml.rpmsave
./var/lib/keypair-agent
./var/lib/keypair-agent/state.json" ] || fail "$(wc -l <<<"$left") paths left"
}

rpm_component() {
  local root=$RUN/guests/rpm before
  mkdir -p "$root${COMPONENT%/*}"
  printf 'version=3.0.1042.d89c570\r\n' >"$root$COMPONENT"
  before=$(stat -c '%a %U %Y' "$root$COMPONENT"; sha256sum "$root$COMPONENT")
  in_scratch -i --nodeps "$(rpm_file "$PREVIOUS")"
  in_scratch -U --nodeps "$(rpm_file "$VERSION")"
  in_scratch -e --nodeps keypair-agent
  [ "$(stat -c '%a %U %Y' "$root$COMPONENT"; sha256sum "$root$COMPONENT")" = "$before" ]
  saw "same bytes"
}
