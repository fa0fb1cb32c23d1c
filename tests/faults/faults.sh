#!/bin/sh
# faults.sh [-k STEP] [-m MALLOC_STEP] [-c CALLS] [STAGE...]: every STEP-th
# system call of a kind fails in each tool (shim.c), until it runs through
# without meeting the fault.  After each: the exit status is not 0, standard
# error names a file (or says what memory is for), nothing that looks finished
# is wrong, and the same command without the fault ends with the right bytes.
# Exit status 0 is right only where the output is complete.
set -u
. tests/cli/lib.sh
. tests/faults/world.sh

step=1
mstep=0
calls="write sync rename open close unlink malloc"
while getopts k:m:c: opt; do
	case $opt in
	k) step=$OPTARG ;;
	m) mstep=$OPTARG ;;
	c) calls=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- encode pairs lrm train sample eval images probe

shim=$dir/shim.so
# shellcheck disable=SC2086
${CC:-cc} -O2 -fPIC -D_GNU_SOURCE -shared -o "$shim" tests/faults/shim.c \
    -ldl 2>"$dir/err"
ok $? "the shim is built"

# disturbed STAGE VAR=VALUE...: $status of the tool with a fault.
disturbed() {
	s=$1
	shift
	rm -f "$dir/log"
	(
		cd "$work" || exit 99
		# shellcheck disable=SC2163  # the words are VAR=VALUE
		export "$@" FAULT_LOG="$dir/log" LD_PRELOAD="$shim"
		"stage_$s"
	) >"$dir/out" 2>"$dir/err"
	status=$?
}

bad() {				# bad TEXT: one line, and what was said
	wrong=$((wrong + 1))
	echo "# $point: $1"
	sed 's/^/#   /' "$dir/log" "$dir/err" 2>/dev/null | head -20
}

# What must hold after a fault; then the same command without it.
judge() {			# judge STAGE CALL HOW
	if [ "$3" = kill ]; then
		[ $status -eq 137 ] || bad "exit status $status"
	elif [ $status -eq 0 ]; then
		harmless=$((harmless + 1))
		finished "$work" "$dir/ref.$1" > "$dir/why" ||
		    bad "success, but $(cat "$dir/why")"
	elif [ $status -ne 1 ]; then
		bad "exit status $status"
	elif [ ! -s "$dir/err" ]; then
		bad "no message"
	elif [ "$2" = malloc ]; then
		grep -qi 'memory\|allocat\|mapp\?ing\|bad_alloc' "$dir/err" ||
		    bad "memory is not mentioned"
	else
		grep -q "[a-zA-Z0-9]/\|\.[a-z]\|'.*'\|standard output" \
		    "$dir/err" || bad "no file is named"
	fi
	nothing_wrong "$work" "$dir/ref.$1" > "$dir/why" ||
	    bad "$(cat "$dir/why")"
	if [ $status -ne 0 ]; then
		: > "$dir/why"
		if ! (cd "$work" && "stage_$1") >"$dir/out" 2>"$dir/err" ||
		    ! finished "$work" "$dir/ref.$1" > "$dir/why"; then
			bad "cannot go on: $(cat "$dir/why")"
		fi
	fi
}

# points STAGE CALL HOW STEP [VAR=VALUE...]: the calls 1, 1 + STEP ...
points() {
	stage=$1 call=$2 how=$3 by=$4
	shift 4
	nth=1
	met=0
	harmless=0
	wrong=0
	while :; do
		point="$stage, $call $nth $how $*"
		rm -rf "$work"
		mkdir "$work"
		if [ "$call" = malloc ]; then
			disturbed "$stage" FAULT_CALL="$call" FAULT_AT=$nth \
			    FAULT_HOW="$how" "$@"
		else
			disturbed "$stage" FAULT_CALL="$call" FAULT_AT=$nth \
			    FAULT_HOW="$how" FAULT_UNDER="$dir" "$@"
		fi
		grep -q "^$call " "$dir/log" 2>/dev/null || break
		met=$((met + 1))
		judge "$stage" "$call" "$how"
		nth=$((nth + by))
	done
	[ "$status" -eq 0 ] || bad "without a fault: $status"
	test $wrong -eq 0
	ok $? "$stage: $call $how${*:+ $*}: $met of $((nth - 1)) points, \
$harmless harmless, $wrong wrong"
}

# How many calls: malloc's are so many that a stride is chosen by their number.
stride() {			# stride STAGE VAR=VALUE...
	rm -rf "$work"
	mkdir "$work"
	disturbed "$@" FAULT_CALL=malloc FAULT_AT=0
	total=$(sed -n 's/^total //p' "$dir/log" | tail -1)
	by=$((mstep > 0 ? mstep : ${total:-0} / (150 / step + 1) + 1))
}

one_stage() {
	work=$dir/work
	mkdir "$dir/ref.$1"
	every=0
	(cd "$dir/ref.$1" && "stage_$1") >"$dir/out" 2>"$dir/err"
	ok $? "$1, undisturbed"
	for c in $calls; do
		case $c in
		write)	points "$1" write ENOSPC "$step"
			points "$1" write EIO "$step" FAULT_ON=1
			points "$1" write short "$step"
			points "$1" write kill "$step" ;;
		sync)	points "$1" sync EIO "$step"
			points "$1" sync kill "$step" ;;
		rename)	points "$1" rename EIO "$step"
			points "$1" rename kill "$step" ;;
		open)	points "$1" open EMFILE "$step" ;;
		close)	points "$1" close EIO "$step" ;;
		unlink)	points "$1" unlink EACCES "$step"
			points "$1" unlink kill "$step" ;;
		malloc)	for from in exe jansson sqlite3 archive csv libpng \
			    libjpeg webp pcre2 libc.so; do
				stride "$1" FAULT_FROM=$from
				[ "${total:-0}" -gt 0 ] || continue
				points "$1" malloc ENOMEM $by FAULT_FROM=$from
				points "$1" malloc ENOMEM $((by * 3)) \
				    FAULT_FROM=$from FAULT_ON=1
			done ;;
		esac
	done
}

make_world 2>"$dir/err"
ok $? "a small world"
for s in "$@"; do
	one_stage "$s"
done
done_testing
