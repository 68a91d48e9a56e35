# What was queued while the instance was stopped, and what the agent costs a boot. Sourced by suites.sh.
#
# What runs beside the guest with guest_net starts too late for a boot. So the control plane is a unit inside, up
# before the agent; it has the instance as stopped, imports the key and attaches it at once, which queues the command.
# Nobody's clock is held against another's: all times are the guest's own monotonic ones.

scene_boot() {
  try "boot, empty queue: agent ready; then sshd" boot_empty
  try "boot, command queued: bound; then sshd" boot_queued
  try "boot, command queued: first connection" boot_first_connection
  try "boot, the address refuses: sshd held back" boot_refused
  try "boot, no way to the address: sshd held back" boot_no_way
  try "boot, the address swallows: sshd held back" boot_silent
}

cloud_inside() { # yes|no: whether a command is queued; its passWordAuth
  guest_copy "$GUEST" "$CONTROL_PLANE" /usr/local/bin/keypair-controlplane
  inside sh -c "cat >/etc/instances.toml <<'E'
[[instance]]
id = \"$INSTANCE\"
region = \"cn-north-1\"
os_type = \"linux\"
status = \"stopped\"
hostname = \"guest\"
address = \"$METADATA_ADDRESS\"
E
cat >/usr/local/bin/queue <<'E'
#!/bin/sh -e
api=http://127.0.0.1:8480/v1/regions/cn-north-1/keypairs
curl -fsS --retry 40 --retry-delay 0 --retry-max-time 10 --retry-connrefused \"\$api:import\" -d '{\"keyName\":\"my-test\",\"publicKey\":\"$(cat "$RUN/key.pub")\"}'
[ $1 = no ] || curl -fsS \"\$api/my-test:attach\" -d '{\"instanceIds\":[\"$INSTANCE\"],\"passWordAuth\":\"${2:-no}\"}'
E
chmod 755 /usr/local/bin/queue
cat >/etc/systemd/system/test-cloud.service <<'E'
[Unit]
After=network.target
Before=keypair-agent.service
[Service]
ExecStart=/usr/local/bin/keypair-controlplane serve --metadata $METADATA_ADDRESS:80 --instances /etc/instances.toml
ExecStartPost=/usr/local/bin/queue
[Install]
WantedBy=multi-user.target
E
systemctl --quiet enable test-cloud.service"
}

boot() { # off, on, up again; and who said what first
  guest_off "$GUEST"
  guest_start "$GUEST"
  first_answer >"$RUN/first-$SUITE" 2>&1 &
  guest_wait "$GUEST"
  wait $!
  agent_begun=$(milliseconds InactiveExitTimestampMonotonic)
  agent_ready=$(milliseconds ActiveEnterTimestampMonotonic)
  sshd_begun=$(milliseconds InactiveExitTimestampMonotonic ssh)
  sshd_ready=$(milliseconds ActiveEnterTimestampMonotonic ssh)
  echo "agent $agent_begun to $agent_ready, sshd $sshd_begun to $sshd_ready (ms since boot)"
  inside journalctl -b -o short-monotonic --no-pager -u keypair-agent -u ssh -u test-cloud
}
milliseconds() { echo $(($(property "$@") / 1000)); }

# Asks from the start of the boot on what sshd offers; its first answer is what the first connection met.
first_answer() {
  local said end=$(($(now) + 60000))
  while [ "$(now)" -lt "$end" ]; do
    said=$(guest_net "$GUEST" ssh -F none -o BatchMode=yes -o PreferredAuthentications=none -o ConnectTimeout=5 \
      -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR root@127.0.0.1 true 2>&1) || true
    case $said in *"Permission denied ("*) echo "$said"; return 0 ;; esac
    sleep 0.02
  done
  return 1
}

boot_empty() {
  installed_guest
  cloud_inside no
  boot
  saw "ready in $((agent_ready - agent_begun)) ms" "sshd $((sshd_begun - agent_ready)) ms later"
  # Not measurable: less than a boot's own differences. A busy machine is given a second.
  [ $((agent_ready - agent_begun)) -lt 1000 ]
  [ "$sshd_begun" -ge "$agent_ready" ]
  grep -q 'publickey,password' "$RUN/first-$SUITE"
}

# KP-3.17, KP-8.16.
boot_queued() {
  local bound listening
  cloud_inside yes
  boot
  bound=$(entry keypair-agent 'succeeded: .*my-test')
  listening=$(entry ssh 'Server listening')
  saw "bound at $((bound - agent_begun))" "sshd $((sshd_begun - agent_begun))" "listens $((listening - agent_begun)) ms"
  [ "$bound" -le "$sshd_begun" ]
  [ "$bound" -lt "$listening" ]
  case $(last_result) in *'"trial":{"key":"accepted",'*) ;; *) last_result; return 1 ;; esac
  helper_is_well
}
entry() { # UNIT PATTERN -> when it was logged, in milliseconds since the boot
  inside journalctl -b -u "$1" -o short-monotonic --no-pager | grep -m 1 "$2" | sed 's/^\[ *\([0-9]*\)\.\([0-9]\{3\}\).*/\1\2/; s/^0*//'
}

boot_first_connection() { # of the boot above
  local offered
  offered=$(sed 's/.*(\(.*\)).*/\1/' "$RUN/first-$SUITE" | tail -n 1)
  saw "offers $offered"
  [ "$offered" = publickey ]
  with_key root
  no_passwords
}

# What the agent holds sshd back for, as systemd-analyze has it too. A busy machine is given a part of it again.
held_back() { # LEAST MOST, in milliseconds
  local held
  boot
  held=$((sshd_begun - agent_begun))
  inside systemd-analyze critical-chain --no-pager ssh.service
  saw "$held ms" "systemd-analyze: $(inside systemd-analyze blame --no-pager | awk '$NF == "keypair-agent.service" { print $1 }')"
  [ "$held" -ge "$1" ]
  [ "$held" -lt "$2" ]
}

# KP-3.17.
boot_refused() { # the address is this host's own, and nobody listens there
  inside systemctl --quiet disable test-cloud.service
  held_back 900 4500
  with_key root
  no_passwords
}

# KP-3.17.
boot_no_way() { # no link but loopback, and no route
  inside systemctl --quiet disable lab-network.service
  held_back 1900 4500
  inside systemctl --quiet enable lab-network.service
}

boot_silent() { # a link whose other end is a wall: nothing comes back, not even a refusal
  inside sh -c "cat >/etc/systemd/system/lab-silence.service <<'U'
[Unit]
DefaultDependencies=no
After=lab-network.service
Before=network-pre.target network.target
Wants=network-pre.target
[Service]
Type=oneshot
ExecStart=/bin/ip address del $METADATA_ADDRESS/32 dev lo
ExecStart=/bin/ip link add wall type veth peer name behind
ExecStart=/bin/ip address add 169.254.169.1/24 dev wall
ExecStart=/bin/ip link set behind up
ExecStart=/bin/ip link set wall up
ExecStart=/bin/ip neighbour add $METADATA_ADDRESS lladdr 02:00:00:00:00:01 dev wall nud permanent
[Install]
WantedBy=sysinit.target
U
systemctl --quiet enable lab-silence.service"
  # The whole time, and no more: a slow service looks the same.
  held_back 4000 6500
  inside systemctl --quiet disable lab-silence.service
}
