#!/bin/sh
# bench-h200's program on the CPU, with small models: every section runs, what
# it prints is a table, and gradients are the same in bf16 as in f32.
set -u
. tests/cli/lib.sh

h200=${BUILD:-build}/tests/bench/h200.t

is "$(status "$h200" --tiny)" 0 "every section"
cp "$dir/out" "$dir/table"
test ! -s "$dir/err"
ok $? "without a word of complaint"
is "$(grep -v '^#' "$dir/table" | awk -F '\t' 'NF != 11' | wc -l |
    tr -d ' ')" 0 "11 fields in each line"
for s in ceiling ops unet lrm vae clip profile profile-fwd profile-both f32 \
    lpo lrm-train lpo-f32 sdxl lpo-sdxl; do
	awk -F '\t' -v s="$s" '$1 == s && $6 > 0 { n++ } END { exit !n }' \
	    "$dir/table"
	ok $? "$s has times"
done
is "$(grep -c 'not finite' "$dir/table")" 0 "all steps were taken"

# norm SECTION: of the gradient, guided and with LoRA
norm() {
	sed -n "s/^# $1 forward+backward.* norm //p" "$dir/table" | tail -1
}
bf16=$(norm unet)
f32=$(norm f32)
awk -v a="$bf16" -v b="$f32" 'BEGIN { exit !(a > 0.9 * b && b > 0.9 * a) }'
ok $? "the gradient's norm is $bf16 in bf16, $f32 in f32"

is "$(status "$h200" -d cuda)" 1 "no GPU in this one"
is "$(status "$h200" -d cpu:none)" 1 "no such level"
is "$(status "$h200" nothing)" 2 "no such section"
is "$(status "$h200" --nothing)" 2 "no such option"
is "$(status "$h200" --help)" 0 "help"

done_testing
