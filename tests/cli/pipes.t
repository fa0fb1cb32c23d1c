#!/bin/sh
# Standard output that is closed after so many bytes, wherever that is: exit
# 141 in silence, and nothing is left.  Standard output that is a terminal.
# Tables on standard input.
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

# --------------------------------------------------- tables on standard input

(cd world && "$bin/lpo-encode" -q -m "$model" --db none --precision f32 - \
    < prefs.csv > ../all 2> ../err)
same all enc.tar "encode: a table on standard input"
{ echo prompt; sed -n 2,3p p.csv | cut -d , -f 1; } > two.csv
few() {				# few WANTED NAME TOOL OPTION...
	want=$1 name=$2 tool=$3
	shift 3
	"$bin/$tool" -q -m "$model" --db none "$@" > out 2> err < two.csv
	is $? "$want" "$name"
}
few 0 "sample: from a file" lpo-sample -p two.csv --steps 1
cp out want
few 0 "sample: prompts on standard input" lpo-sample -p - --steps 1
same out want "the same bytes"
set -- --system one="$model" --system two="$model" --steps 1 --scorer \
    'j=tar tf - | sed -n "s/.png$/	1/p; 1i key	x"'
few 0 "eval: from a file" lpo-eval -p two.csv "$@"
cp out want
few 0 "eval: prompts on standard input" lpo-eval -p - "$@"
same out want "the same table"
few 0 "train: prompts on standard input" lpo-train -p - -r random:tiny \
    -m random:tiny --iterations 1 -o lora.safetensors \
    --dry-run
grep -q '^prompts	2$' out
ok $? "it has understood them"
sed 1d two.csv > p.txt
mv p.txt two.csv
few 1 "a text on standard input is no table" lpo-sample -p - --steps 1
says "lpo-sample: standard input:2: no column 'prompt' or 'caption'" "why"
echo 'a red circle' > two.csv
few 1 "nor is a line of it" lpo-sample -p - --steps 1
says "lpo-sample: standard input:1: no column 'prompt' or 'caption'" "why"

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
