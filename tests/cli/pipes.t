#!/bin/sh
# Standard output that is closed after so many bytes, wherever that is: exit
# 141 in silence, and nothing is left.  Standard output that is a terminal.
set -u
. tests/cli/lib.sh
cd "$dir" || exit 1
world 40
"$bin/demo-world" prompts -n 40 --seed 3 --split train -o p.csv
mkdir work

# shellcheck disable=SC2317  # closed and tty call them
encode() {
	"$bin/lpo-encode" -q -m "$model" --db none --precision f32 \
	    ../world/prefs.csv
}
# shellcheck disable=SC2317
pairs() {
	"$bin/lpo-pairs" -q --db none --epochs 3 ../enc.tar
}
# shellcheck disable=SC2317
sample() {
	"$bin/lpo-sample" -q -m "$model" --db none --precision f32 --steps 1 \
	    --per-prompt 2 -p ../p.csv
}

# closed TOOL N: 141 for N bytes of $size; what a pipe holds (64 KiB) may be
# written before its end is seen to be closed.
closed() {
	(cd work && { "$1" 2> ../err; echo $? > ../st; } |
	    head -c "$2" > /dev/null)
	st=$(cat st)
	[ "$st" = 141 ] || { [ "$st" = 0 ] && [ $(($2 + 70000)) -gt "$size" ]; }
	good=$?
	[ $good -eq 0 ] && [ ! -s err ] && [ -z "$(ls -A work)" ] && return
	bad=$((bad + 1))
	echo "# $1, after $2 of $size bytes: $st, '$(cat err)'," \
	    "left: $(ls -A work)"
}

for t in encode pairs sample; do
	(cd work && $t > ../all 2> ../err)
	ok $? "$t, read to its end"
	[ $t != encode ] || cp all enc.tar
	size=$(wc -c < all)
	test "$size" -gt 150000
	ok $? "$t: $size bytes"
	bad=0
	tried=0
	set -- 0 1 512 1536 65536 $((size / 2)) $((size - 10240))
	[ $t != pairs ] || set -- "$@" 100 511 513 1023 1024 2048 4096 10240 \
	    65535 65537 $((size / 7)) $((size / 3)) $((size - 90000)) \
	    $((size - 1))
	for k; do
		closed $t "$k"
		tried=$((tried + 1))
	done
	is $bad 0 "$t: closed at $tried places: silent, nothing left"
done

if command -v script > /dev/null; then
	for t in "lpo-encode' -m '$model' '$dir/world/prefs.csv" \
	    "lpo-pairs' '$dir/enc.tar" \
	    "lpo-sample' -m '$model' -p '$dir/p.csv"; do
		script -qec "'$bin/$t'" typed < /dev/null > err 2>&1
		is $? 2 "${t%%\'*} writes no tar to a terminal"
		grep -q 'standard output is a terminal' err &&
		    ! grep -q ustar typed
		ok $? "and says why"
	done
	script -qec "'$bin/lpo-pairs' > tty.tar" typed > err 2>&1
	is $? 2 "lpo-pairs reads no tar from a terminal"
else
	skip "no script(1)"
fi
done_testing
