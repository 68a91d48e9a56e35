# A kernel of the guest's own, which enforces what nspawn's does not: IPAddressDeny. Sourced by suites.sh.

scene_address_filter() {
  try "the guest" filter_guest
  try "install the .deb: enabled, active" filter_install
  try "systemd-analyze security (2.5 or lower)" exposure
  try "check: an attach with no would be accepted" filter_check
  try "attach with no, over the metadata address" attach_no
  try "the key logs in as root" key_root
  try "passwords are refused, root and u" passwords_off
  try "the proof in the result" proof_in_result
  try "detach: the key no longer lets in" detach_root
  try "setPasswordAuth yes: passwords let in again" filter_passwords
  try "another address, from the unit's sandbox" other_address
  try "another metadata_url: the unit gets no answer" other_url
  try "undo, then check --image" undo_image
  try "the journal is readable, without key text" journal
}

filter_guest() {
  guest_up "$GUEST" bookworm "$BACKEND"
  cloud_start 60
  saw "$(versions)" "Linux $(inside uname -r)"
}

filter_install() { install_fresh; }

exposure() {
  local said
  said=$(inside systemd-analyze security --no-pager keypair-agent)
  echo "$said" | grep -v '✓'
  saw "$(sed -n 's/.*exposure level for keypair-agent.service: \([0-9.]*\) .*/\1/p' <<<"$said")"
  inside systemd-analyze security --no-pager --threshold=25 keypair-agent >/dev/null
}

filter_check() { inside keypair-agent check; inside keypair-agent status; }

filter_passwords() { # by the running unit, in its sandbox: the setting goes with an attach
  attach no
  no_passwords
  detach
  attach yes
  with_password root
  with_password u
  passwords_on
  detach
}

# The same request under the unit's own filter, and without one.
other_address() {
  local allow
  allow=$(property IPAddressAllow)
  [ "$(property IPAddressDeny)" = "0.0.0.0/0 ::/0" ] || [ "$(property IPAddressDeny)" = "::/0 0.0.0.0/0" ]
  echo "allowed: $allow"
  if reach 169.254.169.15:22 "$allow"; then fail "reached through the filter"; fi
  reach 169.254.169.15:22 ""
  reach "$METADATA_ADDRESS:80" "$allow"
  saw "no answer"
}
reach() { # ADDRESS:PORT ALLOWED: is a connection made?
  local filter=()
  [ -z "$2" ] || filter=(-p IPAddressDeny=any -p "IPAddressAllow=$2")
  inside systemd-run --quiet --wait --pipe "${filter[@]}" timeout 4 bash -c "exec 3<>/dev/tcp/${1/:/\/}"
}

other_url() { # sshd's port answers, though not HTTP: without the filter that is what the agent would say
  local said
  set_metadata_url "http://169.254.169.15:22/metadata/latest"
  wait_for 40 "the agent to say how the channel fails" channel_fails
  said=$(log_of_agent | grep 'the channel fails' | tail -n 1)
  saw "${said##*: }"
  case $said in *"timed out"* | *"not permitted"* | *"no answer"*) ;; *) return 1 ;; esac
  set_configuration ''
}
set_metadata_url() {
  inside sh -c 'cp -n /etc/keypair-agent/config.toml /root/config.toml
    echo "metadata_url = \"$1\"" >/etc/keypair-agent/config.toml' sh "$1"
  inside journalctl --rotate --vacuum-time=1s >/dev/null
  inside systemctl restart keypair-agent
}
channel_fails() { log_of_agent | grep -q 'the channel fails'; }
