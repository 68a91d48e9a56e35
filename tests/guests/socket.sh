# ssh started by a socket: Accept=yes has an sshd a connection and no listener, Accept=no a service that systemd's
# socket feeds. Sourced by suites.sh.

scene_socket() {
  try "ssh.socket in place of ssh.service" socket_activated
  try "socket: attach with no; key in, passwords not" socket_attach
  try "socket: passwords on, off; detach" socket_again
  try "socket: a command queued over a boot" socket_boot
}

socket_activated() {
  installed_guest
  inside systemctl disable --now ssh.service
  inside systemctl enable --now ssh.socket
  saw "Accept=$(property Accept ssh.socket)"
  with_password root
  with_password u
}

# KP-6.23.
socket_attach() {
  attach no
  with_key root
  no_passwords
  [ "$(property ActiveState ssh.socket)" = active ]
  saw "$(last_result | sed 's/.*"proof":{"key":"\([a-zA-Z]*\)".*/proof: \1/')"
  # Each connection has an sshd of its own there, and is asked as any other.
  if [ "$(property Accept ssh.socket)" = yes ]; then
    case $(last_result) in *'"proof":{"key":"accepted"'*) ;; *) last_result; return 1 ;; esac
  fi
}

socket_again() {
  inside keypair-agent password-auth yes
  with_password root
  inside keypair-agent password-auth no
  no_passwords
  detach
  refused with_key root
  no_passwords
  [ "$(property ActiveState ssh.socket)" = active ]
  [ "$(inside systemctl --failed --no-legend --plain | grep -c ssh)" = 0 ]
}

# No sshd runs until somebody comes, and nothing is wrong with that; the proof is taken all the same.
socket_boot() {
  cloud_stop
  inside sh -c 'rm -rf /var/lib/keypair-agent/*'
  cloud_inside yes
  guest_reboot "$GUEST"
  wait_for 60 "the proof" accepted_or_proved
  last_result
  case $(last_result) in *SSHD_NOT_RUNNING* | *'"status":"failed"'*) return 1 ;; esac
  with_key root
  no_passwords
  inside keypair-agent status
}
# With Accept=yes the socket has an sshd for the agent too, within the command; else the first one is asked afterwards.
accepted_or_proved() {
  case $(last_result) in *'"proof":{"key":"accepted"'*) return 0 ;; esac
  proved
}
