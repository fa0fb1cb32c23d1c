#!/bin/sh
# The CUDA plug-in as it was compiled: no kernel keeps values in local memory
# but a few by name, registers and shared memory are within what a block may
# have, and one symbol is exported.  Needs no device.
set -u
. tests/cli/lib.sh

plugin=${LPO_CUDA_PLUGIN:-$bin/lpo-cuda.so}
if [ ! -e "$plugin" ]; then
	skip "no plug-in $plugin"
	done_testing
fi

# cudart is linked in, with its names kept inside.
nm -D --defined-only "$plugin" 2>"$dir/err" | awk '{ print $NF }' |
    grep -v '^_\(init\|fini\)$' >"$dir/exported"
is "$(cat "$dir/exported")" lpo_plugin "one symbol is exported"

dump=${CUOBJDUMP:-}
for d in cuobjdump "$(dirname "$(command -v "${NVCC:-nvcc}" ||
    echo /usr/local/cuda/bin/nvcc)")/cuobjdump"; do
	[ -n "$dump" ] || ! command -v "$d" >/dev/null || dump=$d
done
if [ -z "$dump" ]; then
	skip "no cuobjdump"
	done_testing
fi
"$dump" --dump-resource-usage "$plugin" >"$dir/dump" 2>"$dir/err"
ok $? "cuobjdump reads the plug-in"

# architecture, function, registers, local memory (what does not fit into
# registers, and arrays that are indexed), static shared memory
awk '
function field(name) {
	if (!match($0, name ":[0-9]+"))
		return 0
	return substr($0, RSTART + length(name) + 1) + 0
}
$1 == "arch" { arch = $3 }
$1 == "Function" { name = $2; sub(/:$/, "", name) }
/REG:/ { print arch, name, field("REG"), field("STACK") + field("LOCAL"),
    field("SHARED") }' "$dir/dump" >"$dir/kernels"
test "$(wc -l <"$dir/kernels")" -gt 100
ok $? "$(wc -l <"$dir/kernels" | tr -d ' ') kernels"

# Local memory: who may have how many bytes at most, and why.
# mma_kernel, wg_kernel: the backward pass of attention keeps its sums in all
# registers that a block of its size may have; addresses and bounds lie in
# local memory, a handful of loads to 128 products.
# fma_kernel: of the f32 one for 40 channels two addresses, read once a tile
# beside its thousands of products.
# lora_pass: all of a strip's weights and sums stay in registers for all rows;
# addresses lie in local memory.
# matmul: with tiles of 160 columns a thread has 160 sums in registers; two
# values that only a tile's beginning and end need lie in local memory.
# Elsewhere than on Hopper, where kernels were tuned, the compiler may keep half
# as much more, and two addresses anywhere.
cat >"$dir/may" <<'END'
10mma_kernelI 64
9wg_kernelI 8
10fma_kernelI 16
9lora_passI 112
6matmulILi160E 8
END

# none WHAT FILE: no line, or the lines are what is wrong
none() {
	cp "$2" "$dir/err"
	test ! -s "$2"
	ok $? "$1"
}
awk 'NR == FNR { may[$1] = $2; next }
{
	most = 0
	for (k in may)
		if (index($2, k) && may[k] > most)
			most = may[k]
	if ($1 !~ /^sm_90/)
		most = most * 1.5 > 16 ? most * 1.5 : 16
	if ($4 > most)
		print $1, $2 ": " $4 " bytes of local memory, " most " allowed"
}' "$dir/may" "$dir/kernels" >"$dir/bad"
none "no local memory but where it is meant to be" "$dir/bad"
while read -r name most; do
	grep -q "$name" "$dir/kernels" || echo "no kernel $name ($most bytes)"
done <"$dir/may" >"$dir/bad"
none "each exception is of a kernel" "$dir/bad"
awk '$3 > 255 { print $1, $2 ": " $3 " registers" }' "$dir/kernels" \
    >"$dir/bad"
none "at most 255 registers" "$dir/bad"
# What is static; launches say how much more they want, and it is granted or
# the launch fails.
awk '$5 > 49152 { print $1, $2 ": " $5 " bytes of shared memory" }' \
    "$dir/kernels" >"$dir/bad"
none "at most 48 KiB of static shared memory" "$dir/bad"
done_testing
