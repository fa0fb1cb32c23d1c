#!/bin/sh
# A few of the kills, faults and full disks that `make check-kill` and
# `make check-faults` try by the hundred.
set -u
. tests/cli/lib.sh

# some SCRIPT OPTION...: its last words where it fails.
some() {
	s=$1
	shift
	sh "tests/faults/$s.sh" "$@" > "$dir/tap" 2>&1
	rc=$?
	grep -v '^ok' "$dir/tap" | head -40 > "$dir/err"
	ok $rc "$s $*"
	why=$(sed -n 's/^ok .*# SKIP //p' "$dir/tap" | sort -u)
	[ -z "$why" ] || skip "$why"
}
some kill -n 2 encode_one
some kill -n 2 train
some full -n 2 encode_one spool train images
if nm "$bin/lpo-pairs" | grep -q __asan_init; then
	skip "a preloaded library does not go with the address sanitizer"
else
	some faults -k 27 -c "write sync rename unlink" pairs
	some faults -e 12 -c "read open" images
	# gcov writes its counts at the end, and dies without memory for it
	if nm "$bin/lpo-pairs" | grep -q __gcov_; then
		skip "a program that counts its lines needs memory to end"
	else
		some faults -e 60 -c malloc formats
	fi
fi
done_testing
