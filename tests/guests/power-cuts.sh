# The power goes while commands come: again and again, each time at a random moment of a stream of them. Each of the
# suites power-1, power-2, … is a guest of its own. Sourced by suites.sh.
#
# The guest's disk is a file of this machine, and qemu is killed. So what the guest had not yet written to its disk, its
# page cache above all, is lost as in a power cut. What it had written is there, flushed or not: that a disk lies about
# its cache is not tried here.
#
#   CUTS=15    how many a guest      SEED=1    of the moments and of where the stream begins; the default is the clock's

scene_power_cuts() {
  local number
  CUTS=${CUTS:-15}
  SEED=$((${SEED:-$(date +%s)} % 32768))
  RANDOM=$((SEED + ${SUITE#power-}))
  try "the guest, with a disk of its own" cuts_begin
  for number in $(seq "$CUTS"); do
    MOMENT=$((RANDOM % 1000))
    TURN=$((RANDOM % 7))
    try "$(printf 'cut %02d' "$number")" one_cut
  done
  for WHAT in finished undone re-delivered "nothing in flight"; do try "cuts whose command was found $WHAT" counted; done
}
counted() { saw "$(grep -cx "$SUITE $WHAT" "$RUN/cuts" || true) of $CUTS"; }

STATE=/var/lib/keypair-agent/state.json
KEY_FILE=/root/.ssh/authorized_keys
# What a boot does besides, and nobody here needs.
SPARED="systemd-logind.service e2scrub_reap.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount
  sys-kernel-tracing.mount sys-fs-fuse-connections.mount getty@tty1.service serial-getty@ttyS0.service
  systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-binfmt.service kmod-static-nodes.service
  modprobe@.service systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-random-seed.service
  systemd-journal-flush.service e2scrub_all.timer fstrim.timer apt-daily.timer
  apt-daily-upgrade.timer dpkg-db-backup.timer systemd-tmpfiles-clean.timer"

cuts_begin() {
  local key begun
  guest_up "$GUEST" bookworm "$BACKEND" disk
  HERE=$(folder "$GUEST")
  for key in own other; do ssh-keygen -q -t ed25519 -N '' -C "$key@laptop" -f "$HERE/$key"; done
  cp "$RUN/key" "$RUN/key.pub" "$HERE"
  cloud_start 60
  install_package "$VERSION"
  { echo "# mine"; cat "$HERE/own.pub"; } >"$HERE/authorized_keys"
  inside sh -c "mkdir -p -m 700 /root/.ssh; cat >$KEY_FILE <<'E'
$(cat "$HERE/authorized_keys")
E
cat >/usr/local/bin/look <<'E'
#!/bin/sh
# What there is, into a folder of this name.
mkdir -p /run/\$1 /run/sshd
cd /run/\$1
cp $STATE state
cp $KEY_FILE key-file
find /etc/ssh /root ${STATE%/*} -name '.keypair-agent-*' >temporaries
sshd -t >sshd 2>&1 && echo valid >>sshd
E
chmod 755 /usr/local/bin/look
cat >/etc/systemd/system/at-boot.service <<'E'
[Unit]
Before=keypair-agent.service ssh.service
After=lab-host-keys.service
[Service]
Type=oneshot
ExecStart=/usr/local/bin/look at-boot
[Install]
WantedBy=multi-user.target
E
systemctl --quiet enable at-boot.service
systemctl --quiet mask $(echo $SPARED)"
  wait_for 60 "the agent's first poll" healthy
  begun=$(now)
  attach yes
  detach
  echo $(($(now) - begun)) >"$HERE/two-commands"
  inside sync
  saw "seed $SEED" "two commands take $(cat "$HERE/two-commands") ms"
}

# --- the stream -----------------------------------------------------------------------------------------------

# An owner who never rests. What is refused, since something else is bound, is so at once, and the next one is asked.
stream() { # TURN: where in the round he begins
  local turn=$1
  while [ -e "$HERE/streaming" ]; do
    case $((turn % 7)) in
      0) bind my-test no ;;
      1 | 4 | 6) api POST keypairs/my-test:detach "{\"instanceIds\":[\"$INSTANCE\"]}" ;;
      2)
        api POST keypairs:import "{\"keyName\":\"other\",\"publicKey\":\"$(cat "$HERE/other.pub")\"}"
        bind other yes
        ;;
      3) # Over a key pair that was deleted an attach is a replace.
        api DELETE keypairs/other ''
        bind my-test no
        ;;
      5) bind my-test yes ;;
    esac
    turn=$((turn + 1))
  done
}
bind() { api POST "keypairs/$1:attach" "{\"instanceIds\":[\"$INSTANCE\"],\"passWordAuth\":\"$2\"}"; }

cloud_log() { sed 's/\x1b\[[0-9;]*m//g' "$(folder "$GUEST")/cloud.log"; }
# The oldest command without a result; nothing where there is none.
waiting() { guest_net "$GUEST" curl -fsS "http://127.0.0.1/metadata/latest/keypair/command?wait=0" | jq -r .commandId; }
nothing_waits() {
  local id
  id=$(waiting) && [ -z "$id" ]
}
reports() { cloud_log | grep -c 'the agent reported' || true; }
has_reported() { [ "$(reports)" -gt "$1" ] || ended "$(pid_of "$GUEST")"; }

# --- a cut ----------------------------------------------------------------------------------------------------

one_cut() {
  local moment streaming reports handed_out waits
  HERE=$(folder "$GUEST")
  # Within the time that two commands take here.
  moment=$((MOMENT * $(cat "$HERE/two-commands") / 1000))
  : >"$HERE/streaming"
  stream "$TURN" >"$HERE/stream.log" 2>&1 &
  streaming=$!
  sleep "$((moment / 1000)).$(printf %03d $((moment % 1000)))"
  guest_cut "$GUEST"
  rm "$HERE/streaming"
  reports=$(reports)
  handed_out=$(cloud_log | grep 'handed out' | tail -n 1 | sed 's/.*command=\([^ ]*\).*/\1/')
  waits=$(waiting)
  guest_start "$GUEST"
  # The guest is slow, and asking it makes it slower: it is waited for from outside.
  wait_for 600 "the agent to be back" has_reported "$reports"
  wait "$streaming" || true
  wait_for 300 "the queue to be empty" nothing_waits
  wait_for 60 "the agent to be healthy" healthy
  look
  as_the_disk_had_it "$waits" "$handed_out" "$moment"
  as_the_state_says
  answered_once
}

# What there was before the agent began, and what there is.
look() {
  inside sh -c 'look now; cd /run/now; sshd -T >effective; journalctl -b -u keypair-agent -o cat --no-pager >journal
    tar -C /run -cz at-boot now | base64 -w0' | base64 -d | tar -C "$HERE" -xz
  tail -n 30 "$HERE/now/journal"
  jq 'del(.results)' "$HERE/at-boot/state" "$HERE/now/state"
}

as_the_disk_had_it() { # COMMAND THAT WAITED, COMMAND HANDED OUT LAST, MOMENT
  local intent kept what state=$HERE/at-boot/state
  jq -e '.version == 1' "$state"
  intent=$(jq -r '.intent.command.id // empty' "$state")
  kept=$(jq -r '.undelivered.commandId // empty' "$state")
  if [ -n "$intent" ]; then
    [ "$intent" = "$1" ] || fail "$intent was open, $1 waits"
    grep 'a command was interrupted' "$HERE/now/journal"
    what=undone
  elif [ -n "$kept" ]; then
    what=finished
  else
    jq -e --arg id "$1" 'all(.results[]; .commandId != $id)' "$state" || fail "$1: its result is not under way"
    what="nothing in flight"
    if [ -n "$1" ] && [ "$1" = "$2" ]; then what=re-delivered; fi
  fi
  echo "$SUITE $what" >>"$RUN/cuts"
  saw "$what" "at $3 ms" "$(wc -l <"$HERE/at-boot/temporaries") temporaries"
  grep -x valid "$HERE/at-boot/sshd"
  his_lines <"$HERE/at-boot/key-file" | cmp - "$HERE/authorized_keys"
}
his_lines() { sed '/^# BEGIN keypair-agent/,/^# END keypair-agent/d'; }

as_the_state_says() {
  local passwords bound said state=$HERE/now/state
  jq -e '.intent == null and .undelivered == null' "$state"
  # On a slow machine sshd may still be starting, and a command is refused for it. No other reason is known here.
  jq -e 'all(.results[].result | fromjson; .reason == null or .reason == "SSHD_RELOAD_UNSAFE")' "$state"
  [ ! -s "$HERE/now/temporaries" ]
  grep -x valid "$HERE/now/sshd"
  passwords=$(jq -r .passWordAuth "$state")
  grep -x "passwordauthentication $passwords" "$HERE/now/effective"
  said=$(jq -r '[.results[].result | fromjson | select(.reason == null and .passWordAuth) | .passWordAuth] | last' "$state")
  [ "$said" = "$passwords" ]
  his_lines <"$HERE/now/key-file" | cmp - "$HERE/authorized_keys"
  bound=$(jq -r '.binding.keyName // empty' "$state")
  [ "$(grep -c '^# BEGIN' "$HERE/now/key-file" || true)" = "$([ -z "$bound" ] && echo 0 || echo 1)" ]
  # The owner's own key always; of the two others, the one that is bound.
  lets_in own
  case $bound in
    my-test) lets_in key; refused lets_in other ;;
    other) lets_in other; refused lets_in key ;;
    *) refused lets_in key; refused lets_in other ;;
  esac
  if [ "$passwords" = yes ]; then with_password root; else refused with_password root; fi
}
lets_in() { # KEY
  local said
  said=$(client root ssh -i "$HERE/$1" -o IdentitiesOnly=yes -o BatchMode=yes 2>&1) && [ "$said" = root ] && return
  echo "$said"
  return 1
}

# Every command that was ever queued has one result, and nobody was sent another.
answered_once() {
  local id
  for id in $(cloud_log | grep ': queued' | grep -o 'command=[^ ]*'); do
    [ "$(cloud_log | grep -F "$id" | grep -c 'succeeded\|failed in the guest')" = 1 ] || fail "$id: not one result"
  done
  [ "$(grep -c '(409)' "$HERE/now/journal" || true)" = 0 ]
}
