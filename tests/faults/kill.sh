#!/bin/sh
# kill.sh [-n KILLS] [-s SEED] [STAGE...]: each stage is killed at random
# times and run again by the same command until it is done; then files and
# database rows are those of a run that nobody disturbed.  In between nothing
# that looks finished may be wrong.  -g sends SIGTERM, SIGINT and SIGUSR1
# instead: exit 4 within two seconds.  A failure prints the seed of its run.
set -u
. tests/cli/lib.sh
. tests/faults/world.sh

kills=100
seed=1
signals="KILL"
while getopts n:s:g opt; do
	case $opt in
	n) kills=$OPTARG ;;
	s) seed=$OPTARG ;;
	g) signals="TERM INT USR1" ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- encode encode_one pairs lrm best pipe train full sample \
    tar eval systems images

now() {
	date +%s.%N
}
since() {			# since T: seconds
	echo "$1 $(now)" | awk '{ printf "%.3f", $2 - $1 }'
}

# random SEED MAX: MAX numbers in [0, 1)
random() {
	awk -v seed="$1" -v n="$2" 'BEGIN {
		srand(seed); rand()
		for (i = 0; i < n; i++) print rand() }'
}

# One process of the stage's group, or all: by the draw u.
victims() {			# victims PGID U STAGE
	if [ "$3" = pipe ]; then
		case $2 in
		0.[0-1]*) pgrep -g "$1" -x lpo-encode ;;
		0.[2-3]*) pgrep -g "$1" -x lpo-pairs ;;
		0.[4-5]*) pgrep -g "$1" -x lpo-lrm ;;
		*) echo "-$1" ;;
		esac
	elif [ "$signals" = KILL ]; then
		echo "-$1"
	else
		pgrep -g "$1" -x 'lpo-.*'
	fi
}

# attempt STAGE WAIT U SIGNAL: $status of a run that meets a signal.
attempt() {
	export bin model dir
	# shellcheck disable=SC2016  # they are the inner shell's
	setsid sh -c '. tests/faults/world.sh
		every=$1
		cd "$2" && "stage_$3"' - "$every" "$work" "$1" \
	    >"$dir/out" 2>"$dir/err" &
	group=$!
	sleep "$2"
	hit=$(victims "$group" "$3" "$1")
	at=$(now)
	# shellcheck disable=SC2086
	[ -z "$hit" ] || kill -s "$4" -- $hit 2>/dev/null
	wait "$group" 2>/dev/null
	status=$?
	took=$(since "$at")
	# the rest of a pipe whose end is gone
	while pgrep -g "$group" >/dev/null; do
		sleep 0.02
	done
}

# one_run STAGE SEED: up to five signals, then to the end.
one_run() {
	work=$dir/work
	rm -rf "$work"
	mkdir "$work"
	case $1:$2 in eval:*|*[02468]) every=0 ;; *) every=0.2 ;; esac
	# shellcheck disable=SC2046
	set -- "$1" "$2" $(random "$2" 15)
	while [ $# -ge 5 ]; do
		# shellcheck disable=SC2086
		sig=$(echo "$5 $signals" |
		    awk '{ print $(2 + int($1 * (NF - 1))) }')
		attempt "$1" "$(echo "$3 $whole" |
		    awk '{ printf "%.3f", $1 * $2 }')" "$4" "$sig"
		s=$1
		r=$2
		shift 5
		set -- "$s" "$r" "$@"
		case $status in
		0) break ;;
		137) landed=$((landed + 1)) ;;
		4)	landed=$((landed + 1))
			echo "$took" | awk '{ exit $1 <= 2 ? 0 : 1 }' ||
			    slow=$((slow + 1)) ;;
		*)	# a pipe whose writer died; a signal before its handler
			if [ "$1" = pipe ] || [ $status -gt 128 ]; then
				landed=$((landed + 1))
			else
				echo "# $1: exit status $status"
				sed 's/^/# /' "$dir/err"
				return 1
			fi ;;
		esac
		nothing_wrong "$work" "$dir/ref.$1" || return 1
	done
	if [ "$status" -ne 0 ]; then
		(cd "$work" && "stage_$1") >"$dir/out" 2>"$dir/err" || {
			sed 's/^/# /' "$dir/err"
			return 1
		}
	fi
	finished "$work" "$dir/ref.$1" &&
	    same_rows "$work/lpo.db" "$dir/ref.$1/lpo.db"
}

stage() {			# stage NAME: all kills of one stage
	mkdir "$dir/ref.$1"
	every=600
	[ "$1" != eval ] || every=0	# the report has the command
	t=$(now)
	(cd "$dir/ref.$1" && "stage_$1") >"$dir/out" 2>"$dir/err"
	ok $? "$1, undisturbed"
	whole=$(since "$t")
	landed=0
	slow=0
	runs=0
	bad=0
	while [ $landed -lt "$kills" ] && [ $runs -lt $((kills * 3)) ]; do
		one_run "$1" $((seed + runs)) || {
			bad=$((bad + 1))
			echo "# $1: failed with -s $((seed + runs))"
		}
		runs=$((runs + 1))
	done
	test $bad -eq 0 && test $landed -gt 0
	ok $? "$1: $landed kills in $runs runs, $bad with other bytes"
	if [ "$signals" != KILL ]; then
		test $slow -eq 0
		ok $? "$1: exit within 2 s, $slow of $landed later"
	fi
}

make_world 2>"$dir/err"
ok $? "a small world"
for s in "$@"; do
	stage "$s"
done
done_testing
