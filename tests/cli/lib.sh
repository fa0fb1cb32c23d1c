# Shared by the shell tests: TAP, a scratch folder, a small world to work on.
# shellcheck shell=sh
bin=${BIN:-bin}
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
model=$PWD/demo/model
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
n=0
failed=0

ok() {				# ok STATUS TEXT
	n=$((n + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $n - $2"
	else
		failed=1
		echo "not ok $n - $2"
		sed 's/^/# /' "$dir/err" 2>/dev/null
	fi
}

is() {				# is GOT WANTED TEXT
	test "$1" = "$2"
	ok $? "$3 (got '$1')"
}

same() {			# same FILE FILE TEXT
	cmp -s "$1" "$2"
	ok $? "$3"
}

skip() {			# skip TEXT
	n=$((n + 1))
	echo "ok $n # SKIP $1"
}

done_testing() {
	echo "1..$n"
	exit $failed
}

# status COMMAND...: run it, words to $dir/err, its status printed.
status() {
	"$@" >"$dir/out" 2>"$dir/err"
	echo $?
}

# run WANTED-STATUS NAME COMMAND...: output in $dir/out, words in $dir/err.
run() {
	want=$1 name=$2
	shift 2
	"$@" > "$dir/out" 2> "$dir/err" < /dev/null
	is=$?
	test $is -eq "$want"
	ok $? "$name: exit $want$(test $is -eq "$want" || echo ", not $is")"
}

says() {			# says TEXT NAME: standard error has it
	grep -qF -- "$1" "$dir/err"
	ok $? "$2"
}

has_amx() {			# what --precision bf16x3 needs
	"$bin/lpo-probe" -q --devices 2>/dev/null |
	    grep -q '^cpu	.*	amx,'
}

tar_of() {			# tar_of FOLDER: FOLDER.tar of what it holds
	(cd "$1" && tar --format=ustar -cf - -- *) > "$1.tar"
}

# What lpo-pairs needs of a model, in the folder $1.
latent_model() {
	mkdir -p "$1/vae" "$1/scheduler"
	echo '{"scaling_factor":0.18215,"latent_channels":4}' \
	    > "$1/vae/config.json"
	cat > "$1/scheduler/scheduler_config.json" <<-'END'
	{"beta_start":0.00085,"beta_end":0.012,
	"beta_schedule":"scaled_linear","num_train_timesteps":1000}
	END
}

# encoded FOLDER ROW ID LABEL_1 PROMPT: a pair of moments, [8, 1, 1], all zero.
encoded() {
	for k in 0 1; do
		{
			printf '\223NUMPY\001\000\166\000%-117s\n' \
			    "{'descr': '<f4', 'fortran_order': False, \
'shape': (8, 1, 1), }"
			head -c 32 /dev/zero
		} > "$1/00000000$2.moments_$k.npy"
	done
	echo "{\"prompt\":\"$5\",\"row\":$2,\"id\":\"$3\",
	    \"label_0\":$((1 - $4)),\"label_1\":$4,
	    \"key\":\"00000000$2\"}" > "$1/00000000$2.json"
}

# N preferences with pictures in $dir/world.
world() {
	"$bin/demo-world" prefs -n "$1" --seed 5 --split train \
	    -o "$dir/world" >/dev/null
}

# Flip a bit of byte $2 of file $1.
flip() {
	old=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
	# shellcheck disable=SC2059
	printf "\\$(printf %03o $((old ^ 4)))" |
	    dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}

# least COMMAND...: the --memory with which it says that it would fit.  What
# the sanitizers themselves take differs from run to run: a quarter more there.
least() {
	"$@" --memory 1 2>&1 >/dev/null |
	    sed -n 's/.*make it fit: --memory \([0-9]*\)M.*/\1/p' |
	    awk -v more="${ASAN_OPTIONS:+1}" \
	    '{ print int($1 * (more ? 1.25 : 1)) "M" }'
}

# Wait until $1 is there, at most 20 s.
wait_for() {
	i=0
	while [ ! -e "$1" ] && [ $i -lt 400 ]; do
		sleep 0.05
		i=$((i + 1))
	done
	test -e "$1"
}

# A reward model of a few steps on the demo's base model: $dir/lrm.
small_lrm() {
	world "$1"
	"$bin/lpo-encode" -q --db none --precision f32 -m "$model" \
	    "$dir/world/prefs.csv" 2>"$dir/err" |
	    "$bin/lpo-pairs" -q --db none 2>>"$dir/err" |
	    "$bin/lpo-lrm" -q --db none --precision f32 -m "$model" \
	    --steps 3 --batch 6 --lr 1e-3 -o "$dir/lrm" 2>>"$dir/err"
}
