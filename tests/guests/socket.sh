# ssh started by a socket: Accept=yes has an sshd a connection and no listener, Accept=no a service that systemd's
# socket feeds. Sourced by suites.sh.

scene_socket() {
  try "ssh.socket in place of ssh.service" socket_activated
  try "socket: attach with no; key in, passwords not" socket_attach
  try "socket: passwords on, off; detach" socket_again
}

socket_activated() {
  installed_guest
  inside systemctl disable --now ssh.service
  inside systemctl enable --now ssh.socket
  saw "Accept=$(property Accept ssh.socket)"
  with_password root
  with_password u
}

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
