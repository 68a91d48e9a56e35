# The main job: an owner binds a key through the platform's API, and logs in. Sourced by suites.sh.

scene_login() {
  try "before: passwords let in root and u" before_passwords
  try "attach with no, over the metadata address" attach_no
  try "the key logs in as root" key_root
  try "passwords are refused, root and u" passwords_off
  try "systemctl status says what is bound now" status_bound
  try "the proof in the result" proof_in_result
  try "the trial in the result, by the helper" trial_in_result
  try "the sandboxes: exposure of agent and helper" exposure_of_both
  try "AllowUsers names another: LOCKOUT_GUARD" refused_by_trial
  try "the helper's socket stopped: LOCKOUT_GUARD" without_socket
  try "setPasswordAuth yes: passwords let in again" passwords_on
  try "detach: the key no longer lets in" detach_root
  try "target_user = u: the key logs in as u" key_u
  try "the journal is readable, without key text" journal
  try "undo, then check --image" undo_image
}

before_passwords() {
  installed_guest
  with_password root
  with_password u
  refused with_key root
}

attach_no() {
  local begun; begun=$(now)
  attach no
  saw "$(($(now) - begun)) ms"
}

key_root() { with_key root; }

passwords_off() { no_passwords; saw "refused"; }

status_bound() {
  local line
  line=$(inside systemctl status --no-pager keypair-agent | sed -n 's/^ *Status: "\(.*\)"$/\1/p')
  saw "$line"
  case $line in *"my-test bound"*"password login off"*) ;; *) return 1 ;; esac
}

proof_in_result() {
  local result
  result=$(last_result)
  echo "$result"
  saw "$(sed 's/.*"proof":{"key":"\([a-z]*\)","methods":\[\([^]]*\)\].*/\1, \2/' <<<"$result" | tr -d '"')"
  case $result in *'"proof":{"key":"accepted","methods":["publickey"],'*) ;; *) return 1 ;; esac
}

# The daemon's sandbox allows no namespaces: the helper unit has to have asked.
trial_in_result() {
  local result
  result=$(last_result)
  echo "$result"
  case $result in *'"trial":{"key":"accepted","file":"/root/.ssh/authorized_keys",'*) ;; *) return 1 ;; esac
  saw "$(sed 's/.*"trial":{"key":"\([a-z]*\)","file":"\([^"]*\)","line":\([0-9]*\),"methods":\[\([^]]*\)\].*/\1 at \2:\3, \4/' <<<"$result")"
  helper_is_well
}

# It answered, nothing was forbidden to it, and nothing of it is left.
helper_is_well() {
  local log
  log=$(inside journalctl -b -o cat --no-pager -u 'keypair-agent-trial@*')
  echo "$log"
  [ -n "$log" ] || fail "the helper never ran"
  absent -iE 'denied|not permitted|status=|killed|core-dump|warning|error|failed' "$log"
  [ -z "$(inside systemctl list-units --all --no-legend 'keypair-agent-trial@*')" ] || fail "a helper is left"
  [ "$(inside pgrep -fc 'trial-helper|sshd -i' || true)" = 0 ] || fail "a process is left"
  [ "$(inside ls /run/keypair-agent | grep -vxE 'lock|status.json|trial.sock')" = "" ] || inside ls /run/keypair-agent
}

exposure_of_both() {
  local unit level
  for unit in keypair-agent.service keypair-agent-trial@x.service; do
    level=$(inside systemd-analyze security --no-pager $unit 2>/dev/null | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
    saw "$level"
    [ $unit != keypair-agent.service ] || [ "${level/./}" -le 25 ]
  done
}

# sshd refuses the key, so passwords stay on.
refused_by_trial() {
  inside keypair-agent password-auth yes
  detach
  inside sh -c 'echo "AllowUsers u" >/etc/ssh/sshd_config.d/40-allow.conf; systemctl reload ssh'
  if attach no; then fail "attached"; fi
  inside sh -c 'rm /etc/ssh/sshd_config.d/40-allow.conf; systemctl reload ssh'
  last_result
  case $(last_result) in *'"reason":"LOCKOUT_GUARD"'*40-allow.conf*'"trial":{"key":"refused"'*) ;; *) return 1 ;; esac
  saw "$(last_result | grep -o '40-allow.conf line [0-9]*' | tail -n 1)"
  with_password root
  attach no
}

# Nobody answers, so passwords stay on; a start of the agent brings the socket back.
without_socket() {
  inside keypair-agent password-auth yes
  detach
  inside systemctl stop keypair-agent-trial.socket
  # The socket's file outlives the unit, and may be gone too.
  for _ in there gone; do
    if attach no; then fail "attached"; fi
    last_result
    case $(last_result) in
      *'"status":"failed"'*'"reason":"LOCKOUT_GUARD"'*'systemctl start keypair-agent-trial.socket'*'"key":"notTaken"'*) ;;
      *) return 1 ;;
    esac
    inside rm -f /run/keypair-agent/trial.sock
  done
  with_password root
  inside systemctl restart keypair-agent
  wait_for 20 "the agent's first poll" healthy
  [ "$(property ActiveState keypair-agent-trial.socket)" = active ]
  attach no
  saw LOCKOUT_GUARD
}

passwords_on() {
  inside sh -c "echo '{\"action\":\"setPasswordAuth\",\"passWordAuth\":\"yes\"}' | keypair-agent apply -" | grep '"status": *"succeeded"'
  with_password root
  with_password u
  with_key root
}

detach_root() {
  detach
  refused with_key root
  with_password root # as the setting was before
  attach no
  detach
  refused with_key root
  no_passwords
  inside keypair-agent password-auth yes
  with_password root
}

key_u() {
  set_configuration 'target_user = "u"'
  attach no
  with_key u
  refused with_key root
  no_passwords
  detach
  refused with_key u
  set_configuration ''
}
set_configuration() {
  inside sh -c 'cp -n /etc/keypair-agent/config.toml /root/config.toml
    { echo "$1"; cat /root/config.toml; } >/etc/keypair-agent/config.toml' sh "$1"
  inside systemctl restart keypair-agent
  wait_for 20 "the agent's first poll" healthy
}

# KP-3.34.
journal() {
  local log
  log=$(log_of_agent)
  echo "$log"
  saw "$(wc -l <<<"$log") lines"
  grep -q 'succeeded: .*my-test' <<<"$log"
  absent "$(cut -d ' ' -f 2 "$RUN/key.pub" | cut -c 30-60)" "$log" # of the key, what no other key has
  absent '[^ -~]' "$log"
}
absent() { # GREP'S ARGUMENTS... TEXT
  if LC_ALL=C grep "${@:1:$#-1}" <<<"${@: -1}"; then fail "found: ${*:1:$#-1}"; fi
}

undo_image() {
  local said status
  attach no
  said=$(inside keypair-agent check --image) && status=0 || status=$?
  echo "$said"
  [ $status = 1 ] || fail "before undo: exit $status"
  inside keypair-agent undo
  said=$(inside keypair-agent check --image) && status=0 || status=$?
  echo "$said"
  [ $status = 0 ] || fail "after undo: exit $status"
  saw "1, then 0"
  refused with_key root
  with_password root
  [ "$(inside sh -c 'ls /etc/ssh/sshd_config.d')" = 50-lab.conf ]
}
