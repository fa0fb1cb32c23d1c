#!/bin/sh
# faults.sh [-r] [-k STEP] [-m STEP] [-e EACH] [-o OFFSET] [-c CALLS]
# [-f OBJECTS] [STAGE...]: in each tool one system call or allocation fails
# (shim.c).  By default from each place in the program: its first, second and
# last system call for the same file, and an allocation for each pair of caller
# and called; -e takes each EACH-th of these, -o from the OFFSET-th on.  -k
# takes each STEP-th system call instead, -m each STEP-th allocation; -f:
# allocations of these libraries only, "exe" is the program itself.  -r: in a
# run that goes on after a kill.  After each: the exit status is not 0, standard
# error names a file (or says what memory is for), nothing that looks finished
# is wrong, and the same command without the fault ends with the right bytes
# and rows.  Exit status 0 is right only where the output is complete.
set -u
. tests/cli/lib.sh
. tests/faults/world.sh

step=0
mstep=0
each=1
offset=0
again=
calls="read write sync rename open close unlink malloc"
objects="exe jansson sqlite3 archive csv libpng libjpeg webp pcre2 libc.so"
while getopts rk:m:e:o:c:f: opt; do
	case $opt in
	r) again=1 ;;
	k) step=$OPTARG ;;
	m) mstep=$OPTARG ;;
	e) each=$OPTARG ;;
	o) offset=$OPTARG ;;
	c) calls=$OPTARG ;;
	f) objects=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- encode formats pairs lrm best train full sample tar \
    eval systems images probe

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

# whole STAGE: the files and rows of a run that nobody disturbed.
whole() {
	finished "$work" "$dir/ref.$1" && rows "$work/lpo.db" > "$dir/rows" ||
	    return
	cmp -s "$dir/rows" "$dir/ref.$1.rows" ||
	    { echo "rows differ"; return 1; }
}

# The folder as the stage finds it.
begin() {
	rm -rf "$work"
	if [ -n "$again" ]; then
		cp -r "$dir/half" "$work"
	else
		mkdir "$work"
	fi
}

# What must hold after a fault; then the same command without it.
judge() {			# judge STAGE CALL HOW
	if [ "$3" = kill ]; then
		[ $status -eq 137 ] || bad "exit status $status"
	elif [ $status -eq 0 ]; then
		harmless=$((harmless + 1))
		whole "$1" > "$dir/why" ||
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
		    ! whole "$1" > "$dir/why"; then
			bad "cannot go on: $(cat "$dir/why")"
		fi
	fi
}

# places STAGE CALL STEP VAR=VALUE...: an undisturbed run; $total calls, and
# the numbers of those that are to fail in $dir/at.
places() {
	point="$1, $2 without a fault"
	stage=$1 call=$2 by=$3
	shift 3
	begin
	: > "$dir/places"
	disturbed "$stage" FAULT_CALL="$call" FAULT_AT=0 \
	    FAULT_PLACES="$dir/places" "$@"
	[ "$status" -eq 0 ] || bad "exit status $status"
	whole "$stage" > "$dir/why" || bad "$(cat "$dir/why")"
	total=$(sed -n 's/^total \([0-9]*\).*/\1/p' "$dir/log")
	if [ "$by" -gt 0 ]; then
		seq 1 "$by" "${total:-0}"
	else
		sort -nu "$dir/places" | awk -v each="$each" \
		    -v offset="$offset" '$1 > 0 && i++ % each == offset'
	fi > "$dir/at"
}

# points STAGE CALL HOW THIN VAR=VALUE...: each THIN-th of those calls.
points() {
	stage=$1 call=$2 how=$3 thin=$4
	shift 4
	met=0
	tried=0
	harmless=0
	awk -v thin="$thin" '(NR - 1) % thin == 0' "$dir/at" > "$dir/these"
	with=$(echo " $*" | sed 's/ *FAULT_UNDER=[^ ]*//')
	while read -r nth <&3; do
		point="$stage, $call $nth $how$with"
		begin
		disturbed "$stage" FAULT_CALL="$call" FAULT_AT="$nth" \
		    FAULT_HOW="$how" "$@"
		tried=$((tried + 1))
		if grep -q "^$call " "$dir/log" 2>/dev/null; then
			met=$((met + 1))
			judge "$stage" "$call" "$how"
		elif [ "$status" -ne 0 ]; then
			bad "without a fault: $status"
		fi
	done 3< "$dir/these"
	test $wrong -eq 0
	ok $? "$stage: $call $how$with: $met of $tried points met, of \
$total calls, $harmless harmless, $wrong wrong"
	wrong=0
}

# files STAGE CALL HOW...: the file calls of one kind, failing in these ways.
files() {
	f_stage=$1 f_call=$2
	shift 2
	places "$f_stage" "$f_call" "$step" FAULT_UNDER="$dir"
	for how in "$@"; do
		case $how in
		*+)	points "$f_stage" "$f_call" "${how%+}" 1 \
			    FAULT_ON=1 FAULT_UNDER="$dir" ;;
		*)	points "$f_stage" "$f_call" "$how" 1 \
			    FAULT_UNDER="$dir" ;;
		esac
	done
}

memory() {			# memory STAGE: allocations of each library
	for from in $objects; do
		places "$1" malloc "$mstep" FAULT_FROM="$from"
		[ "${total:-0}" -gt 0 ] || continue
		points "$1" malloc ENOMEM 1 FAULT_FROM="$from"
		points "$1" malloc ENOMEM 3 FAULT_FROM="$from" FAULT_ON=1
	done
}

# half STAGE: what a kill at the middle one of its fsyncs leaves, in $dir/half.
half() {
	again=
	places "$1" sync 1 FAULT_UNDER="$dir"
	begin
	disturbed "$1" FAULT_CALL=sync FAULT_AT=$((total / 2 + 1)) \
	    FAULT_HOW=kill FAULT_UNDER="$dir"
	test $status -eq 137
	ok $? "$1, killed half-way"
	rm -rf "$dir/half"
	mv "$work" "$dir/half"
	again=1
}

one_stage() {
	work=$dir/work
	mkdir "$dir/ref.$1"
	every=0
	(cd "$dir/ref.$1" && "stage_$1") >"$dir/out" 2>"$dir/err"
	ok $? "$1, undisturbed"
	rows "$dir/ref.$1/lpo.db" > "$dir/ref.$1.rows"
	wrong=0
	[ -z "$again" ] || half "$1"
	for c in $calls; do
		case $c in
		read)	files "$1" read EIO short ;;
		write)	files "$1" write ENOSPC EIO+ short kill ;;
		sync)	files "$1" sync EIO kill ;;
		rename)	files "$1" rename EIO kill ;;
		open)	files "$1" open EMFILE ;;
		close)	files "$1" close EIO ;;
		unlink)	files "$1" unlink EACCES kill ;;
		malloc)	memory "$1" ;;
		esac
	done
}

STEPS=2			# the shortest that has a step after another
CANDIDATES=2
CHECKED=1
cp -r "$model" "$dir/model"	# its files below $dir too
model=$dir/model
make_world 2>"$dir/err"
ok $? "a small world"
for s in "$@"; do
	one_stage "$s"
done
done_testing
