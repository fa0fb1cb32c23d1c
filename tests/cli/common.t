#!/bin/sh
# What every program promises at the command line.
set -u
. tests/cli/lib.sh

tools="lpo-encode lpo-pairs lpo-lrm lpo-train lpo-sample lpo-eval lpo-probe"

# Long options of --help: the tool's own, or the common ones.
own() {
	sed -n '/^common options:/q; s/^ .\{5\}--\([a-z0-9-]*\).*/\1/p'
}
common() {
	sed -n '/^common options:/,$ s/^ .\{5\}--\([a-z0-9-]*\).*/\1/p'
}
# Those of a manual page.
page() {
	grep '^\.It.*Fl' "$1" | grep -o 'Fl -[a-z][a-z0-9-]*' |
	    sed 's/^Fl -//'
}

page man/lpo.7 | sort -u > "$dir/lpo.7"
for t in $tools; do
	is "$(status "$bin/$t" --help)" 0 "$t --help"
	test -s "$dir/out" -a ! -s "$dir/err"
	ok $? "$t --help goes to stdout alone"
	cat -s "$dir/out" | cmp -s - "$dir/out"
	ok $? "$t --help: one empty line between its parts"
	own < "$dir/out" | sort -u > "$dir/own"
	page "man/$t.1" | sort -u > "$dir/page"
	common < "$dir/out" | sort -u > "$dir/common"
	# a page may speak of a common option where it means more there
	comm -23 "$dir/page" "$dir/common" | diff "$dir/own" - > "$dir/err"
	ok $? "man/$t.1 has the options of --help and no other"
	comm -23 "$dir/common" "$dir/lpo.7" > "$dir/err"
	test ! -s "$dir/err"
	ok $? "lpo(7) has the common options of $t"

	is "$(status "$bin/$t" --version)" 0 "$t --version"
	grep -q "^$t [0-9]" "$dir/out"
	ok $? "$t names itself and its version"
	is "$(status "$bin/$t" --no-such-option)" 2 "$t: an unknown option"
	is "$(wc -l < "$dir/err" | tr -d ' ')" 1 "$t: says so in one line"
	is "$(head -c ${#t} "$dir/err")" "$t" "$t: under its name"
	is "$(status "$bin/$t" --seed)" 2 "$t: an argument is missing"
	is "$(status "$bin/$t" --seed=-1)" 2 "$t: a negative seed"
	is "$(status "$bin/$t" --threads=2x)" 2 "$t: 2x is no number"
	is "$(status "$bin/$t" --isa=sse9)" 2 "$t: an unknown level"
	"$bin/$t" --help > /dev/full 2>"$dir/err"
	is $? 1 "$t: a full disk is noticed"
done

# A device that cannot be opened: said in a line, exit 1.  Without a plug-in
# on any machine, and with the one that was built where there is no device.
refused() {	# refused WORDS COMMAND...
	words=$1
	shift
	is "$(status "$@")" 1 "$(basename "$1") -d cuda: $words"
	is "$(wc -l < "$dir/err" | tr -d ' ')" 1 "in one line"
	grep -q "^$(basename "$1"): no device 'cuda.*$words" "$dir/err"
	ok $? "it says so"
}
for t in lpo-encode lpo-sample lpo-probe; do
	case $t in
	lpo-encode) set -- x.csv ;;
	lpo-sample) set -- -p x.csv -o "$dir/o.tar" ;;
	lpo-probe) set -- -c philox -i x -o "$dir/o" ;;
	esac
	LPO_CUDA_PLUGIN=/nonexistent/lpo-cuda.so
	export LPO_CUDA_PLUGIN
	refused 'no CUDA plug-in' "$bin/$t" -m "$model" -d cuda --dry-run "$@"
	is "$(status "$bin/$t" -m "$model" -d cuda --isa avx2 "$@")" 2 \
	    "$t: --isa is the CPU's"
	is "$(status "$bin/$t" -m "$model" -d cuda --precision bf16x3 "$@")" \
	    2 "$t: so is --precision bf16x3"
	is "$(status "$bin/$t" -m "$model" --isa portable --precision bf16x3 \
	    --dry-run "$@")" 1 "$t: --precision bf16x3 without AMX"
	grep -q "^$t: --precision bf16x3 needs the level 'amx', not 'portable'\
 (the CPU has: " "$dir/err"
	ok $? "it says so"
	is "$(status "$bin/$t" -m "$model" -d cuda:-1 "$@")" 2 \
	    "$t: no such name of a device"
	unset LPO_CUDA_PLUGIN
done
set -- "$bin/lpo-probe" -c philox -i x -o "$dir/o" -d
for plugin in lib.sh "$dir/none.so" "$dir/text.so" /proc/self/exe; do
	echo text > "$dir/text.so"
	LPO_CUDA_PLUGIN=$plugin
	export LPO_CUDA_PLUGIN
	is "$(status "$@" cuda)" 1 "$plugin is no plug-in"
	is "$(wc -l < "$dir/err" | tr -d ' ')" 1 "said in one line"
	unset LPO_CUDA_PLUGIN
done
if [ ! -e "$bin/lpo-cuda.so" ]; then
	skip "no CUDA plug-in here"
elif "$bin/lpo-probe" --devices -q | grep -q '^cuda:0'; then
	is "$(status "$@" cuda:99)" 1 "a device too many"
	grep -q "no device 'cuda:99': the last one here is" "$dir/err"
	ok $? "said in words"
else
	refused '' "$@" cuda
fi

done_testing
