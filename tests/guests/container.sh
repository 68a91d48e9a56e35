# Containers that allow less: of a user of the host's (a user namespace), and without CAP_SYS_ADMIN, where no namespace can
# be made and sshd is asked over a pipe. Sourced by suites.sh.

scene_container() {
  try "container without CAP_SYS_ADMIN" container_bare
  try "bare: attach with no, over the pipe" container_attach
  try "bare: addresses decide: LOCKOUT_GUARD" container_addresses
  try "bare: AllowUsers names another: LOCKOUT_GUARD" container_refused
}

container_bare() {
  GUEST_OPTIONS="--drop-capability=CAP_SYS_ADMIN --tmpfs=/run/lock" installed_guest
  # What enters from outside, as this does, is not held to it.
  [ $((0x$(inside sed -n 's/^CapBnd:\t//p' /proc/1/status) >> 21 & 1)) = 0 ] || fail "namespaces can be made"
  with_password root
}

# KP-10.3.
container_attach() {
  attach no || { last_result; return 1; }
  with_key root
  no_passwords
  last_result
  saw "$(last_result | sed 's/.*"trial":{"key":"\([a-zA-Z]*\)".*/trial: \1/')"
  case $(last_result) in *'"trial":{"key":"accepted",'*) ;; *) return 1 ;; esac
}

container_addresses() {
  inside keypair-agent password-auth yes
  detach
  container_with "AllowUsers root@10.0.0.0/8 u root@127.0.0.0/8"
  case $(last_result) in *'"reason":"LOCKOUT_GUARD"'*'depends on addresses'*) ;; *) return 1 ;; esac
  saw "$(last_result | sed 's/.*"message":"\([^"]*\)".*/\1/')"
}

container_refused() {
  container_with "AllowUsers u"
  case $(last_result) in *'"reason":"LOCKOUT_GUARD"'*40-allow.conf*'"trial":{"key":"refused"'*) ;; *) return 1 ;; esac
  attach no
  with_key root
}

container_with() { # LINE: with it an attach is refused
  inside sh -c 'echo "$1" >/etc/ssh/sshd_config.d/40-allow.conf; systemctl reload ssh' sh "$1"
  if attach no; then fail "attached"; fi
  inside sh -c 'rm /etc/ssh/sshd_config.d/40-allow.conf; systemctl reload ssh'
  last_result
  with_password root
}
