# The distribution's cloud-init beside the agent at first boots: what it writes into sshd's configuration, and the user
# that it creates. Sourced by suites.sh.
#
# Each boot is a first one for cloud-init (a NoCloud seed with another instance id) and for the agent (no state). The
# control plane is a unit inside (boot.sh) with an attach queued. Half of the boots have an sshd_config without an
# Include, where the agent has its block at the top and cloud-init edits the file itself.

FIRST_BOOTS=${FIRST_BOOTS:-8}

scene_first_boot() {
  try "cloud-init and the agent: no ordering cycle" first_boot_guest
  try "first boots: image no, user-data yes, attach no" first_boots_no
  try "first boots: image yes, user-data no, attach yes" first_boots_yes
}

first_boot_guest() {
  LAB_WITH=cloud-init guest_up "$GUEST" "$SUITE" "$BACKEND"
  install_package "$VERSION"
  inside sh -c "systemctl --quiet stop keypair-agent
    sed -i '1i target_user = \"cloudy\"' /etc/keypair-agent/config.toml
    rm -rf /var/lib/keypair-agent/*
    cp /etc/ssh/sshd_config /etc/sshd_config.image
    cp /etc/cloud/cloud.cfg /etc/cloud.cfg.image
    printf 'network: {config: disabled}\n' >/etc/cloud/cloud.cfg.d/99-lab.cfg
    printf 'datasource_list: [NoCloud]\n' >/etc/cloud/cloud.cfg.d/98-lab.cfg"
  cycles
  saw "cloud-init $(inside dpkg-query -W -f '${Version}' cloud-init)"
}

# systemd breaks a cycle by leaving a unit out, and says so.
cycles() {
  local said
  said=$(inside systemd-analyze verify default.target 2>&1 | grep -i 'ordering cycle\|break' || true)
  [ -z "$said" ] || fail "$said"
  said=$(inside journalctl -b -o cat --no-pager | grep -i 'ordering cycle' || true)
  [ -z "$said" ] || fail "$said"
}

seed() { # NUMBER PASSWORDS(true|false): the image as new, for a new instance
  inside sh -c "set -e
    cloud-init clean --logs >/dev/null
    userdel -rf cloudy 2>/dev/null || true
    rm -f /etc/ssh/sshd_config.d/*keypair-agent.conf /etc/ssh/sshd_config.d/50-cloud-init.conf
    rm -rf /var/lib/keypair-agent/*
    cp /etc/sshd_config.image /etc/ssh/sshd_config
    [ $(($1 % 2)) = 0 ] || sed -i '/^Include/d' /etc/ssh/sshd_config
    sed -i '/^#*\(PasswordAuthentication\|KbdInteractiveAuthentication\|ChallengeResponseAuthentication\)/d' /etc/ssh/sshd_config
    if [ $2 = true ]; then printf 'PasswordAuthentication no\nChallengeResponseAuthentication no\n'; else printf 'PasswordAuthentication yes\n'; fi >>/etc/ssh/sshd_config
    mkdir -p /var/lib/cloud/seed/nocloud
    printf 'instance-id: i-seed-$2-$1\n' >/var/lib/cloud/seed/nocloud/meta-data
    cat >/var/lib/cloud/seed/nocloud/user-data <<'C'
#cloud-config
ssh_pwauth: $2
users:
  - name: cloudy
    shell: /bin/bash
    lock_passwd: false
    plain_text_passwd: $GUEST_PASSWORD
C
    sync"
}

# KP-6.17, KP-8.16.
first_boots_no() { first_boots no true; }
first_boots_yes() { first_boots yes false; }
first_boots() { # ASKED(yes|no) USER-DATA(true|false)
  local number wrote=0
  cloud_inside yes "$1"
  for number in $(seq "$FIRST_BOOTS"); do
    seed "$number" "$2"
    guest_reboot "$GUEST"
    wait_for 120 "cloud-init's end" inside test -e /run/cloud-init/result.json
    wait_for 60 "the proof" proved
    echo "boot $number: $(last_result)"
    inside sh -c 'grep -ri "^ *PasswordAuthentication" /etc/ssh/sshd_config /etc/ssh/sshd_config.d/'
    case $(last_result) in *'"status":"succeeded"'*'"user":"cloudy"'*) ;; *) return 1 ;; esac
    # cloud-init said its word, and lost.
    [ "$2" = true ] && word=yes || word=no
    ! inside grep -rqi "^ *PasswordAuthentication *$word" /etc/ssh/sshd_config /etc/ssh/sshd_config.d/ || wrote=$((wrote + 1))
    # What it wrote may be live only with its restart of sshd.
    inside systemctl restart ssh
    with_key cloudy
    if [ "$1" = yes ]; then with_password cloudy; else refused with_password cloudy; fi
    cycles
  done
  saw "$FIRST_BOOTS boots" "cloud-init's line stands in $wrote"
  [ "$wrote" = "$FIRST_BOOTS" ]
}

# The proof that the command could not take is made up for.
proved() { inside journalctl -b -u keypair-agent -o cat --no-pager | grep -q 'the running sshd does what was asked'; }
