# SELinux enforcing, with the reference policy of Debian: what the agent and its helper may do under it, and labels by
# which sshd may not read. Real logins decide. Sourced by suites.sh.

scene_selinux() {
  try "the guest: SELinux enforces" selinux_guest
  try "install the .deb; the domains" selinux_install
  try "check: an attach with no would be accepted" selinux_check
  try "attach with no: key in, passwords out" selinux_attach
  try "the trial in the result, by the helper" selinux_trial
  try "the labels of what was written" selinux_labels
  try "passwords back, detach" selinux_back
  try "a moved key file with other keys: refused" selinux_moved
  try "a wrong label on our file alone: corrected" selinux_corrected
  try "a wrong label under a bound key: unhealthy" selinux_unhealthy
  try "a home that the policy does not know" selinux_home
  try "queued over a reboot: bound, key in" selinux_boot
  try "queued over a reboot, wrong label: refused" selinux_boot_wrong
  try "permissive: a warning alone" selinux_permissive
  try "undo" selinux_undo
  try "what was denied to the agent" selinux_denied
}

ROOT_KEYS=/root/.ssh/authorized_keys
WRONG_TYPE=user_tmp_t

selinux_guest() {
  guest_up "$GUEST" bookworm+selinux "$BACKEND" disk
  cloud_start 120
  [ "$(inside getenforce)" = Enforcing ]
  inside sestatus
  saw "$(inside getenforce)" "$(inside dpkg-query -W -f '${Version}' selinux-policy-default)"
  inside id -Z
}

# The newest alone: what an earlier command said proves nothing here.
newest_result() { inside cat /var/lib/keypair-agent/state.json | jq -r '.results[-1].result'; }

domain_of() { inside sh -c "ps -eo label,comm | grep -m 1 '$1\$'" | cut -d: -f3; }

selinux_install() {
  install_package "$VERSION"
  wait_for 120 "the agent's first poll" healthy
  inside ps -eZ
  inside ls -Z /usr/bin/keypair-agent
  inside ls -lZa /var/lib/keypair-agent /run/keypair-agent
  saw "agent $(domain_of keypair-agent)" "sshd $(domain_of sshd)"
}

selinux_check() { inside keypair-agent check; }

selinux_attach() {
  attach no
  with_key root
  no_passwords
}

selinux_trial() {
  local result
  result=$(newest_result)
  echo "$result"
  case $result in *'"trial":{"key":"accepted","file":"/root/.ssh/authorized_keys",'*) ;; *) return 1 ;; esac
}

type_of() { inside stat -c %C "$1" | cut -d: -f3; }

selinux_labels() {
  local drop_in=/etc/ssh/sshd_config.d/00-keypair-agent.conf
  inside ls -Zd /root /root/.ssh $ROOT_KEYS /etc/ssh/sshd_config.d $drop_in
  saw "$(type_of $ROOT_KEYS)" "$(type_of $drop_in)"
  [ -z "$(inside restorecon -n -v -R /root/.ssh /etc/ssh /var/lib/keypair-agent)" ]
}

selinux_back() {
  set_passwords yes
  with_password root
  detach
  refused with_key root
}
set_passwords() { # yes|no
  inside sh -c "echo '{\"action\":\"setPasswordAuth\",\"passWordAuth\":\"$1\"}' | keypair-agent apply -"
}

says() { # TEXT PART...
  local text=$1 part; shift
  echo "$text"
  for part in "$@"; do case $text in *"$part"*) ;; *) fail "not said: $part"; return 1 ;; esac; done
}

# Refused by the platform's API, and so in the agent's own result.
attach_refused() { # PART...
  if attach no; then fail "succeeded"; return 1; fi
  says "$(newest_result)" '"reason":"LOCKOUT_GUARD"' "restorecon -Rv" "$@"
  with_password root
}

# As after a mv from another home: the label goes with the file, and so do its keys.
selinux_moved() {
  ssh-keygen -q -t ed25519 -N '' -C other -f "$(folder "$GUEST")/other"
  inside sh -c "mkdir -p /root/.ssh; echo '$(cat "$(folder "$GUEST")/other.pub")' >/var/tmp/keys
    chcon -t $WRONG_TYPE /var/tmp/keys; mv /var/tmp/keys $ROOT_KEYS; chmod 600 $ROOT_KEYS; ls -Z $ROOT_KEYS"
  attach_refused "$ROOT_KEYS" $WRONG_TYPE ssh_home_t sshd_t
  [ "$(type_of $ROOT_KEYS)" = $WRONG_TYPE ]
  saw "$(newest_result | sed 's/.*"message":"\([^"]*\)".*/\1/' | cut -c1-120)"
}

selinux_corrected() {
  inside sh -c ": >$ROOT_KEYS"
  attach no
  saw "$(type_of $ROOT_KEYS)"
  [ "$(type_of $ROOT_KEYS)" = ssh_home_t ]
  with_key root
  no_passwords
  for place in /root/.ssh /root; do
    inside chcon -t $WRONG_TYPE "$place"
    set_passwords no
    with_key root
  done
}

selinux_unhealthy() {
  inside chcon -t $WRONG_TYPE $ROOT_KEYS
  # What the kernel does to sshd is what is said of it.
  refused with_key root
  if inside keypair-agent status >/dev/null; then fail "healthy"; return 1; fi
  says "$(inside keypair-agent status || true)" "$ROOT_KEYS" $WRONG_TYPE ssh_home_t "restorecon -Rv"
  says "$(inside keypair-agent check || true)" "$ROOT_KEYS" $WRONG_TYPE
  inside restorecon -Rv -F /root
  with_key root
  inside keypair-agent status
}

# Made by hand, below a directory of which the policy knows nothing.
selinux_home() {
  inside sh -c "mkdir -p /data/people; usermod -m -d /data/people/u u; mkdir -p -m 700 /data/people/u/.ssh
    chown u: /data/people/u/.ssh; chcon -R -t default_t /data/people; ls -Zd /data/people/u
    mkdir -p /etc/systemd/system/keypair-agent.service.d
    printf '[Service]\nReadWritePaths=-/data\n' >/etc/systemd/system/keypair-agent.service.d/data.conf
    systemctl daemon-reload"
  set_passwords yes
  detach
  set_configuration 'target_user = "u"'
  wait_for 120 "the agent's first poll" healthy
  if attach no; then fail "succeeded"; return 1; fi
  says "$(newest_result)" '"reason":"LOCKOUT_GUARD"' default_t "semanage fcontext -a -e /home /data/people"
  with_password u
  inside sh -c "semanage fcontext -a -e /home /data/people; restorecon -Rv -F /data/people/u"
  attach no
  with_key u
  set_passwords yes
  detach
  set_configuration ''
  wait_for 120 "the agent's first poll" healthy
  saw "refused, then bound"
}

# A slow machine may answer an early command with SSHD_RELOAD_UNSAFE: sshd was still starting. Then this fails.
reboot_with_a_command() { # COMMAND...: done inside after the agent was stopped
  local queued
  inside systemctl stop keypair-agent
  inside sh -c "$1"
  guest_off "$GUEST"
  api POST keypairs/my-test:attach "{\"instanceIds\":[\"$INSTANCE\"],\"passWordAuth\":\"no\"}" >"$RUN/queued-$SUITE" &
  queued=$!
  guest_start "$GUEST"
  guest_wait "$GUEST"
  wait $queued || true
  cat "$RUN/queued-$SUITE"
  wait_for 300 "the queue to be empty" nothing_waits
  inside journalctl -b -u keypair-agent -u ssh -o short-monotonic --no-pager
}

selinux_boot() {
  reboot_with_a_command "rm -rf /root/.ssh"
  says "$(newest_result)" '"status":"succeeded"'
  with_key root
  no_passwords
  saw "$(domain_of keypair-agent)" "$(type_of $ROOT_KEYS)"
  set_passwords yes
  detach
}

selinux_boot_wrong() {
  reboot_with_a_command "echo '$(cat "$(folder "$GUEST")/other.pub")' >$ROOT_KEYS; chcon -t $WRONG_TYPE $ROOT_KEYS"
  says "$(newest_result)" '"reason":"LOCKOUT_GUARD"' "$ROOT_KEYS" $WRONG_TYPE ssh_home_t
  with_password root
  saw "refused, the password lets in"
}

selinux_permissive() {
  inside setenforce 0
  attach no
  says "$(newest_result)" '"status":"succeeded"' WRONG_LABEL
  [ "$(type_of $ROOT_KEYS)" = $WRONG_TYPE ]
  with_key root
  inside keypair-agent status
  inside sh -c "restorecon -Rv -F /root; setenforce 1"
  with_key root
}

selinux_undo() {
  inside keypair-agent undo
  with_password root
  refused with_key root
}

# Told, not judged: what a policy denies besides is not this agent's to say.
selinux_denied() {
  local denied
  denied=$(inside sh -c "ausearch -m avc,user_avc -i 2>/dev/null | grep -E 'keypair|sshd|ssh |matchpathcon' || true")
  echo "$denied"
  inside sh -c "ausearch -m avc -i 2>/dev/null | grep -o 'denied .*' | sed 's/pid=[0-9]*//; s/ino=[0-9]*//' | sort | uniq -c | sort -rn | head -60" || true
  saw "$(grep -c 'comm=keypair' <<<"$denied" || true) for the agent"
}
