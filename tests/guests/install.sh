# Installing, and purging again. Sourced by suites.sh.

COMPONENT=/usr/local/share/jcloud/agent/core/componentInfo.cfg

# Every path that is not the kernel's, a log, or the package manager's own book-keeping.
paths() {
  inside find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp -o -path /var/log \
    -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/systemd/timers \) -prune -o -print
  inside find /run -name '*keypair*' -print
}
new_paths() { paths | sort -u | comm -13 "$RUN/paths-$SUITE" -; }

scene_install() {
  try "the guest" bare_guest
  try "install the .deb: enabled, active" install_fresh
  try "the trial's socket: active, for root alone" trial_socket
  try "systemctl status says what is bound" status_unbound
  try "componentInfo.cfg: the installed version" component_version
  try "installed again: nothing changes hands" install_again
  try "purge: what is left of the package" purge_clean
  try "the platform's componentInfo.cfg: untouched" component_of_platform
}

bare_guest() {
  guest_up "$GUEST" "$SUITE" "$BACKEND"
  cloud_start
  paths | sort -u >"$RUN/paths-$SUITE"
  saw "$(versions)"
}

versions() {
  echo "systemd $(inside systemctl --version | awk 'NR == 1 { print $2 }')"
  inside ssh -V 2>&1 | sed 's/_\([0-9.]*\).*/ \1/'
}

install_fresh() {
  install_package "$VERSION"
  wait_for 20 "the agent's first poll" healthy
  [ "$(inside systemctl is-enabled keypair-agent)" = enabled ]
  [ "$(property ActiveState)" = active ]
  saw enabled "$(property ActiveState)"
  inside systemctl status --no-pager keypair-agent
  [ "$(inside systemctl --failed --no-legend | wc -l)" = 0 ]
}

trial_socket() {
  [ "$(property ActiveState keypair-agent-trial.socket)" = active ]
  saw "$(inside stat -c '%a %U' /run/keypair-agent /run/keypair-agent/trial.sock)"
  [ "$(inside stat -c '%a %U' /run/keypair-agent /run/keypair-agent/trial.sock)" = "700 root
600 root" ]
}

status_unbound() {
  local line
  line=$(inside systemctl status --no-pager keypair-agent | sed -n 's/^ *Status: "\(.*\)"$/\1/p')
  saw "$line"
  case $line in *"no key"* | *nothing*) ;; *) return 1 ;; esac
}

component_version() {
  local said
  said=$(inside sed -n 's/^version *= *//p' $COMPONENT)
  saw "$said"
  [ "$said" = "$VERSION" ]
  inside keypair-agent status | grep "component .*$VERSION"
}

install_again() {
  local before after
  before=$(inside find /etc/keypair-agent /usr/local/share/jcloud /var/lib/keypair-agent -printf '%p %m %u %s\n' | sort)
  install_package "$VERSION"
  after=$(inside find /etc/keypair-agent /usr/local/share/jcloud /var/lib/keypair-agent -printf '%p %m %u %s\n' | sort)
  [ "$before" = "$after" ]
  wait_for 20 "the agent's first poll" healthy
}

purge_clean() {
  local left
  inside dpkg --purge keypair-agent
  left=$(new_paths)
  [ -z "$left" ] || { echo "$left"; fail "left: $(wc -l <<<"$left") paths"; }
  [ "$(property LoadState)" = not-found ]
  [ "$(property ActiveState keypair-agent-trial.socket)" = inactive ]
  saw "nothing"
}

component_of_platform() {
  local before
  inside sh -c "mkdir -p ${COMPONENT%/*}; printf 'version=3.0.1042.d89c570\r\n' >$COMPONENT; chmod 640 $COMPONENT"
  before=$(fingerprint_of_component)
  install_package "$PREVIOUS"
  [ "$(fingerprint_of_component)" = "$before" ] || fail "changed by the installation"
  wait_for 20 "the agent's first poll" healthy
  inside keypair-agent status | grep "component .*3.0.1042"
  install_package "$VERSION"
  [ "$(fingerprint_of_component)" = "$before" ] || fail "changed by the upgrade"
  inside dpkg --remove keypair-agent
  [ "$(fingerprint_of_component)" = "$before" ] || fail "changed by the removal"
  inside dpkg --purge keypair-agent
  [ "$(fingerprint_of_component)" = "$before" ] || fail "changed by the purge"
  saw "same bytes"
}
fingerprint_of_component() { inside sh -c "stat -c '%a %U %Y' $COMPONENT; sha256sum $COMPONENT"; }
