#!/bin/sh
# The EXAMPLES of every page and the commands of README.md, run as they stand:
# sd15 is the demo's model, and programs that would take long are made quick
# by options that come after those of the example.
set -u
. tests/cli/lib.sh
if ! command -v bash > /dev/null || ! command -v sqlite3 > /dev/null; then
	echo "1..0 # SKIP no bash or sqlite3"
	exit 0
fi

top=$PWD
mkdir "$dir/bin" "$dir/set" || exit 1
for t in encode pairs lrm train sample eval probe; do
	ln -s "$bin/lpo-$t" "$dir/bin/lpo-$t"
done
quick() {			# quick TOOL UNLESS OPTIONS...
	rm "$dir/bin/$1"
	tool=$1 unless=$2
	shift 2
	cat > "$dir/bin/$tool" <<-END
		#!/bin/sh
		case " \$* " in *" $unless "*) exec "$bin/$tool" "\$@" ;; esac
		exec "$bin/$tool" "\$@" $*
	END
	chmod +x "$dir/bin/$tool"
}
quick lpo-encode - -s 32
quick lpo-lrm --score --steps 2 --batch 8
quick lpo-train - --iterations 1 --prompts-per-iteration 2 --batch 4 --steps 3
quick lpo-sample - --steps 2
printf '#!/bin/sh\nexec cat\n' > "$dir/bin/less"
chmod +x "$dir/bin/less"
PATH=$dir/bin:$PATH
export PATH

# What the examples take for granted.
world 60
cd "$dir/set" || exit 1
ln -s "$model" sd15
ln -s "$bin/judge" judge
sed 's,img/,world/img/,g' "$dir/world/prefs.csv" > prefs.csv
cp -r "$dir/world" world
"$bin/demo-world" prompts -n 6 --seed 3 --split train -o prompts.csv
"$bin/demo-world" prompts -n 3 --seed 4 --split heldout -o heldout.csv
sed 1d prompts.csv | tr -d '"' > prompts.txt
cat > aesthetic <<'END'
#!/bin/sh
./judge | cut -f 1,3
END
chmod +x aesthetic
prepare() {
	lpo-encode -q --rows-per-shard 20 -m sd15 -o enc-%06d.tar prefs.csv &&
	lpo-encode -q -m sd15 -o enc.tar prefs.csv &&
	lpo-pairs -q --pairs-per-shard 30 -o pairs-%06d.tar enc.tar &&
	lpo-pairs -q --seed 2 -o held.tar enc.tar &&
	lpo-lrm -q -m sd15 --eval held.tar -o lrm pairs-%06d.tar &&
	lpo-train -q -m sd15 -r lrm -p prompts.csv --save-every 1 \
	    --threshold quantile:0.5 -o aligned.safetensors &&
	for s in 1 2 3; do
		mkdir seed-$s && lpo-eval -q -m sd15 --steps 2 --seed $s \
		    --lora aligned.safetensors -p heldout.csv \
		    --scorer judge=./judge --db seed-$s/lpo.db || return
	done > /dev/null &&
	lpo-sample -q --db none -m sd15 -p heldout.csv -o theirs/ &&
	lpo-sample -q --db none -m sd15 -p heldout.csv -o ours.tar &&
	cp world/img/000001_0.png cat.jpg &&
	mkdir photos && cp world/img/00000*_0.png photos
}
prepare 2> "$dir/err"
ok $? "a folder with all that the examples name"
# tensors NAME:TYPE:BYTES:SHAPE...: a safetensors file of ones, or of zeros.
tensors() {
	head="" at=0
	for x; do
		IFS=: read -r key type bytes shape <<-END
			$x
		END
		head="$head,\"$key\":{\"dtype\":\"$type\",\"shape\":[$shape],"
		head="$head\"data_offsets\":[$at,$((at + bytes))]}"
		at=$((at + bytes))
	done
	head="{${head#,}}"
	# shellcheck disable=SC2059
	printf "\\$(printf %03o $((${#head} % 256)))\\$(printf %03o \
	    $((${#head} / 256)))\\000\\000\\000\\000\\000\\000%s" "$head"
	for x; do
		IFS=: read -r key type bytes shape <<-END
			$x
		END
		case $type in
		F32) yes "$(printf '\001\001\200?')" | tr -d '\n' ;;
		*) cat /dev/zero ;;
		esac 2> /dev/null | head -c "$bytes"
	done
}
tensors text_projection.weight:F32:16384:64,64 > clip-l.safetensors
for m in clip-h PickScore_v1; do
	cp -r "$top/tests/golden/clip" $m
done
cp clip-h/head.pth .
cp head.pth sac+logos+ava1-l14-linearMSE.pth
tensors sample:F32:1024:1,4,8,8 timestep:I64:8:1 \
    encoder_hidden_states:F32:4096:1,16,64 > in.safetensors

# Each example of a page on a line: PAGE TAB COMMANDS, \n for newlines.
blocks() {
	awk '
	/^\.Sh / { on = $2 == "EXAMPLES"; next }
	!on { next }
	/^\.Dl / { sub(/^\.Dl /, ""); print; print "\f"; next }
	/^\.Bd / { body = 1; next }
	/^\.Ed/ { body = 0; print "\f"; next }
	body' "$1" | sed 's/\\e/\\/g'
}
readme() {			# indented blocks that run our programs
	awk '
	/^    / { sub(/^    /, ""); b = b $0 "\n"; next }
	{ if (b ~ /^lpo-/) printf "%s\f\n", b; b = "" }' "$1"
}

# The example's outputs must not be there yet.
clear_outputs() {
	for o in $(echo "$1" | grep -o -e '-o [a-z][^ ]*' | cut -c 4-); do
		case $o in
		*%*) rm -f "${o%%\%*}"*.tar ;;
		*) rm -rf "${o%/}" "${o%/}.state" ;;
		esac
	done
}

# What an example needs that is not there; nothing where all is.
lacks() {
	case $1 in
	*"| jq"* | *"	jq"*) command -v jq > /dev/null || echo jq ;;
	"import "*) echo "a Python library" ;;
	esac
}

# The tests' CLIP is not as wide as the demo's text encoder: clip-l is the one
# where it scores, and a projection that fits where one is asked for.
clip_l() {
	rm -rf clip-l
	case $1 in
	*--text-projection*)
		mkdir clip-l && cp clip-l.safetensors clip-l/model.safetensors ;;
	*) ln -s clip-h clip-l ;;
	esac
}

try() {				# try NAME: blocks on standard input
	name=$1 k=0
	block=
	while IFS= read -r line; do
		if [ "$line" != "$(printf '\f')" ]; then
			block="$block$line
"
			continue
		fi
		k=$((k + 1))
		lack=$(lacks "$block")
		if [ -n "$lack" ]; then
			skip "$name, $k: needs $lack"
			block=
			continue
		fi
		clear_outputs "$block"
		clip_l "$block"
		# gigabytes are another test's
		block=$(echo "$block" | sed 's/random:sd15/random:tiny/')
		timeout 60 bash -o pipefail -c "$block" > "$dir/out" 2> "$dir/err" \
		    < /dev/null
		status=$?
		# a threshold may be missed: these models know nothing
		case $status$block in 5*--fail-under*) status=0 ;; esac
		ok $status "$name, $k: $(echo "$block" | head -n 1 | cut -c 1-50)"
		block=
	done
}
for p in "$top"/man/*.[157]; do
	cp -r "$dir/set" "$dir/run"
	cd "$dir/run" || exit 1
	blocks "$p" > "$dir/blocks"
	try "${p##*/}" < "$dir/blocks"
	cd "$top" || exit 1
	rm -rf "$dir/run"
done
cp -r "$dir/set" "$dir/run"
cd "$dir/run" || exit 1
readme "$top/README.md" > "$dir/blocks"
try README.md < "$dir/blocks"
done_testing
