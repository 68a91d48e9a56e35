# The cloud's side of a guest, and its owner's: the reference control plane in the guest's network, and the real ssh
# client. Sourced by suites.sh.

INSTANCE=i-guest

# The control plane is the repository's own: its API is what an owner uses. Tests that need a setPasswordAuth or a result use
# `keypair-agent apply`, which is the same code, and the agent's state file.
cloud_start() { # [SECONDS that an attach waits]
  local address=$METADATA_ADDRESS
  [ "$BACKEND" = nspawn ] || address=127.0.0.1
  : >"$(folder "$GUEST")/cloud.out"
  nsenter -t "$(network_of "$GUEST")" -n -- "$CONTROL_PLANE" serve --api 127.0.0.1:8480 --metadata "$address:80" --instance $INSTANCE \
    --attach-wait "${1:-20}" >"$(folder "$GUEST")/cloud.out" 2>>"$(folder "$GUEST")/cloud.log" </dev/null &
  echo $! >"$(folder "$GUEST")/cloud.pid"
  wait_for 20 "the control plane" test -s "$(folder "$GUEST")/cloud.out"
  api POST keypairs:import "{\"keyName\":\"my-test\",\"publicKey\":\"$(cat "$RUN/key.pub")\"}" >/dev/null
}

cloud_stop() {
  local pid
  pid=$(cat "$(folder "$GUEST")/cloud.pid")
  kill "$pid"
  wait_for 10 "the control plane's end" ended "$pid"
}

api() { # METHOD PATH BODY
  guest_net "$GUEST" curl -sS --max-time 150 -X "$1" "http://127.0.0.1:8480/v1/regions/cn-north-1/$2" -d "$3"
}

attach() { # yes|no
  took "$(api POST keypairs/my-test:attach "{\"instanceIds\":[\"$INSTANCE\"],\"passWordAuth\":\"$1\"}")"
}
detach() { took "$(api POST keypairs/my-test:detach "{\"instanceIds\":[\"$INSTANCE\"]}")"; }
took() { # ANSWER: succeeded, or why not
  case $1 in *"\"successInstanceId\":[\"$INSTANCE\"]"*) return 0 ;; esac
  echo "$1" >&2
  tail -n 3 "$(folder "$GUEST")/cloud.log" >&2
  return 1
}

inside() { guest_exec "$GUEST" "$@"; }

install_package() { # VERSION
  local file=keypair-agent_$1_amd64.deb
  guest_copy "$GUEST" "$PACKAGES_FOLDER/$file" "/root/$file"
  inside env DEBIAN_FRONTEND=noninteractive dpkg -i --force-downgrade --force-confdef "/root/$file"
  inside rm "/root/$file"
}

installed_guest() { # a guest with the package, and the control plane beside it
  guest_up "$GUEST" "$([ "$SUITE" = qemu ] && echo bookworm || echo "${SUITE#points-}")" "$BACKEND"
  cloud_start
  install_package "${1:-$VERSION}"
  wait_for 20 "the agent's first poll" healthy
}
healthy() { inside keypair-agent status >/dev/null 2>&1; }

property() { inside systemctl show -P "$1" "${2:-keypair-agent}"; }
# What was bound last, in the agent's own words: the newest result in its state.
last_result() { inside grep -o '"result": *"{.*}"' /var/lib/keypair-agent/state.json | tail -n 1 | sed 's/\\"/"/g'; }
log_of_agent() { inside journalctl -u keypair-agent -o cat --no-pager; }

# Each login comes from another address of loopback: newer sshd makes an address that failed wait.
client() { # USER SSH...
  local port=22 user=$1; shift
  [ "$BACKEND" = nspawn ] || port=2222
  guest_net "$GUEST" env -u SSH_AUTH_SOCK "$@" -F none -p $port \
    -b "127.$((RANDOM % 200 + 1)).$((RANDOM % 200)).$((RANDOM % 200 + 1))" -o StrictHostKeyChecking=no \
    -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=30 "$user@127.0.0.1" id -un
}
with_key() { # USER
  local user
  user=$(client "$1" ssh -i "$RUN/key" -o IdentitiesOnly=yes -o BatchMode=yes) && [ "$user" = "$1" ]
}
with_password() { # USER
  local user
  user=$(client "$1" sshpass -p "$GUEST_PASSWORD" ssh -o PubkeyAuthentication=no -o NumberOfPasswordPrompts=1 \
    -o PreferredAuthentications=password,keyboard-interactive) && [ "$user" = "$1" ]
}
refused() { # COMMAND...: it was sshd that said no, and nothing else went wrong
  local said
  if said=$("$@" 2>&1); then fail "let in: $*"; return 1; fi
  case $said in *"Permission denied"*) echo "$* -> $said" ;; *) fail "$*: $said"; return 1 ;; esac
}
no_passwords() { refused with_password root; refused with_password u; }
