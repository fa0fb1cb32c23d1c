#!/bin/sh
# full.sh [-n POINTS] [STAGE...]: each stage on a disk that fills up (a small
# tmpfs), and under a limit to the size of a file, each too small by more or
# less.  The exit status is 1, standard error says which file and why, nothing
# that looks finished is wrong; with room again the same command ends with the
# bytes and the database rows of a run that nobody disturbed.
set -u
mounts() {			# mounts COMMAND...: it may mount there
	# shellcheck disable=SC2016  # $1 is the inner shell's
	"$@" sh -c 'mount -t tmpfs -o size=64k none "$1"' - "$try" 2>/dev/null
}
if [ -z "${FULL_MOUNTS:-}" ]; then
	try=$(mktemp -d) || exit 1
	if mounts unshare -m; then
		set -- unshare -m env FULL_MOUNTS=1 sh "$0" "$@"
	elif mounts unshare -rm; then
		set -- unshare -rm env FULL_MOUNTS=1 sh "$0" "$@"
	else
		set -- env FULL_MOUNTS=0 sh "$0" "$@"
	fi
	rmdir "$try"
	exec "$@"
fi
. tests/cli/lib.sh
. tests/faults/world.sh

number=10
while getopts n: opt; do
	case $opt in
	n) number=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- encode encode_one pairs spool lrm best train full \
    sample tar eval systems images probe
work=$dir/work
mkdir "$work"
every=0				# a state after each step
trap 'umount "$work" 2>/dev/null; rm -rf "$dir"' EXIT

bad() {				# bad TEXT: one line, and what was said
	wrong=$((wrong + 1))
	echo "# $point: $1"
	sed 's/^/#   /' "$dir/err" | head -20
}

# go STAGE [BLOCKS]: $status of it, its files below BLOCKS of 512 bytes.
go() {
	(
		cd "$work" || exit 99
		[ $# -eq 1 ] || ulimit -f "$2"
		export TMPDIR="$work"
		"stage_$1"
	) >"$dir/out" 2>"$dir/err"
	status=$?
}

# What must hold after a run without room; $room gives it back.
judge() {
	if [ "$status" -eq 0 ]; then
		enough=$((enough + 1))
	elif [ "$status" -ne 1 ]; then
		bad "exit status $status"
	else
		grep -q "'.*': \(No space left\|File too large\)\|\
[a-z]: \(database or disk is full\|disk I/O error\|No space left\)" \
		    "$dir/err" || bad "not said which file and why"
	fi
	nothing_wrong "$work" "$dir/ref.$1" > "$dir/why" ||
	    bad "$(cat "$dir/why")"
	[ "$status" -eq 0 ] || {
		$room
		go "$1"
	}
	{
		[ "$status" -eq 0 ] && finished "$work" "$dir/ref.$1" &&
		    same_rows "$work/lpo.db" "$dir/ref.$1/lpo.db"
	} > "$dir/why" || bad "cannot go on: $(cat "$dir/why")"
}

# disk STAGE: sizes up to twice what it leaves, and 4 KiB at least.
disk() {
	need=$(du -sk "$dir/ref.$1" | cut -f 1)
	room="mount -o remount,size=512m none $work"
	i=0
	while [ "$i" -lt "$number" ]; do
		size=$((need * 2 * i / number + 4))
		point="$1, a disk of $size KiB where $need are left behind"
		mount -t tmpfs -o size="${size}k" none "$work" || exit 1
		go "$1"
		judge "$1"
		umount "$work"
		i=$((i + 1))
	done
}

# limit STAGE: sizes up to that of the largest file it leaves.
limit() {
	need=$(find "$dir/ref.$1" -type f -printf '%s\n' | sort -n | tail -1)
	room=:
	i=0
	while [ "$i" -lt "$number" ]; do
		size=$((need * i / number / 512 + 1))
		point="$1, files of $size blocks where one has $need bytes"
		go "$1" "$size"
		judge "$1"
		find "$work" -mindepth 1 -delete
		i=$((i + 1))
	done
}

make_world 2>"$dir/err"
ok $? "a small world"
for s in "$@"; do
	mkdir "$dir/ref.$s"
	(cd "$dir/ref.$s" && "stage_$s") >"$dir/out" 2>"$dir/err"
	ok $? "$s, with room"
	for how in disk limit; do
		if [ $how = disk ] && [ "$FULL_MOUNTS" = 0 ]; then
			skip "no right to mount a tmpfs"
			continue
		fi
		wrong=0
		enough=0
		case $how in
		disk)	disk "$s" ;;
		limit)	limit "$s" ;;
		esac
		test $wrong -eq 0
		ok $? "$s: $how: $number points, $enough of them enough, \
$wrong wrong"
	done
done
done_testing
