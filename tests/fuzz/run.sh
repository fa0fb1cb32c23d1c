#!/bin/sh
# run.sh BUILD SECONDS [TARGET...]: each target for so long, two at a time.
# Inputs that found new code are kept in BUILD/corpus/TARGET, inputs that
# failed in BUILD/findings; a line for each target goes to BUILD/report.tsv.
# Status 1 when anything was found.
set -u
build=$1
seconds=$2
shift 2
mkdir -p "$build/findings" "$build/log"
if [ $# = 0 ]; then
	for f in tests/fuzz/*.c; do
		set -- "$@" "$(basename "$f" .c)"
	done
fi

# Prints target, executions, seconds, edges, findings.
cat > "$build/one.sh" <<'EOF'
t=$3
mkdir -p "$1/corpus/$t"
dict=
[ -f "tests/fuzz/$t.dict" ] && dict=-dict=tests/fuzz/$t.dict
# a leak in libgomp's or a library's start is not the input's
ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 \
LSAN_OPTIONS=suppressions=tests/lsan.supp:print_suppressions=0 \
"$1/fuzz-$t" -max_total_time="$2" -timeout=60 -rss_limit_mb=1500 \
    -malloc_limit_mb=512 -max_len=65536 -print_final_stats=1 $dict \
    -artifact_prefix="$1/findings/$t-" \
    "$1/corpus/$t" "tests/fuzz/corpus/$t" > "$1/log/$t" 2>&1
status=$?
edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$1/log/$t" | tail -1)
runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$1/log/$t")
printf '%s\t%s\t%s\t%s\t%s\n' "$t" "${runs:-0}" "$2" "${edges:-0}" \
    "$([ $status = 0 ] && echo none || echo "status $status, $1/log/$t")"
exit $status
EOF
printf '%s\n' "$@" |
    xargs -P "${FUZZ_JOBS:-2}" -n 1 sh "$build/one.sh" "$build" "$seconds" \
    > "$build/report.new"
status=$?
{
	printf 'target\texecutions\tseconds\tedges\tfindings\n'
	sort "$build/report.new"
} | tee "$build/report.tsv"
rm -f "$build/report.new"
[ $status = 0 ] || { ls "$build/findings"; exit 1; }
