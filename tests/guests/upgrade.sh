# Upgrade in place, and back, with what was bound. Sourced by suites.sh.

scene_upgrade() {
  try "the package before: attach with no" upgrade_before
  try "upgrade: another process, the same binding" upgrade_now
  try "downgrade: the same binding" downgrade
  try "a newer state: commands get IO_ERROR" newer_state
  try "a newer state: status, its remedy" newer_state_status
  try "undo helps: attach works again" newer_state_undo
}

upgrade_before() {
  installed_guest "$PREVIOUS"
  attach no
  with_key root
  saw "$(inside dpkg-query -W -f '${Version}' keypair-agent)"
}

replaced_by() { # VERSION: pid, binding and component before and after
  local pid state
  pid=$(property MainPID)
  state=$(inside sha256sum /var/lib/keypair-agent/state.json)
  install_package "$1"
  wait_for 20 "the agent's first poll" healthy
  [ "$(property ActiveState)" = active ]
  [ "$(property MainPID)" != "$pid" ]
  [ "$(inside dpkg-query -W -f '${Version}' keypair-agent)" = "$1" ]
  [ "$(inside sha256sum /var/lib/keypair-agent/state.json)" = "$state" ]
  inside keypair-agent status | grep 'bound .*my-test'
  with_key root
  no_passwords
  saw "pid $pid, then $(property MainPID)"
  saw "component $(inside sed -n 's/^version *= *//p' $COMPONENT)"
}
# KP-3.36.
upgrade_now() { replaced_by "$VERSION"; }
downgrade() { replaced_by "$PREVIOUS"; }

# KP-7.8.
newer_state() {
  local before answer
  before=$(inside sh -c 'sha256sum /root/.ssh/authorized_keys /etc/ssh/sshd_config.d/*')
  inside systemctl stop keypair-agent
  # The format a later version would write: that its number is higher is all that this one can know of it.
  inside sed -i 's/"version": *1,/"version":99,/' /var/lib/keypair-agent/state.json
  inside grep -q '"version":99' /var/lib/keypair-agent/state.json
  inside systemctl start keypair-agent
  answer=$(api POST keypairs/my-test:detach "{\"instanceIds\":[\"$INSTANCE\"]}")
  echo "$answer"
  inside journalctl -u keypair-agent --no-pager -o cat | tail -n 5
  tail -n 3 "$(folder "$GUEST")/cloud.log"
  case $answer in *"\"failInstanceId\":[\"$INSTANCE\"]"*) ;; *) return 1 ;; esac
  grep IO_ERROR "$(folder "$GUEST")/cloud.log"
  saw IO_ERROR
  [ "$(inside sh -c 'sha256sum /root/.ssh/authorized_keys /etc/ssh/sshd_config.d/*')" = "$before" ]
  with_key root
  no_passwords
}

newer_state_status() {
  local said status
  said=$(inside keypair-agent status) && status=0 || status=$?
  echo "$said"
  [ $status = 1 ]
  saw "exit 1" "$(grep -o 'keypair-agent undo' <<<"$said" | head -n 1)"
  grep -q 'keypair-agent undo' <<<"$said"
}

newer_state_undo() {
  inside keypair-agent undo
  refused with_key root
  with_password root
  # The cloud still believes the key bound: what `undo` did was not its doing.
  cloud_stop
  cloud_start 90
  attach no
  wait_for 20 "the agent's health" healthy
  with_key root
  no_passwords
}
