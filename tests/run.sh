#!/bin/sh
# Run the tests through prove, then count all results in one closing line.
# Each test's TAP is kept in $BUILD/tap, to be read after a failure.
set -u
: "${BUILD:=build}"
tap=$BUILD/tap
rm -rf "$tap"
mkdir -p "$tap"
export tap
prove --timer -j "${TEST_JOBS:-1}" --exec 'sh tests/one.sh' "$@"
status=$?
cat "$tap"/* | awk '
	/^not ok/ { bad++; next }
	/^ok .*# SKIP/ { skipped++; next }
	/^1\.\.0 # SKIP/ { skipped++; next }
	/^ok/ { good++ }
	END { printf "%d passed, %d failed, %d skipped\n", good, bad, skipped }'
exit $status
