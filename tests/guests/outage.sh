# Killed, and without its service. Sourced by suites.sh.

scene_outage() {
  try "killed with SIGKILL: back by itself" killed
  # Two minutes once are enough: it is the same code in every suite.
  [ "$SUITE" != bookworm ] || try "the service away for two minutes: later applied" away
}

killed() {
  local pid begun
  installed_guest
  pid=$(property MainPID)
  begun=$(now)
  inside kill -9 "$pid"
  wait_for 20 "systemd to bring it back" back "$pid"
  saw "after $(($(now) - begun)) ms"
  [ "$(property NRestarts)" = 1 ]
  attach no
  with_key root
  no_passwords
}
back() { [ "$(property ActiveState)" = active ] && [ "$(property MainPID)" != "$1" ] && healthy; }

away() {
  local begun gone begun_again
  detach
  cloud_stop
  begun=$(uptime_of)
  wait_for 30 "status to say so" unhealthy
  wait_for 150 "two minutes" long_gone "$begun"
  [ "$(property ActiveState)" = active ]
  [ "$(property NRestarts)" = 1 ] # the kill above
  gone=$(($(uptime_of) - begun))
  cloud_start 120
  begun_again=$(uptime_of)
  attach no
  saw "away $gone s" "applied $(($(uptime_of) - begun_again)) s later"
  with_key root
  no_passwords
  log_of_agent | tail -n 6
}
uptime_of() { inside cut -d . -f 1 /proc/uptime; }
long_gone() { [ $(($(uptime_of) - $1)) -ge 120 ]; }
unhealthy() { ! healthy; }
