# The lab: Debian guests with systemd as PID 1, a real sshd with PAM, and nothing but loopback. Sourced by suites.sh,
# which runs in a PID and a mount namespace of its own: whatever is started here ends with it.
#
#   guest_up NAME SUITE nspawn|qemu    boots a fresh copy         guest_exec NAME COMMAND...   as root, inside
#     ... qemu disk                    one that outlives its process
#   guest_start NAME; guest_wait NAME  the same in two steps      guest_net NAME COMMAND...    the host's program, in its network
#   GUEST_OPTIONS=... guest_up         nspawn's, besides
#   LAB_WITH=package guest_up          of a root file system that has this package besides
#   guest_reboot NAME                  shut down, boot again      guest_copy NAME FILE PATH
#   guest_cut NAME                     the power goes: of qemu's own disk, what was not written to it is lost
#   guest_down NAME                    gone, with its files
#
# In both kinds the metadata address leads to a program that runs in the guest's network (guest_net) or, in nspawn,
# inside. In qemu that network is the one around the guest: its 127.0.0.1 is the guest's 169.254.169.254, and port
# 2222 there leads to the guest's sshd.

GUEST_PASSWORD=guest-password # of root, and of u
METADATA_ADDRESS=169.254.169.254

now() { date +%s%3N; }
folder() { echo "$RUN/guests/$1"; }
backend_of() { cat "$(folder "$1")/backend"; }
pid_of() { cat "$(folder "$1")/pid"; }

wait_for() { # SECONDS WHAT COMMAND...: polls until COMMAND succeeds
  local end=$(($(now) + $1 * 1000)) what=$2; shift 2
  until "$@"; do
    [ "$(now)" -lt "$end" ] || { echo "waited in vain for $what" >&2; return 1; }
    sleep 0.1
  done
}

# --- root file systems, built once a suite -------------------------------------------------------------------

# SUITE nspawn|qemu, LAB_WITH=packages besides -> the folder (nspawn) or the folder of disk, kernel and initrd (qemu).
# SUITE+selinux has SELinux.
root_of() {
  local made=$CACHE/$1-$2-$LAB_FORM${LAB_WITH:+-$LAB_WITH} packages=systemd-sysv,dbus,libpam-systemd,openssh-server,openssh-client,iproute2,procps,curl
  [ -z "${LAB_WITH:-}" ] || packages+=,$LAB_WITH
  [ "$2" = nspawn ] || packages+=,udev,linux-image-cloud-amd64,initramfs-tools
  case $1 in *+selinux) packages+=,selinux-basics,selinux-policy-default,policycoreutils-python-utils,auditd ;; esac
  if [ ! -e "$made" ]; then
    echo "building $1 for $2, once" >&2
    rm -rf "$made.new"
    mkdir -p "$CACHE"
    mmdebstrap --quiet --variant=minbase --include="$packages" "${1%+*}" "$made.new" >&2 || return 1
    furnish "$made.new" "$2"
    case $1 in *+selinux) label "$made.new" || return 1 ;; esac
    [ "$2" = nspawn ] || disk_from "$made.new"
    mv "$made.new" "$made"
  fi
  echo "$made"
}
LAB_FORM=2 # another number has every root file system built anew

furnish() { # ROOT BACKEND: what the tests find in every guest
  local root=$1 etc=$1/etc systemd=$1/etc/systemd/system
  rm -f "$etc"/ssh/ssh_host_*
  : >"$etc/machine-id"
  echo guest >"$etc/hostname"
  chroot "$root" useradd -m -s /bin/bash u
  printf '%s\n' "root:$GUEST_PASSWORD" "u:$GUEST_PASSWORD" | chroot "$root" chpasswd
  # Debian keeps root's password out of sshd. Here it lets in, so that its refusal later is the agent's doing.
  echo "PermitRootLogin yes" >"$etc/ssh/sshd_config.d/50-lab.conf"
  cat >"$systemd/lab-host-keys.service" <<'UNIT'
[Unit]
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
[Install]
WantedBy=multi-user.target
UNIT
  cat >"$systemd/lab-network.service" <<UNIT
[Unit]
DefaultDependencies=no
Before=network-pre.target network.target
Wants=network-pre.target
[Service]
Type=oneshot
$(if [ "$2" = nspawn ]; then
    echo "ExecStart=/bin/ip link set lo up"
    echo "ExecStart=/bin/ip address add $METADATA_ADDRESS/32 dev lo"
  else
    echo "ExecStart=/bin/sh -c 'ip link set lo up; until ip link set eth0 up; do sleep 0.1; done'"
    echo "ExecStart=/bin/ip address add 169.254.169.15/24 dev eth0"
    echo "ExecStart=/bin/ip route add default via $METADATA_ADDRESS"
  fi)
[Install]
WantedBy=sysinit.target
UNIT
  # qemu's way in for guest_exec: a root shell beside sshd, reached from the network around the guest alone.
  cat >"$systemd/lab-shell.socket" <<'UNIT'
[Socket]
ListenStream=2323
Accept=yes
[Install]
WantedBy=sockets.target
UNIT
  cat >"$systemd/lab-shell@.service" <<'UNIT'
[Service]
ExecStart=-/bin/bash
StandardInput=socket
StandardError=inherit
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
UNIT
  chroot "$root" systemctl --quiet enable lab-host-keys.service lab-network.service
  [ "$2" = nspawn ] || chroot "$root" systemctl --quiet enable lab-shell.socket
}

# Every file has its label from the start, as after an autorelabel; the kernel is told to enforce.
label() { # ROOT
  sed -i 's/^SELINUX=.*/SELINUX=enforcing/' "$1/etc/selinux/config"
  # The lab's own shell is an administrator's.
  sed -i '/^ExecStart=/aSELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023' \
    "$1/etc/systemd/system/lab-shell@.service"
  echo "security=selinux selinux=1 enforcing=1" >"$1/boot/append"
  # setfiles goes by /proc/self/fd; what is not labelled itself is passed over.
  mount -t proc proc "$1/proc" || return 1
  chroot "$1" setfiles -F /etc/selinux/default/contexts/files/file_contexts / >&2
  umount "$1/proc"
}

disk_from() { # FOLDER: a root file system becomes a disk with its kernel beside it
  mv "$1" "$1.root"
  mkdir "$1"
  cp "$1.root"/boot/vmlinuz-* "$1/vmlinuz"
  cp "$1.root"/boot/initrd.img-* "$1/initrd"
  cat "$1.root/boot/append" >"$1/append" 2>/dev/null || true
  truncate -s 2G "$1/disk.raw"
  mkfs.ext4 -q -d "$1.root" "$1/disk.raw"
  rm -rf "$1.root"
}

# --- nspawn ---------------------------------------------------------------------------------------------------

# nspawn makes its guest's control group beside its own, under a fixed name: two guests need two places.
nspawn_start() {
  local folder=$1
  mkdir -p "$CGROUP/${folder##*/}"
  (
    echo "$BASHPID" >"$CGROUP/${folder##*/}/cgroup.procs"
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    exec setsid systemd-nspawn --quiet --register=no --keep-unit --private-network --console=passive --boot \
      --hostname=guest $(cat "$folder/options" 2>/dev/null) -D "$folder/root"
  ) </dev/null >>"$folder/console" 2>&1 &
  echo $! >"$folder/pid"
}

leader_of() { # NAME -> the guest's PID 1 as this side numbers it
  local leader
  read -r leader _ <"/proc/$(pid_of "$1")/task/$(pid_of "$1")/children" 2>/dev/null || true
  [ -n "${leader:-}" ] && echo "$leader"
}

# --- qemu -----------------------------------------------------------------------------------------------------

# The image's disk is never written: what the guest writes is gone with the process. A disk of its own keeps what reached
# it, and the page cache inside is all that is lost.
qemu_start() {
  local folder=$1 image disk
  image=$(cat "$folder/image")
  disk="file=$image/disk.raw,snapshot=on"
  [ ! -e "$folder/disk.raw" ] || disk="file=$folder/disk.raw,cache=writeback"
  # The network around it outlives it: what runs there stays.
  if [ ! -e "$folder/network" ]; then
    unshare --net sh -c 'ip link set lo up; echo up; exec sleep infinity' </dev/null >"$folder/network.up" 2>&1 &
    echo $! >"$folder/network"
    wait_for 10 "the network" grep -q up "$folder/network.up"
  fi
  setsid nsenter -t "$(cat "$folder/network")" -n \
    qemu-system-x86_64 -machine q35 -accel tcg -cpu max -smp 2 -m 1024 -nographic -monitor none \
    -kernel "$image/vmlinuz" -initrd "$image/initrd" -append "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 $(cat "$image/append")" \
    -drive "$disk,format=raw,if=virtio" \
    -netdev "user,id=n0,net=169.254.169.0/24,host=$METADATA_ADDRESS,hostfwd=tcp:127.0.0.1:2222-169.254.169.15:22,hostfwd=tcp:127.0.0.1:2323-169.254.169.15:2323" \
    -device virtio-net-pci,netdev=n0 </dev/null >>"$folder/console" 2>&1 &
  echo $! >"$folder/pid"
}

# One line to the shell inside, then its output up to the line that carries the exit status.
qemu_exec() {
  local name=$1 mark="status-$RANDOM$RANDOM:"; shift
  # shellcheck disable=SC2016
  nsenter -t "$(network_of "$name")" -n -- timeout 300 bash -c '
    exec 3<>/dev/tcp/127.0.0.1/2323 || exit 125
    printf "%s\n" "$1" >&3
    while IFS= read -r line <&3; do
      case $line in *"$2"*) printf %s "${line%%"$2"*}"; exit "${line##*"$2"}" ;; esac
      printf "%s\n" "$line"
    done
    exit 125' qemu_exec "( $(printf '%q ' "$@") ) </dev/null 2>&1; echo \"$mark\$?\"; exit" "$mark" 2>/dev/null || return
}

# --- both -----------------------------------------------------------------------------------------------------

guest_exec() {
  local name=$1 leader; shift
  if [ "$(backend_of "$name")" = qemu ]; then
    qemu_exec "$name" "$@"
  else
    leader=$(leader_of "$name") || return 125
    nsenter -t "$leader" -a -- env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
  fi
}

network_of() { # NAME -> a process in its network
  if [ "$(backend_of "$1")" = qemu ]; then cat "$(folder "$1")/network"; else leader_of "$1"; fi
}

guest_net() {
  local pid name=$1; shift
  pid=$(network_of "$name") || return 125
  nsenter -t "$pid" -n -- "$@"
}

guest_copy() { # NAME FILE PATH
  if [ "$(backend_of "$1")" = nspawn ]; then
    install -D -m "$(stat -c %a "$2")" "$2" "$(folder "$1")/root$3"
  else
    # shellcheck disable=SC2016
    base64 -w0 "$2" | nsenter -t "$(network_of "$1")" -n -- timeout 300 bash -c '
      exec 3<>/dev/tcp/127.0.0.1/2323
      printf "mkdir -p %q; base64 -d >%q <<E; chmod %s %q; echo; exit\n" "${1%/*}" "$1" "$2" "$1" >&3
      fold -w 4000 >&3; printf "\nE\n" >&3
      read -r _ <&3' copy "$3" "$(stat -c %a "$2")"
  fi
}

guest_up() { # NAME SUITE BACKEND [disk]
  local name=$1 folder image begun
  begun=$(now)
  image=$(root_of "$2" "$3") || return 1
  folder=$(folder "$name")
  mkdir -p "$folder"
  echo "$3" >"$folder/backend"
  echo "$image" >"$folder/image"
  echo "${GUEST_OPTIONS:-}" >"$folder/options"
  [ "$3" = qemu ] || cp -a --reflink=auto "$image" "$folder/root"
  [ -z "${4:-}" ] || cp --sparse=always --reflink=auto "$image/disk.raw" "$folder/disk.raw"
  guest_start "$name"
  guest_wait "$name"
  echo "$2 ($3) is up after $(($(now) - begun)) ms"
}

guest_start() { "$(backend_of "$1")_start" "$(folder "$1")"; }

guest_wait() {
  wait_for 600 "the guest to come up" is_up "$1" && ! ended "$(pid_of "$1")" && return 0
  tail -n 20 "$(folder "$1")/console" >&2
  return 1
}
is_up() { # a failed unit is what a test may look for: it is up all the same. Where the guest died, waiting is over
  ended "$(pid_of "$1")" && return 0
  case $(guest_exec "$1" systemctl is-system-running 2>/dev/null) in running | degraded) return 0 ;; esac
  # An emulated guest is slow, and every question makes it slower.
  [ "$(backend_of "$1")" = nspawn ] || sleep 2
  return 1
}

guest_off() { # shuts it down (of qemu's, a disk of its own alone outlives it)
  guest_exec "$1" systemctl poweroff >/dev/null 2>&1 || true
  wait_for 300 "the guest to shut down" ended "$(pid_of "$1")"
}
ended() { ! kill -0 "$1" 2>/dev/null; }

guest_reboot() { guest_off "$1"; guest_start "$1"; guest_wait "$1"; }

guest_cut() {
  local pid
  pid=$(pid_of "$1")
  kill -9 "$pid"
  wait "$pid" 2>/dev/null || true
  wait_for 10 "the guest's end" ended "$pid"
}

guest_down() {
  local folder pid leader
  folder=$(folder "$1")
  [ -e "$folder/pid" ] || { rm -rf "$folder"; return 0; }
  pid=$(cat "$folder/pid")
  if leader=$([ "$(backend_of "$1")" = qemu ] || leader_of "$1"); then kill -9 ${leader:+"$leader"} 2>/dev/null || true; fi
  kill -9 "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  wait_for 10 "the guest's end" ended "$pid" || true
  [ ! -e "$folder/network" ] || kill "$(cat "$folder/network")"
  rm -rf --one-file-system "$folder"
}
