# Whatever comes in between at twenty points of a command: it is finished or undone, has one result, and is never half.
# A point is the command's own progress: the n-th of its calls, where strace stops the agent. Sourced by suites.sh.
#
#   POINTS=20   how many points are tried of each kind

scene_points() {
  try "points: what a command calls" points_listed
  try "points: systemctl stop" points_stop
  try "points: kill -9" points_kill
  try "points: SIGSTOP, then SIGCONT" points_sigstop
  try "points: daemon-reexec" points_reexec
  try "points: sshd's unit masked" points_mask
  try "points: the package removed" points_remove
  [ "$SUITE" != points-trixie ] || try "points: soft-reboot" points_soft_reboot
}

# The agent's calls that its children make not, or hardly: a stop in a child is no stop of the agent.
POINT_CALLS='openat2,renameat,renameat2,linkat,unlinkat,fsync,fdatasync,clone3,vfork'

# A process of the guest as this side numbers it.
pid_outside() { # PID inside
  local leader space at
  leader=$(leader_of "$GUEST")
  space=$(readlink "/proc/$leader/ns/pid")
  for at in /proc/[0-9]*; do
    [ "$(readlink "$at/ns/pid" 2>/dev/null)" = "$space" ] || continue
    [ "$(sed -n 's/^NSpid:.*\t//p' "$at/status" 2>/dev/null)" = "$1" ] || continue
    echo "${at#/proc/}"
    return
  done
  return 1
}
agent_outside() { pid_outside "$(property MainPID)"; }

points_listed() {
  local agent tracer
  installed_guest
  agent=$(agent_outside)
  strace -f -qq -o "$RUN/calls-$SUITE" -e trace="$POINT_CALLS" -p "$agent" &
  tracer=$!
  wait_for 10 "strace" is_traced "$agent"
  attach no
  kill "$tracer"
  wait "$tracer" || true
  # The thread of the command is the one that renames. `N CALL` a line, N counted for each call.
  local worker
  worker=$(awk '/renameat/ { print $1; exit }' "$RUN/calls-$SUITE")
  awk -v worker="$worker" '$1 == worker && !/resumed/ { sub(/\(.*/, "", $2); print ++count[$2], $2 }' \
    "$RUN/calls-$SUITE" >"$RUN/all-points-$SUITE"
  awk -v all="$(wc -l <"$RUN/all-points-$SUITE")" -v wanted="${POINTS:-20}" \
    'NR == 1 || int(NR * wanted / all) > int((NR - 1) * wanted / all)' "$RUN/all-points-$SUITE" >"$RUN/points-$SUITE"
  saw "$(wc -l <"$RUN/points-$SUITE") of $(wc -l <"$RUN/all-points-$SUITE") calls"
  [ "$(wc -l <"$RUN/points-$SUITE")" -ge $(( ${POINTS:-20} * 9 / 10 )) ]
}
is_traced() { [ "$(sed -n 's/^TracerPid:\t//p' "/proc/$1/status")" != 0 ]; }
is_stopped() { grep -q '^State:.*[Tt] (' "/proc/$1/status" 2>/dev/null; }
is_answered() { [ "$(answers "$1")" -gt 0 ]; }
stopped_or_answered() { is_stopped "$1" || is_answered "$2"; }

# How many results a command got.
answers() { grep -F "command=$1" "$(folder "$GUEST")/cloud.log" | grep -c 'succeeded\|failed in the guest' || true; }
last_queued() { grep ': queued' "$(folder "$GUEST")/cloud.log" | tail -n 1 | sed 's/.*command=\([^ ]*\).*/\1/'; }
another_is_queued() { [ "$(last_queued)" != "$1" ]; }

# At each point: the agent is stopped there, KIND comes in between, and all must be well afterwards.
at_points() { # FUNCTION
  local calls=0 reached=0 nth call
  while read -r nth call <&3; do
    calls=$((calls + 1))
    at_point "$1" "$nth" "$call" || fail "at $call $nth"
  done 3<"$RUN/points-$SUITE"
  saw "$reached of $calls points, $finished finished at once"
}

at_point() { # FUNCTION NTH CALL
  local agent tracer id before
  echo "--- $1 at $3 $2"
  inside keypair-agent password-auth yes >/dev/null
  wait_for 30 "the agent" healthy
  detach
  agent=$(agent_outside)
  before=$(last_queued)
  strace -f -qq -o /dev/null -e trace="$3" -e inject="$3:signal=SIGSTOP:when=$2" -p "$agent" 2>/dev/null &
  tracer=$!
  wait_for 10 "strace" is_traced "$agent"
  api POST keypairs/my-test:attach "{\"instanceIds\":[\"$INSTANCE\"],\"passWordAuth\":\"no\"}" >/dev/null 2>&1 &
  wait_for 10 "the command to be queued" another_is_queued "$before"
  id=$(last_queued)
  wait_for 60 "the point" stopped_or_answered "$agent" "$id"
  ! is_stopped "$agent" || reached=$((reached + 1))
  kill "$tracer" 2>/dev/null || true
  wait "$tracer" 2>/dev/null || true
  "$1" "$agent" || return 1
  # What was undone comes again.
  wait_for 90 "the result of $id" is_answered "$id"
  wait_for 60 "the agent" healthy
  [ "$(answers "$id")" = 1 ] || fail "$(answers "$id") results of $id"
  point_settled || return 1
  with_key root
  no_passwords
}
reached=0 finished=0

point_settled() {
  local state setting
  state=$(inside cat /var/lib/keypair-agent/state.json)
  jq -e '.intent == null' <<<"$state" >/dev/null || { fail "an intent is open"; return 1; }
  setting=$(inside sshd -T | sed -n 's/^passwordauthentication //p')
  if [ "$setting" = yes ]; then with_password root; else no_passwords; fi || { fail "sshd is not as its files say"; return 1; }
  if inside grep -q 'BEGIN keypair-agent' /root/.ssh/authorized_keys; then with_key root; else refused with_key root; fi || { fail "not as its file says"; return 1; }
  [ -z "$(inside find /root/.ssh /etc/ssh /var/lib/keypair-agent -name '.*tmp*' -o -name '*.keypair-agent-*')" ]
}
goes_on() { kill -CONT "$1" 2>/dev/null || true; }

points_stop() { at_points between_stop; }
between_stop() {
  inside systemctl stop keypair-agent
  point_settled || return 1
  inside systemctl start keypair-agent
}

points_kill() { at_points between_kill; }
between_kill() { kill -9 "$1"; }

points_sigstop() { at_points between_sigstop; }
between_sigstop() {
  inside keypair-agent status >/dev/null 2>&1 || true
  goes_on "$1"
}

points_reexec() { at_points between_reexec; }
between_reexec() {
  inside systemctl daemon-reexec &
  goes_on "$1"
  wait $! || true
  inside systemctl daemon-reload
}

points_mask() { at_points between_mask; }
between_mask() {
  inside systemctl mask ssh
  goes_on "$1"
  wait_for 90 "the result of $(last_queued)" is_answered "$(last_queued)"
  inside systemctl unmask ssh
}

points_remove() { at_points between_remove; }
between_remove() {
  inside dpkg --remove keypair-agent
  point_settled || return 1
  install_package "$VERSION"
}

points_soft_reboot() { at_points between_soft_reboot; }
between_soft_reboot() {
  local boot
  boot=$(inside systemctl show -P UserspaceTimestampMonotonic)
  inside timeout 20 systemctl --no-block soft-reboot || true
  wait_for 90 "the soft reboot" another_userspace "$boot"
  guest_wait "$GUEST"
  guest_net "$GUEST" ip link set lo up
}
another_userspace() {
  local now
  now=$(inside systemctl show -P UserspaceTimestampMonotonic 2>/dev/null) && [ -n "$now" ] && [ "$now" != "$1" ]
}
