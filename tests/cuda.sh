#!/bin/sh
# What has to be tested on a machine with a GPU, in one command and less than
# 150 s: ops, whole models against the golden files, tape, trainer and
# plug-in, and the method in small with -d cuda, eight programs at a time.  One
# that fails, hangs or dies stops no other.
#
# usage: tests/cuda.sh [-D] [-j JOBS] [-t SECONDS] [-o LOGS] FOLDER
#
# From the top of a checkout, whose tests/golden and demo it reads.  FOLDER is
# what was built, here (".") or on another machine: bin with the programs and
# lpo-cuda.so, build/tests with the tests, and, where this machine lacks some
# of their shared libraries, so with those.  SECONDS: the limit of a program.
# Prints a table; LOGS (or a new folder in /tmp) gets each one's output.
# -D: then the whole demo with DEVICE=cuda, alone and in 100 s at most; its
# aesthetic score has to rise, as it does on the CPU for each seed.
set -u

usage() {
	sed -n 's/^# usage/usage/p' "$0" >&2
	exit 2
}

# One program, its output and its end: in the pool below.
if [ "${1-}" = --one ]; then
	log=$logs/$(echo "$2" | tr / -)
	case $2 in
	# a dozen programs, each of which has to open the device
	cli/*) set -- "$2" sh "tests/$2.t"; limit=$((limit * 2)) ;;
	*) set -- "$2" "$kit/build/tests/$2.t" ;;
	esac
	name=$1
	shift
	start=$(date +%s%N)
	timeout -k 2 "$limit" "$@" > "$log.log" 2>&1 < /dev/null
	status=$?
	echo "$name $status $((($(date +%s%N) - start) / 1000000))" \
	    > "$log.end"
	exit 0
fi

jobs=8 limit=45 demo='' logs=
while getopts Dj:t:o: option; do
	case $option in
	D) demo=1 ;;
	j) jobs=$OPTARG ;;
	t) limit=$OPTARG ;;
	o) logs=$OPTARG ;;
	*) usage ;;
	esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || usage
kit=$(cd "$1" && pwd) || exit 2
logs=${logs:-$(mktemp -d /tmp/lpo-cuda-XXXXXX)}
mkdir -p "$logs" || exit 1
rm -f "$logs"/*.log "$logs"/*.end

export kit limit logs
export BIN="$kit/bin"
export LPO_CUDA_PLUGIN="$kit/bin/lpo-cuda.so"
# The CPU's levels are tested by `make check`, anywhere.
export LPO_LEVEL=cuda
# Threads that wait must not burn the core that another test needs.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
[ ! -d "$kit/so" ] ||
	export LD_LIBRARY_PATH="$kit/so${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

# The longest first.
all='cli/cuda ops/gemm ops/conv ops/attention ops/lora unit/cuda golden/lrm
	unit/lpo_train unit/lpo_ahead golden/unet golden/lora golden/scorers
	ops/norm ops/attention_wide ops/elementwise ops/rows ops/memory
	ops/vmath golden/clip golden/vae golden/lpo_step unit/tape'

# Until all are done, or what cannot even be killed has had its time.
begun=$(date +%s)
echo "$all" | xargs -n 1 -P "$jobs" sh "$0" --one &
pool=$!
while kill -0 $pool 2>/dev/null &&
    [ $(($(date +%s) - begun)) -lt $((limit * 3)) ]; do
	sleep 0.2
done
kill $pool 2>/dev/null

for name in $all; do
	log=$logs/$(echo "$name" | tr / -)
	cat "$log.end" 2>/dev/null || echo "$name 124 0"
	sed 's/^/: /' "$log.log" 2>/dev/null
done | awk -v wall="$(($(date +%s) - begun))" '
function line() {
	if (name == "")
		return
	why = ""
	if (status == 124 || status == 137)
		why = "  timed out"
	else if (status > 128)
		why = "  died of signal " (status - 128)
	else if (status != 0 && bad == 0)
		why = "  exit " status
	else if (!planned)
		why = "  ended early"
	if (why != "" && bad == 0)
		bad = 1
	printf "%-20s %7d %7d %8d %8.1f%s\n", name, good, bad, skipped,
	    ms / 1000, why
	sums[1] += good
	sums[2] += bad
	sums[3] += skipped
}
BEGIN { printf "%-20s %7s %7s %8s %8s\n", "test", "passed", "failed",
    "skipped", "seconds" }
$1 != ":" {
	line()
	name = $1
	status = $2
	ms = $3
	good = bad = skipped = planned = 0
	next
}
$2 == "ok" && /# SKIP/ { skipped++; next }
$2 == "ok" { good++; next }
$2 == "not" && $3 == "ok" { bad++; next }
$2 ~ /^1\.\.[0-9]+$/ { planned = 1 }
END {
	line()
	printf "%-20s %7d %7d %8d %8.1f\n", "all", sums[1], sums[2], sums[3],
	    wall
	exit sums[2] > 0
}'
status=$?

# The failures themselves, a few of each.
for name in $all; do
	log=$logs/$(echo "$name" | tr / -).log
	grep -A 1 '^not ok' "$log" 2>/dev/null | grep '^not ok\|^#' |
	    head -n 12 | sed "s|^|$name: |"
	grep -q '^1\.\.' "$log" 2>/dev/null ||
	    tail -n 3 "$log" 2>/dev/null | sed "s|^|$name, its end: |"
done | cut -c 1-200

# What it makes stays with the logs, but for pictures and encoded pairs.
if [ -n "$demo" ]; then
	start=$(date +%s)
	DEVICE=cuda timeout -k 2 100 demo/run.sh --out "$logs/demo" \
	    > "$logs/demo.log" 2>&1 < /dev/null
	rc=$?
	echo
	tail -n 40 "$logs/demo.log"
	verdict="aesthetic score not higher"
	awk -F '\t' '$1 ~ /aesthetic/ && $9 > 0 { n = 1 } END { exit !n }' \
	    "$logs/demo/result.tsv" 2>/dev/null &&
	    verdict="aesthetic score higher"
	[ $rc -eq 0 ] && [ "$verdict" = "aesthetic score higher" ] || status=1
	[ $rc -ne 124 ] || verdict="out of time"
	rm -rf "$logs/demo/train" "$logs/demo/held" "$logs"/demo/*.tar
	echo "demo: $(($(date +%s) - start)) s, exit $rc, $verdict"
fi
echo "logs: $logs"
exit $status
