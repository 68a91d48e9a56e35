# What is tried, what was seen, and the table of it. Sourced by suites.sh.

# try TITLE FUNCTION: one case. It fails where a command of it fails; `saw` fills its cell.
# Never called in a condition: there `set -e` would not hold in the function.
try() {
  local title=$1 function=$2 cell status verdict log
  NUMBER=$((NUMBER + 1))
  CELL=$RUN/cell-$SUITE-$SCENE-$NUMBER
  log=$CELL.log
  : >"$CELL"
  # Without its guest there is nothing to try.
  [ -z "$BROKEN" ] || function=not_tried
  set +e
  (set -eE; trap 'echo "failed: $BASH_COMMAND (line $LINENO of ${BASH_SOURCE[0]##*/})" >&2' ERR; "$function") >"$log" 2>&1
  status=$?
  cell=$(paste -sd '|' "$CELL" | sed 's/|/, /g')
  if [ $status = 0 ]; then verdict=ok; else verdict=FAIL; fi
  [ "$NUMBER$verdict" != 1FAIL ] || BROKEN=yes
  printf '%s\t%02d%02d\t%s\t%s\t%s\n' "$SUITE" "$SCENE" "$NUMBER" "$title" $verdict "$cell" >>"$RUN/results"
  printf '%-4s %-8s %4d s  %s: %s\n' $verdict "$SUITE" "$SECONDS" "$title" "$cell"
  if [ $verdict = FAIL ] || [ -n "${VERBOSE:-}" ]; then sed 's/^/       | /' "$log"; fi
}

saw() { printf '%s\n' "$@" >>"$CELL"; echo "saw: $*"; }
not_tried() { fail "not tried"; }
fail() { saw "$*"; return 1; }

# A line a thing tried, a column a suite.
table() {
  echo
  sort -s -t "$(printf '\t')" -k2,2 "$RUN/results" | awk -F '\t' -v columns="${SUITES:-bullseye bookworm trixie qemu rpm}" '
    BEGIN { count = split(columns, column, " "); head[0] = "tried" ; width[0] = 5
            for (i = 1; i <= count; i++) { place[column[i]] = i; head[i] = column[i]; width[i] = length(column[i]) } }
    {
      if (!($3 in row)) { row[$3] = ++rows; cell[rows, 0] = $3 }
      text = ($4 == "ok" && $5 != "" ? "" : $4 " ") $5
      if (length(text) > 40) text = substr(text, 1, 38) ".."
      cell[row[$3], place[$1]] = text
      if (length($3) > width[0]) width[0] = length($3)
      if (length(text) > width[place[$1]]) width[place[$1]] = length(text)
      if ($4 == "ok") passed++; else failed++
    }
    END {
      for (i = 0; i <= count; i++) printf "%-*s  ", width[i], head[i]
      print ""
      for (r = 1; r <= rows; r++) {
        for (i = 0; i <= count; i++) printf "%-*s  ", width[i], (cell[r, i] == "" ? "-" : cell[r, i])
        print ""
      }
      printf "\n%d passed, %d failed\n", passed, failed
      exit failed > 0 || passed == 0
    }'
}
