# sshd beside its unit, and systemd's own jobs while a command is in flight: the process that listens is asked, told and
# proven, whatever systemd says of it (KP-6.22). Sourced by suites.sh.

scene_units() {
  try "units: masked while it runs" unit_masked
  try "units: started by hand" unit_by_hand
  try "units: by another service; with and without a reload" unit_of_another_name
  try "units: below a supervisor" unit_supervised
  try "units: the agent stopped while a command is in flight" unit_stop_in_flight
  try "units: daemon-reexec and daemon-reload all the time" unit_reexec
  try "units: masked and unmasked, its process listens" unit_inactive
  try "units: the package removed while a command is in flight" unit_remove_in_flight
}

sshd_ends() { # the one that wrote the pid file
  local pid
  pid=$(inside cat /run/sshd.pid) && inside kill "$pid" && wait_for 10 "sshd's end" inside sh -c "! kill -0 $pid 2>/dev/null"
}

# Both ways: done, in effect, proven, and without a word against the only sshd.
both_ways() {
  local setting result
  for setting in no yes no; do
    result=$(inside keypair-agent password-auth $setting) || { echo "$result"; fail "password-auth $setting"; }
    echo "$result"
    jq -e '.status == "succeeded" and [.warnings[].reason] - ["PASSWORD_ONLY_ACCOUNTS"] == []' <<<"$result" || fail "password-auth $setting: $(jq -c '[.reason, .warnings]' <<<"$result")"
    jq -e '.changed == false or (.proof.methods | length) > 0' <<<"$result" || fail "no proof"
    with_key root
    if [ $setting = yes ]; then with_password root; else no_passwords; fi
  done
  inside keypair-agent password-auth yes >/dev/null
  detach
  attach no
  with_key root
  no_passwords
}

# Late: a systemd that has forgotten its process ends, and the guest with it, when that process does (seen with 252).
unit_inactive() {
  # Whether systemd forgets its process depends on when it collects the masked unit.
  for _ in $(seq 10); do
    inside systemctl mask ssh
    inside systemctl unmask ssh
    [ "$(property ActiveState ssh)" = active ] || break
  done
  saw "$(property ActiveState ssh)"
  both_ways
  [ "$(property ActiveState ssh)" != failed ]
}

unit_masked() {
  installed_guest
  attach yes
  inside systemctl mask ssh
  saw "$(property LoadState ssh), $(property ActiveState ssh)"
  both_ways
  detach
  inside systemctl unmask ssh
  # systemd may have forgotten its process, and may end with it (seen with 247 and 252): a boot brings order.
  cloud_stop
  guest_reboot "$GUEST"
  cloud_start
  # It may have asked before there was a service, and asks again after up to a minute.
  wait_for 90 "the agent's first poll" healthy
  attach yes
}

unit_by_hand() {
  inside systemctl stop ssh
  inside sh -c 'mkdir -p /run/sshd; exec setsid /usr/sbin/sshd'
  wait_for 10 "sshd by hand" inside sh -c 'ss -ltn | grep -q ":22 "'
  both_ways
  # It cannot start, and is tried again and again: it is on its way for ever.
  inside systemctl start ssh >/dev/null 2>&1 || true
  saw "then $(property ActiveState ssh)"
  both_ways
  inside systemctl stop ssh
  sshd_ends
}

unit_of_another_name() {
  local reload
  for reload in '' 'ExecReload=/bin/kill -HUP $MAINPID'; do
    inside sh -c "cat >/etc/systemd/system/mysshd.service <<'E'
[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D
$reload
E
systemctl daemon-reload; systemctl restart mysshd"
    wait_for 10 "mysshd" inside sh -c 'ss -ltn | grep -q ":22 "'
    both_ways
    [ "$(property ActiveState mysshd)" = active ]
  done
  inside systemctl stop mysshd
}

unit_supervised() {
  inside systemd-run --quiet --unit=supervisor sh -c 'mkdir -p /run/sshd; while :; do /usr/sbin/sshd -D; sleep 0.2; done'
  wait_for 10 "the supervisor's sshd" inside sh -c 'ss -ltn | grep -q ":22 "'
  both_ways
  inside systemctl stop supervisor
  inside rm /etc/systemd/system/mysshd.service
  inside systemctl daemon-reload
  inside systemctl reset-failed
  inside systemctl start ssh
  both_ways
}

# From the moment on that the agent has said what it received.
in_flight() { # COMMAND...: while a command is in flight
  local seen
  inside keypair-agent password-auth yes >/dev/null
  detach
  seen=$(received)
  api POST keypairs/my-test:attach "{\"instanceIds\":[\"$INSTANCE\"],\"passWordAuth\":\"no\"}" >"$RUN/in-flight-$SUITE" 2>&1 &
  wait_for 20 "the command to be received" more_received "$seen"
  "$@"
}
received() { log_of_agent | grep -c 'received: attach' || true; }
more_received() { [ "$(received)" -gt "$1" ]; }

settled() { # nothing open, and what is in effect is what the state says
  local state
  state=$(inside cat /var/lib/keypair-agent/state.json)
  jq -e '.intent == null' <<<"$state" || fail "an intent is open"
  if inside grep -q 'BEGIN keypair-agent' /root/.ssh/authorized_keys; then with_key root; else refused with_key root; fi
  if [ "$(inside sshd -T | sed -n 's/^passwordauthentication //p')" = yes ]; then with_password root; else no_passwords; fi
}

# KP-6.23.
unit_stop_in_flight() {
  local begun took
  begun=$(now)
  in_flight inside systemctl stop keypair-agent
  took=$(($(now) - begun))
  saw "stopped after $took ms"
  settled
  inside systemctl start keypair-agent
  wait || true
  wait_for 30 "the agent" healthy
  with_key root
  no_passwords
  log_of_agent | tail -n 20
  ! log_of_agent | grep 'did not end within'
}

unit_reexec() {
  local setting count=0
  inside systemd-run --quiet --unit=reexec sh -c 'while :; do systemctl daemon-reexec; systemctl daemon-reload; sleep 2; done'
  for setting in yes no yes no yes no yes no; do
    inside keypair-agent password-auth $setting >"$RUN/reexec-$SUITE" || { cat "$RUN/reexec-$SUITE"; fail "the $count. command"; }
    count=$((count + 1))
  done
  wait_for 30 "its end" inside systemctl stop reexec
  saw "$count commands"
  with_key root
  no_passwords
}

unit_remove_in_flight() {
  in_flight inside dpkg --remove keypair-agent
  wait || true
  settled
  saw "password login $(inside sshd -T | sed -n 's/^passwordauthentication //p')"
}
