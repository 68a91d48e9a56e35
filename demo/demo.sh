#!/usr/bin/env bash
# The main job, seen with one's own eyes: a private sshd on loopback, the control plane, the agent; a key is bound
# with passWordAuth "no", lets in, and is taken away again. It needs no root, touches nobody's ~/.ssh and leaves
# nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

user=$(id -un)
home=$(getent passwd "$user" | cut -d: -f6)
folder=
pids=()

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'
else bold='' green='' red='' dim='' plain=''; fi

now() { date +%s%3N; }
step_number=0
step() { step_number=$((step_number + 1)); title=$1; begun=$(now); }
saw() { printf '%s%2d  %-46s%s %s%s %s(%d ms)%s\n' "$bold" "$step_number" "$title" "$plain" "$green" "$1$plain" "$dim" $(($(now) - begun)) "$plain"; }
fail() {
  printf '%s%2d  %s: %s%s\n' "$red" "$step_number" "${title:-the demo}" "$1" "$plain" >&2
  for log in agent.log control-plane.log sshd.log; do
    [ -z "$folder" ] || [ ! -s "$folder/$log" ] || { echo "--- $log" >&2; tail -n 5 "$folder/$log" >&2; }
  done
  exit 1
}

cleanup() {
  local status=$? pid
  trap - EXIT
  trap '' INT TERM HUP
  for pid in ${pids[@]+"${pids[@]}"}; do kill "$pid" 2>/dev/null || true; done
  for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" 2>/dev/null || true; done
  [ -z "$folder" ] || rm -rf "$folder"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# StrictModes wants every directory on the way to the key to be root's or the user's, and nobody else's to write.
accepted() {
  local path=$1 owner mode
  while :; do
    read -r owner mode < <(stat -Lc '%u %a' "$path") || return 1
    { [ "$owner" = 0 ] || [ "$owner" = "$(id -u)" ]; } && [ $((8#$mode & 022)) = 0 ] || return 1
    [ "$path" != / ] || return 0
    path=$(dirname "$path")
  done
}

make_folder() {
  local base
  for base in /run "${XDG_RUNTIME_DIR:-}" "$home" "${XDG_CACHE_HOME:-}"; do
    [ -n "$base" ] && [ -d "$base" ] && [ -w "$base" ] && accepted "$(realpath "$base")" || continue
    folder=$(mktemp -d "$(realpath "$base")/keypair-agent-demo.XXXXXX") && return 0
  done
  fail "no folder that sshd's StrictModes accepts: neither /run nor $home is $user's alone to write"
}

wait_for() { # WHAT COMMAND...: another process is waited for, and not for ever
  local what=$1 end=$(($(now) + 20000)); shift
  until "$@"; do
    [ "$(now)" -lt "$end" ] || fail "waited in vain for $what"
    sleep 0.05
  done
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

api() { # METHOD PATH BODY: one call of the platform's API, by bash alone
  local response
  exec 3<>"/dev/tcp/127.0.0.1/$api_port"
  printf '%s /v1/regions/cn-north-1/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' \
    "$1" "$2" ${#3} "$3" >&3
  response=$(cat <&3)
  exec 3<&-
  printf '%s\n' "${response##*$'\r\n\r\n'}"
}

client() { # OPTION...: the real ssh client, with no configuration, agent or known host of the user's
  ssh -F none -p "$ssh_port" -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none -o ControlPath=none \
    -o StrictHostKeyChecking=no -o "UserKnownHostsFile=$folder/known_hosts" "$@"
}
offered() {
  { client -v -o PreferredAuthentications=none "$user@127.0.0.1" true 2>&1 || true; } |
    sed -n 's/.*Authentications that can continue: //p' | tr -d '\r' | head -n 1
}
logs_in() { client -o LogLevel=ERROR -i "$folder/key" "$user@127.0.0.1" 'echo "$USER"' 2>"$folder/ssh.err"; }

bash demo/install-tools.sh sshd ssh ssh-keygen
echo "building (once)"
cargo build --quiet -p keypair-agent -p keypair-controlplane
binaries=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/debug
begun_all=$(now)

title="a private folder"
make_folder
mkdir "$folder/keys" "$folder/sshd_config.d"
chmod 700 "$folder" "$folder/keys"

step "sshd on a free loopback port, StrictModes on"
ssh-keygen -q -t ed25519 -N '' -f "$folder/host_key"
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd # sshd's own, of the system: it refuses to start without
for _ in 1 2 3 4 5; do
  ssh_port=$((20000 + RANDOM % 20000))
  ! answers "$ssh_port" || continue
  cat >"$folder/sshd_config" <<CONFIG
Include $folder/sshd_config.d/*.conf
Port $ssh_port
ListenAddress 127.0.0.1
HostKey $folder/host_key
PidFile $folder/sshd.pid
AuthorizedKeysFile $folder/keys/%u
StrictModes yes
UsePAM no
PermitRootLogin yes
CONFIG
  "$(command -v sshd)" -D -e -f "$folder/sshd_config" 2>"$folder/sshd.log" &
  sshd=$!
  pids+=("$sshd")
  started() { answers "$ssh_port" || ! kill -0 "$sshd" 2>/dev/null; }
  wait_for "sshd" started
  kill -0 "$sshd" 2>/dev/null && break
done
kill -0 "$sshd" 2>/dev/null || fail "sshd does not start"
wait_for "sshd's pid file" test -s "$folder/sshd.pid"
saw "127.0.0.1:$ssh_port, keys of $user in $folder/keys"

step "the control plane"
"$binaries/keypair-controlplane" serve --api 127.0.0.1:0 --metadata 127.0.0.1:0 --instance i-demo \
  >"$folder/control-plane.out" 2>"$folder/control-plane.log" &
pids+=($!)
wait_for "the control plane" test -s "$folder/control-plane.out"
api_port=$(sed -n 's/.*"api":"http:\/\/127.0.0.1:\([0-9]*\)".*/\1/p' "$folder/control-plane.out")
metadata=$(sed -n 's/.*"i-demo":"\([^"]*\)".*/\1/p' "$folder/control-plane.out")
saw "API on port $api_port, metadata at $metadata"

step "the agent, a process of its own"
echo 3.0.1042 >"$folder/componentInfo.cfg"
cat >"$folder/config.toml" <<CONFIG
metadata_url   = "$metadata"
target_user    = "$user"
component_info = "$folder/componentInfo.cfg"
state_dir      = "$folder/state"
run_dir        = "$folder/run"
[sshd]
binary   = "$(command -v sshd)"
config   = "$folder/sshd_config"
pid_file = "$folder/sshd.pid"
CONFIG
"$binaries/keypair-agent" run --config "$folder/config.toml" 2>"$folder/agent.log" &
pids+=($!)
polls() { "$binaries/keypair-agent" status --config "$folder/config.toml" >"$folder/status"; }
wait_for "the agent to poll" polls
saw "pid ${pids[-1]}, $(head -n 1 "$folder/status")"

step "before: what sshd offers"
before=$(offered)
case ",$before," in *,password,*) saw "$before" ;; *) fail "no password login: $before" ;; esac

step "before: the key is refused"
ssh-keygen -q -t ed25519 -N '' -C demo -f "$folder/key"
! logs_in >/dev/null || fail "it lets in"
saw "$(tail -n 1 "$folder/ssh.err")"

step "import the key pair my-test"
answer=$(api POST keypairs:import "{\"keyName\":\"my-test\",\"publicKey\":\"$(cat "$folder/key.pub")\"}")
case $answer in *keyFingerprint*) saw "$(sed 's/.*"keyFingerprint":"\([^"]*\)".*/\1/' <<<"$answer")" ;; *) fail "$answer" ;; esac

step 'attach it with passWordAuth "no"'
answer=$(api POST keypairs/my-test:attach '{"instanceIds":["i-demo"],"passWordAuth":"no"}')
case $answer in *'"successInstanceId":["i-demo"]'*) saw "successInstanceId: i-demo" ;; *) fail "$answer" ;; esac

step "log in with the private key"
name=$(logs_in) || fail "$(cat "$folder/ssh.err")"
saw "in as ${name:-$user}"

step "after: what sshd offers"
after=$(offered)
case ",$after," in *,password,* | *,keyboard-interactive,*) fail "passwords are still offered: $after" ;; *,publickey,*) saw "$after" ;; *) fail "$after" ;; esac

step "detach the key pair"
answer=$(api POST keypairs/my-test:detach '{"instanceIds":["i-demo"]}')
case $answer in *'"successInstanceId":["i-demo"]'*) saw "successInstanceId: i-demo" ;; *) fail "$answer" ;; esac

step "after: the key is refused"
! logs_in >/dev/null || fail "it still lets in"
saw "$(tail -n 1 "$folder/ssh.err")"

printf '\n%sdone%s in %d ms: every step was seen, and nothing stays behind\n' "$bold$green" "$plain" $(($(now) - begun_all))
