# The guest's clock jumps while commands come, by a day or by more than a year, forwards and backwards, several times a
# command. In qemu: the guests of nspawn share this machine's clock. Sourced by suites.sh.
#
#   JUMPED=20   how many commands

scene_clock() {
  try "the guest" clock_guest
  try "the clock jumps in ${JUMPED:-20} commands: each has one result, none is half" clock_jumps
  try "status, and a login, once it is right again" clock_right
}

clock_guest() {
  guest_up "$GUEST" bookworm "$BACKEND"
  # An emulated guest is slow.
  cloud_start 120
  install_package "$VERSION"
  wait_for 60 "the agent's first poll" healthy
  cat >"$RUN/jump" <<'E'
#!/bin/sh
# From the right time to a wrong one and back; what is right follows the monotonic clock.
began=$(date +%s)
uptime() { cut -d. -f1 /proc/uptime; }
start=$(uptime)
count=0
set_clock() { date -s "@$((began + $(uptime) - start + $1 * 86400))" >/dev/null; }
trap "set_clock 0; exit" TERM
while :; do
  for days in 1 -1 400 -400; do
    set_clock "$days"
    count=$((count + 1))
    echo "$count" >/run/jumps
    sleep 0.2
    set_clock 0
    sleep 0.2
  done
done
E
  chmod 755 "$RUN/jump"
  guest_copy "$GUEST" "$RUN/jump" /usr/local/bin/jump
}

# How many results the service got.
results() { grep -c 'succeeded\|failed in the guest' "$(folder "$GUEST")/cloud.log" || true; }
jumps() { inside cat /run/jumps; }

# KP-3.30.
clock_jumps() {
  local turn results jumps
  inside systemd-run --quiet --unit=jump /usr/local/bin/jump
  wait_for 30 "the first jump" inside test -e /run/jumps
  for turn in $(seq "${JUMPED:-20}"); do
    results=$(results) jumps=$(jumps)
    case $((turn % 4)) in
      1) attach no ;;
      3) attach yes ;;
      *) detach ;;
    esac
    jumps=$(($(jumps) - jumps))
    echo "command $turn: $jumps jumps"
    [ "$jumps" -gt 0 ]
    [ $(($(results) - results)) = 1 ] || fail "command $turn: $(($(results) - results)) results"
    point_settled
    case $((turn % 4)) in
      1) with_key root; no_passwords ;;
      3) with_key root; with_password root ;;
      *) refused with_key root ;;
    esac
  done
  saw "$(jumps) jumps"
}

clock_right() {
  inside systemctl stop jump
  healthy
  detach
  attach no
  with_key root
  no_passwords
}
