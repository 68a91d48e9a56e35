# Removed and purged with a key bound: nobody's way in goes with the package. Sourced by suites.sh.

scene_remove() {
  try "remove: the key stays, passwords stay off" remove_bound
  try "purge with a key bound: what is left" purge_bound
  try "after a reboot: the key still logs in" removed_reboot
}

remove_bound() {
  guest_up "$GUEST" "$SUITE" "$BACKEND"
  cloud_start
  paths | sort -u >"$RUN/paths-$SUITE"
  install_package "$VERSION"
  wait_for 20 "the agent's first poll" healthy
  attach no
  with_key root
  inside dpkg --remove keypair-agent
  [ "$(inside pgrep -c keypair-agent || true)" = 0 ]
  inside systemctl list-units --all --no-legend 'keypair-agent*'
  [ -z "$(inside systemctl list-units --no-legend 'keypair-agent*')" ]
  [ "$(inside find /run -name '*keypair*')" = "" ] || fail "left in /run"
  with_key root
  no_passwords
  inside test -e /var/lib/keypair-agent/state.json
}

purge_bound() {
  local left
  inside dpkg --purge keypair-agent
  left=$(new_paths | grep -vx /root/.ssh)
  echo "$left"
  [ "$left" = "/etc/ssh/sshd_config.d/00-keypair-agent.conf
/root/.ssh/authorized_keys" ] || fail "left: $(wc -l <<<"$left") paths"
  saw "key and drop-in"
  with_key root
  no_passwords
}

removed_reboot() {
  guest_reboot "$GUEST"
  with_key root
  no_passwords
  [ "$(inside systemctl --failed --no-legend | wc -l)" = 0 ]
}
