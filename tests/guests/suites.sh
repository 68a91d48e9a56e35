# The suites, two at a time, and the table. Runs as the first process of its namespaces: see run.sh.
set -uo pipefail
here=tests/guests
for part in lab report cloud install login boot first-boot socket units upgrade remove container outage address-filter clock rpm power-cuts points selinux; do
  # shellcheck source=/dev/null
  . "$here/$part.sh"
done

# What nspawn leaves in /run (locks) stays in this namespace.
mount -t tmpfs tmpfs /run
ssh-keygen -q -t ed25519 -N '' -C owner@laptop -f "$RUN/key"
mkdir -p "$RUN/guests"
: >"$RUN/results"

wanted() { # NAME LIST: everything is, where the list is empty
  case " ${2:-$1} " in *" $1 "*) ;; *) return 1 ;; esac
}

suite() { # SUITE SCENE...: one after another, each in a guest of its own
  local scene order
  SUITE=$1; shift
  wanted "$SUITE" "${SUITES:-}" || return 0
  BACKEND=nspawn
  case $SUITE in qemu | power-* | selinux) BACKEND=qemu ;; esac
  for scene in "$@"; do
    wanted "$scene" "${SCENES:-}" || continue
    order=$(printf '%s\n' install login boot first-boot socket units upgrade remove container outage address-filter clock rpm power-cuts points selinux | grep -nx "$scene")
    SCENE=${order%%:*} NUMBER=0 BROKEN='' GUEST=$SUITE-$scene
    "scene_${scene//-/_}"
    [ "$SUITE" = rpm ] || guest_down "$GUEST"
  done
}

scenes="install login boot first-boot socket units upgrade remove container"
# shellcheck disable=SC2086
{
  # Two cores: the lane with the slow guest has the fewer others,
  { suite bullseye $scenes outage; suite trixie $scenes outage; suite rpm rpm; } &
  first=$!
  # and bookworm's two minutes of waiting fall into its time.
  { suite bookworm $scenes; suite bookworm outage & suite qemu address-filter clock; wait; } &
  second=$!
}
wait "$first"
wait "$second"
# Half an hour, and only where they are asked for.
case " ${SUITES:-}" in *" power-"*)
  for lane in $SUITES; do suite "$lane" power-cuts & done
  wait
  sort "$RUN/cuts" | uniq -c
  ;;
esac
case " ${SUITES:-}" in *" points-"*)
  for lane in $SUITES; do suite "$lane" points & done
  wait
  ;;
esac
# A quarter of an hour, and the same.
case " ${SUITES:-} " in *" selinux "*) suite selinux selinux ;; esac
table
