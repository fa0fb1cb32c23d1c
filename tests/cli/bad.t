#!/bin/sh
# Missing, empty, cut, foreign and hostile files through every tool: the right
# exit status, a message that names the file and the row, key or offset,
# nothing written, memory bounded, no crash.
set -u
. tests/cli/lib.sh

limit=2000000			# KiB of address space
nm "$bin/lpo-pairs" | grep -q __asan_init && limit=unlimited
cd "$dir" || exit 1

# bad STATUS PATTERN TEXT COMMAND...: $out must not appear.
bad() {
	want=$1
	pattern=$2
	text=$3
	tool=$4
	shift 4
	rm -rf "$out" "$out".*
	(
		# shellcheck disable=SC3045  # where there is no -v, no bound
		ulimit -v $limit 2>/dev/null
		exec "$bin/$tool" -q -j 1 --db none --precision f32 "$@"
	) >stdout 2>err </dev/null
	got=$?
	[ $got -eq "$want" ] && grep -q -- "$pattern" err && [ ! -e "$out" ] &&
	    { [ ! -s stdout ] || [ "$want" -eq 3 ]; } &&
	    ! ls "$out".tmp.* >/dev/null 2>&1
	ok $? "$text"
	[ $got -eq "$want" ] || echo "# exit status $got"
}
out=$dir/out
dir2=$dir
dir=.				# where ok() finds err

# A copy of the model in which single files can be replaced.
fresh() {
	rm -rf m
	cp -rs "$model" m
}
swap() {			# swap FILE: from standard input
	rm -f "$1"
	cat > "$1"
}

"$bin/demo-world" prefs -n 4 --seed 5 --split train -o world >/dev/null &&
    "$bin/demo-world" prompts -n 2 --seed 3 --split train -o p.csv &&
    "$bin/lpo-encode" -q -j 1 --db none --precision f32 -m "$model" \
	-o enc.tar world/prefs.csv &&
    "$bin/lpo-pairs" -q -j 1 --db none -o pairs.tar enc.tar &&
    "$bin/lpo-lrm" -q -j 1 --db none --precision f32 -m "$model" --steps 1 \
	--batch 4 -o lrm pairs.tar &&
    "$bin/lpo-train" -q -j 1 --db none --precision f32 -m "$model" -r lrm \
	-p p.csv --iterations 1 --prompts-per-iteration 2 --batch 2 \
	--steps 2 --threshold quantile:0.5 -o lora.safetensors
ok $? "a small world"

sample() {
	bad "$1" "$2" "$3" lpo-sample -m m -p p.csv --steps 1 -o "$out"
}

# ------------------------------------------------------------ safetensors

hostile() {			# hostile HEADER: with its length before it
	printf "\\$(printf %03o $((${#1} % 256)))\\$(printf %03o \
	    $((${#1} / 256)))\\0\\0\\0\\0\\0\\0%s" "$1"
}
for part in unet/diffusion_pytorch_model vae/diffusion_pytorch_model \
    text_encoder/model; do
	f=m/$part.safetensors
	name=$part.safetensors
	good=$model/$name
	fresh
	rm $f
	sample 1 "${name%/*}" "$part: missing"
	: | swap $f
	sample 1 "$name" "$part: empty"
	head -c 5 "$good" | swap $f
	sample 1 "$name" "$part: five bytes"
	head -c 200 "$good" | swap $f
	sample 1 "$name" "$part: cut in the header"
	head -c -64 "$good" | swap $f
	sample 1 "$name" "$part: cut in the data"
	{ cat "$good"; echo more; } | swap $f
	sample 1 "$name" "$part: longer than it says"
	swap $f < world/img/000000_0.png
	sample 1 "$name" "$part: a picture"
	printf '\377\377\377\377\377\377\377\177{}' | swap $f
	sample 1 "$name" "$part: a header of 2^63 bytes"
	hostile '{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}}' | swap $f
	sample 1 "$name" "$part: a shape that overflows"
	hostile '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}' |
	    swap $f
	sample 1 "$name" "$part: offsets beyond the end"
	hostile '{}' | swap $f
	sample 1 "$name" "$part: no tensors"
	printf 'version https://git-lfs.github.com/spec/v1\nsize 9\n' |
	    swap $f
	sample 1 "$name: a pointer of Git LFS" "$part: never downloaded"
	LC_ALL=C sed 's/"F32"/"I32"/g; s/"F16"/"I16"/g; s/"BF16"/"I8"/g' \
	    "$good" | swap $f
	sample 1 "$name" "$part: tensors of integers"
done

# ------------------------------------------------------------------- JSON

for name in unet/config.json vae/config.json text_encoder/config.json \
    scheduler/scheduler_config.json tokenizer/vocab.json; do
	f=m/$name
	fresh
	rm $f
	sample 1 "${name%/*}" "$name: missing"
	: | swap $f
	sample 1 "$name" "$name: empty"
	head -c 60 "$model/$name" | swap $f
	sample 1 "$name" "$name: cut"
	echo '[1, 2]' | swap $f
	sample 1 "$name" "$name: no object"
	awk 'BEGIN { for (i = 0; i < 100000; i++) printf "[" }' | swap $f
	sample 1 "$name" "$name: nested 100000 deep"
	printf '{"a": "\377\376"}' | swap $f
	sample 1 "$name" "$name: no UTF-8"
done
edit() {			# edit FILE SED PATTERN
	fresh
	sed "$2" "$model/$1" | swap "m/$1"
	if cmp -s "m/$1" "$model/$1"; then
		ok 1 "'$2' changes $1"
	else
		sample 1 "$3" "$1: $2"
	fi
}
edit unet/config.json 's/"in_channels": *[0-9]*/"in_channels": 7/' conv_in
edit unet/config.json 's/"in_channels": *[0-9]*/"in_channels": "x"/' in_channels
edit unet/config.json 's/"layers_per_block": *[0-9]*/"layers_per_block": 999999999/' \
    layers_per_block
edit unet/config.json 's/"norm_num_groups": *[0-9]*/"norm_num_groups": 0/' \
    norm_num_groups
edit unet/config.json 's/"act_fn": *"[a-z]*"/"act_fn": "mish"/' act_fn
edit vae/config.json 's/"latent_channels": *[0-9]*/"latent_channels": -4/' \
    latent_channels
edit text_encoder/config.json 's/"hidden_size": *[0-9]*/"hidden_size": 1e18/' \
    hidden_size
edit scheduler/scheduler_config.json \
    's/"beta_schedule": *"[a-z_]*"/"beta_schedule": "cubic"/' beta_schedule
edit scheduler/scheduler_config.json \
    's/"_class_name": *"[A-Za-z]*"/"_class_name": "EDMEulerScheduler"/' \
    "'_class_name' is 'EDMEulerScheduler'"
edit scheduler/scheduler_config.json \
    's/"_class_name": *"[A-Za-z]*"/"_class_name": "FlowMatchEulerDiscreteScheduler"/' \
    "'_class_name' is 'FlowMatchEulerDiscreteScheduler'"
edit scheduler/scheduler_config.json 's/^{/{"use_flow_sigmas": true,/' \
    use_flow_sigmas
edit scheduler/scheduler_config.json \
    's/"num_train_timesteps": *[0-9]*/"num_train_timesteps": 0/' \
    num_train_timesteps
fresh
rm m/tokenizer/merges.txt
sample 1 merges.txt "merges: missing"
echo 'a b c d' | swap m/tokenizer/merges.txt
sample 1 merges.txt "merges: four words a line"
bad 1 nowhere "no such model" lpo-sample -m nowhere -p p.csv -o "$out"
bad 1 p.csv "a file as a model" lpo-sample -m p.csv -p p.csv -o "$out"

# ---------------------------------------------------------------- prompts

fresh
for f in none.csv none.txt none.json; do
	bad 1 $f "prompts: $f is missing" lpo-sample -m m -p $f -o "$out"
done
prompts() {			# prompts FILE PATTERN TEXT: of the file `in`
	cp in "$1"
	bad 1 "$2" "prompts: $3" lpo-sample -m m -p "$1" --steps 1 -o "$out"
}
: > in
prompts e.csv e.csv "empty CSV"
: > in
prompts e.txt e.txt "empty text"
: > in
prompts e.json e.json "empty JSON"
echo 'text,seed' > in
prompts c.csv c.csv "no column prompt"
printf 'prompt\n"never closed\n' > in
prompts q.csv q.csv "an open quote"
printf 'prompt\nfine\n\377\376 bad\n' > in
prompts u.csv 'u.csv:3' "no UTF-8"
echo '{"prompt": ["a", "b"]}' > in
prompts l.jsonl 'l.jsonl:1: the prompt is a list' "a list"
printf 'fine\n\377\376 bad\n' > in
prompts u.txt 'u.txt:2' "no UTF-8 in text"
printf '{"prompt": "a"}\n{"prompt"\n' > in
prompts l.jsonl 'l.jsonl:2' "a cut line"
head -c 3000 world/img/000000_0.png > in
prompts b.csv b.csv "a picture"
echo '{"a": {"caption": {"b": 1}}}' > in
prompts o.json "o.json:1: the prompt is a list or an object" "an object"

# ----------------------------------------------------- preferences, images

encode() {			# encode STATUS PATTERN TEXT FILE...
	s=$1 p=$2 t=$3
	shift 3
	bad "$s" "$p" "encode: $t" lpo-encode -m "$model" "$@"
}
table() {			# table FILE STATUS PATTERN TEXT: of the file `in`
	cp in "$1"
	encode "$2" "$3" "$4" "$1"
}
encode 1 gone.csv "no such table" gone.csv
: > in
table t.csv 1 t.csv "empty table"
echo 'prompt,image_0' > in
table t.csv 1 t.csv "a column is missing"
good='world/img/000000_0.png,world/img/000000_1.png'
h='prompt,image_0,image_1,preferred'
printf '%s\na,%s,7\na,%s,0\n' $h "$good" "$good" > in
table t.csv 3 'row 0' "a label that is none"
printf '%s\na,%s\na,%s,0\n' $h "$good" "$good" > in
table t.csv 3 'row 0' "a row too short"
printf '%s\na,%s,0,9,9\na,%s,0\n' $h "$good" "$good" > in
table t.csv 3 'row 0' "a row too long"
printf '%s\n\377a,%s,0\na,%s,0\n' $h "$good" "$good" > in
table t.csv 3 'row 0' "a prompt that is no UTF-8"
printf '%s\n"a,%s,0\n' $h "$good" > in
table t.csv 1 't.csv' "an open quote"
printf '%s\na,gone.png,world/img/000000_1.png,0\na,%s,0\n' $h "$good" > in
table t.csv 3 "row 0.*gone.png" "no such image"
printf '{"prompt":"a","image_0":"x","image_1":"y"}\n{"prompt"\n' > in
table t.jsonl 3 "row 1" "a cut line of JSON"

# One image in place of a good one, in a row of two.
image() {			# image PATTERN TEXT: of the file `in`
	mv in i.png
	printf '%s\na,i.png,world/img/000000_1.png,0\na,%s,0\n' $h "$good" > in
	table t.csv 3 "row 0.*i.png.*$1" "image: $2"
}
: > in
image '' "empty"
echo hello > in
image '' "text"
head -c 100 world/img/000000_0.png > in
image '' "cut"
# IHDR with 60000 x 60000, its CRC right, and a bit of data
printf '\211PNG\r\n\032\n\0\0\0\rIHDR\0\0\352\140\0\0\352\140\010\002\0\0\0\017\260\342\025\0\0\0\014IDAT\170\234\143\140\240\075\0\0\0\144\0\001\206\144\074\065' > in
image '60000' "PNG of 60000 x 60000"
printf '\377\330\377\300\0\021\010\333\334\333\334\003\001\021\0\002\021\001\003\021\001\377\332\0\014\003\001\0\002\021\003\021\0\077\0\377\331' > in
image '56284' "JPEG of 56284 x 56284"
printf 'RIFF\032\0\0\0WEBPVP8L\015\0\0\0\057\377\377\377\017\0\0\0\0\0\0\0\0\0' > in
image '16384' "WebP of 16384 x 16384"
printf '\211PNG\r\n\032\n\0\0\0\rIHDR\0\0\0\0\0\0\0\010\010\002\0\0\0\130\272\151\050' > in
image '' "PNG of no width"
mkdir d.png
printf '%s\na,d.png,world/img/000000_1.png,0\na,%s,0\n' $h "$good" > in
table t.csv 3 "row 0.*d.png" "image: a folder"

# -------------------------------------------------------------- tar, shards

# Every reader of tensors: pairs from moments, lrm from pairs.
reader() {			# reader GOOD TOOL ARGUMENT...: on $out
	g=$1
	shift
	bad 1 gone.tar "$1: no such shard" "$@" gone.tar
	: > s.tar
	bad 1 s.tar "$1: empty shard" "$@" s.tar
	head -c 3000 "$g" > s.tar
	bad 1 s.tar "$1: cut shard" "$@" s.tar
	head -c -2048 "$g" > s.tar
	bad 1 s.tar "$1: shard without its end" "$@" s.tar
	head -c 4096 /dev/urandom > s.tar
	bad 1 s.tar "$1: noise" "$@" s.tar
	gzip -c "$g" > s.tar
	bad 1 s.tar "$1: compressed" "$@" s.tar
	cp "$g" s.tar
	flip s.tar $(($(grep -abo NUMPY "$g" | head -1 | cut -d : -f 1) + 150))
	bad 1 s.tar "$1: a flipped bit" "$@" s.tar
	cp world/img/000000_0.png s.tar
	bad 1 s.tar "$1: a picture" "$@" s.tar
}
reader enc.tar lpo-pairs -o "$out"
reader pairs.tar lpo-lrm -m "$model" --steps 1 --batch 4 -o "$out"
bad 1 "has moments, not pairs" "lpo-lrm: moments for pairs" lpo-lrm -m "$model" --steps 1 \
    --batch 4 -o "$out" enc.tar
bad 1 pairs.tar "lpo-pairs: pairs for moments" lpo-pairs -o "$out" pairs.tar
# A stream that does not say how many pairs it has ends before the training.
"$bin/lpo-pairs" -q -j 1 --db none --shuffle 2 < enc.tar > stream.tar
bad 1 "the pairs end after 4; 9 steps of 2 need 18" "lrm: too few pairs" \
    lpo-lrm -m "$model" --steps 9 --batch 2 -o "$out" stream.tar
test -d "$out.state"
ok $? "lrm: what was trained is kept"
bad 2 "no total\|--steps" "lrm: no number of steps" lpo-lrm -m "$model" \
    --batch 2 -o "$out" stream.tar
bad 2 "--score needs -r" "lrm: nothing to score with" lpo-lrm --score \
    pairs.tar
bad 2 "--score and --lr contradict" "lrm: scoring does not train" lpo-lrm \
    --score -r lrm --lr 1 pairs.tar

# Foreign shards: no sums, so the tensors themselves must be right.
foreign() {			# foreign TEXT: moments from `in`
	rm -rf f s.tar
	mkdir f
	mv in f/1.moments_0.npy
	cp f/1.moments_0.npy f/1.moments_1.npy
	echo '{"prompt": "a", "label_0": 1, "label_1": 0}' > f/1.json
	(cd f && tar -cf ../s.tar 1.moments_0.npy 1.moments_1.npy 1.json)
	bad 1 's.tar\|1.moments' "moments: $1" lpo-pairs -m "$model" -o "$out" s.tar
}
npy() {				# npy DESCR SHAPE
	printf "\\223NUMPY\\001\\0\\166\\0%-117s\\n" \
	    "{'descr': '$1', 'fortran_order': False, 'shape': $2, }"
}
: > in
foreign "empty"
echo text > in
foreign "text"
npy '|O' '(8,)' > in
foreign "objects"
npy '<f4' '(8, 4, 4)' > in
foreign "a header alone"
npy '<f4' '(4611686018427387904, 8, 8)' > in
foreign "a shape that overflows"
npy '<f4' '(-8, 4, 4)' > in
foreign "a negative side"
{ npy '<f4' '(7, 2, 2)'; head -c 112 /dev/zero; } > in
foreign "odd channels"
{ npy '>f8' '(8, 1, 1)'; head -c 64 /dev/zero; } > in
foreign "big-endian f8"
printf '\223NUMPY\001\0\377\377{' > in
foreign "a header of 64 KiB that is not there"

# ---------------------------------------------------------------- LoRA, LRM

for what in missing empty picture cut foreign; do
	case $what in
	missing) f=gone.safetensors ;;
	empty)	f=l.safetensors; : > $f ;;
	picture) f=l.safetensors; cp world/img/000000_0.png $f ;;
	cut)	f=l.safetensors; head -c -100 lora.safetensors > $f ;;
	foreign) f=l.safetensors
		cp "$model/text_encoder/model.safetensors" $f ;;
	esac
	bad 1 "$f" "LoRA: $what" lpo-sample -m "$model" --lora "$f" -p p.csv \
	    --steps 1 -o "$out"
done
LC_ALL=C sed 's/"F16"/"I16"/g' lora.safetensors > l.safetensors
bad 1 "l.safetensors: 'lora_.*is I16" "LoRA: of integers" lpo-sample \
    -m "$model" --lora l.safetensors -p p.csv --steps 1 -o "$out"
LC_ALL=C sed 's/lora_down/lora_dawn/' lora.safetensors > l.safetensors
bad 1 'l.safetensors' "LoRA: a key that is none" lpo-sample -m "$model" \
    --lora l.safetensors -p p.csv --steps 1 -o "$out"
train() {			# train PATTERN TEXT: with the reward model r
	bad 1 "$1" "reward model: $2" lpo-train -m "$model" -r r -p p.csv \
	    --iterations 1 --prompts-per-iteration 2 --batch 2 --steps 2 \
	    -o "$out"
}
rm -rf r
train "'\?r" "missing"
: > r
train "'\?r" "a file"
rm r
mkdir r
train "r/" "an empty folder"
for f in lrm.json state_dict.pt unet/config.json \
    unet/diffusion_pytorch_model.safetensors text_encoder/model.safetensors; do
	rm -rf r
	cp -r lrm r
	: > "r/$f"
	train "r/$f" "$f is empty"
	head -c 40 "lrm/$f" > "r/$f"
	train "r/$f" "$f is cut"
	rm "r/$f"
	case $f in
	lrm.json) ;;		# an official folder has none
	*) train "r/" "$f is missing" ;;
	esac
done

# -------------------------------------------------------------- databases

# shellcheck disable=SC2317
database() {			# database FILE PATTERN TEXT
	rm -rf "$out"
	"$bin/lpo-encode" -q -j 1 --precision f32 --db "$1" -m "$model" \
	    -o "$out" world/prefs.csv >stdout 2>err
	got=$?
	[ $got -eq 1 ] && grep -q -- "$2" err && [ ! -e "$out" ]
	ok $? "database: $3"
}
cp world/img/000000_0.png x.db
database x.db "x.db" "a picture"
rm x.db
sqlite3 x.db "CREATE TABLE t (a)"
database x.db "not a database of lpo-tools" "another's"
rm x.db
"$bin/lpo-pairs" -q --db x.db -o pp.tar enc.tar
sqlite3 x.db "PRAGMA user_version = 99"
database x.db "newer" "of a newer version"
database nowhere/x.db "nowhere/x.db" "in a folder that is not there"
mkdir x.dir
database x.dir "x.dir" "a folder"
rm x.db
"$bin/lpo-pairs" -q --db x.db -o pp2.tar enc.tar
head -c 6000 x.db > y.db
database y.db "y.db" "cut"
bad 1 y.db "eval --pool of a damaged database" lpo-eval --pool y.db
bad 1 gone.db "eval --pool of none" lpo-eval --pool gone.db

# ---------------------------------------------------------------- scorers

mkdir a b
for s in a b; do
	cp world/img/000000_0.png $s/1.png
	cp world/img/000001_0.png $s/2.png
	echo one > $s/1.txt
	echo two > $s/2.txt
done
scorer() {			# scorer PATTERN TEXT COMMAND
	bad 1 "j.*$1\|$1.*j" "scorer: $2" lpo-eval --system one=a \
	    --system two=b --scorer "j=$3" -o "$out"
}
read_="cat >/dev/null;"
scorer 'status 1\|exit' "fails" false
scorer 127 "is not there" /nowhere/scorer
scorer signal "is killed" "kill -9 \$\$"
scorer '' "says nothing" "$read_ :"
scorer key "has no header" "$read_ echo hello"
scorer '' "has no names" "$read_ echo key"
scorer '2' "leaves one out" "$read_ printf 'key\tx\n1\t1\n'"
scorer '3' "has one too many" "$read_ printf 'key\tx\n1\t1\n2\t1\n3\t1\n'"
scorer '1' "says one twice" "$read_ printf 'key\tx\n1\t1\n1\t1\n2\t2\n'"
scorer nan "is not finite" "$read_ printf 'key\tx\n1\tnan\n2\t1\n'"
scorer abc "is no number" "$read_ printf 'key\tx\n1\tabc\n2\t1\n'"
scorer '' "has a field too few" "$read_ printf 'key\tx\ty\n1\t1\n2\t1\t1\n'"
scorer '' "never ends a line" "$read_ head -c 100000000 /dev/zero"

# ------------------------------------------------------------------ probe

probe() {			# probe PATTERN TEXT: input from `in`
	mv in in.safetensors
	bad 1 "$1" "probe: $2" lpo-probe -m "$model" -c unet \
	    -i in.safetensors -o "$out"
}
: > in
probe in.safetensors "empty input"
hostile '{}' > in
probe sample "no tensors"
{ hostile '{"sample":{"dtype":"F32","shape":[1,4,0,0],"data_offsets":[0,0]},"timestep":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"encoder_hidden_states":{"dtype":"F32","shape":[1,1,1],"data_offsets":[8,12]}}'
    head -c 12 /dev/zero; } > in
probe '' "sides of zero"
latents='"x_t":{"dtype":"F32","shape":[1,4,1,1],"data_offsets":[0,16]},"eps":{"dtype":"F32","shape":[1,4,1,1],"data_offsets":[16,32]}'
{ hostile "{$latents,\"timestep\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[32,40]}}"
    head -c 32 /dev/zero; printf '\350\3\0\0\0\0\0\0'; } > in.safetensors
bad 1 "timestep 1000 is not in 0..999" "probe: no such timestep" \
    lpo-probe -m "$model" -c ddim -i in.safetensors -o "$out"
{ hostile "{$latents}"; head -c 32 /dev/zero; } > in.safetensors
bad 1 "in.safetensors.*timestep" "probe: no timestep" \
    lpo-probe -m "$model" -c ddim -i in.safetensors -o "$out"
bad 2 "lpo-step: give --lora" "probe: a step without a LoRA" \
    lpo-probe -m "$model" -c lpo-step -i in.safetensors -o "$out"
ids() {				# ids COUNT LOW-WORD HIGH-WORD: that many
	printf '"input_ids":{"dtype":"I64","shape":[1,%d],"data_offsets":[0,%d]}' \
	    "$1" $((8 * $1)) > ids
	{
		hostile "{$(cat ids)}"
		# shellcheck disable=SC2059
		for i in $(seq "$1"); do printf "$2$3"; done
	} > in.safetensors
}
ids 16 '\377\377\0\0' '\0\0\0\0'
bad 1 "the id 65535 of a token is not in 0" "probe: no such token" \
    lpo-probe -m "$model" -c text -i in.safetensors -o "$out"
ids 16 '\5\0\0\0' '\1\0\0\0'
bad 1 "in.safetensors: 4294967301 in 'input_ids' is no id" \
    "probe: an id of 33 bits" lpo-probe -m "$model" -c text \
    -i in.safetensors -o "$out"
bad 1 "in.safetensors: no tensor 'sample'" "probe: nothing to judge" \
    lpo-probe -m "$model" -c lrm -r lrm -i in.safetensors -o "$out"
for c in 3 8; do
	{ hostile '{"sample":{"dtype":"F32","shape":[1,'$c',2,2],"data_offsets":[0,'$((16 * c))']},"timestep":{"dtype":"I64","shape":[1],"data_offsets":['$((16 * c))','$((16 * c + 8))']}}'
	    head -c $((16 * c + 8)) /dev/zero; } > in.safetensors
	bad 1 "in.safetensors: latents of $c channels, 'lrm' wants 4" \
	    "probe: $c channels to a reward model" lpo-probe -m "$model" \
	    -c lrm -r lrm -i in.safetensors -o "$out"
done
{ hostile '{"input_ids":{"dtype":"I64","shape":[0,16],"data_offsets":[0,0]}}'
    } > in.safetensors
bad 1 "in.safetensors: 'input_ids' has no elements" "probe: no rows" \
    lpo-probe -m "$model" -c text -i in.safetensors -o "$out"
{ hostile '{"input_ids":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'
    head -c 4 /dev/zero; } > in.safetensors
bad 1 "in.safetensors: 'input_ids' is F32" "probe: ids that are floats" \
    lpo-probe -m "$model" -c text -i in.safetensors -o "$out"
bad 1 gone.png "probe: no such image" lpo-probe -m "$model" -c image \
    --file gone.png -s 16 -o "$out"

# ------------------------------------------- parts that do not go together

"$bin/lpo-probe" -q -m random:tinyxl --save xl
xl() {				# xl PATTERN TEXT: m as it is now
	sample 1 "$1" "SDXL: $2"
	rm -rf m
	cp -r xl m
}
rm -rf m
cp -r xl m
rm -r m/text_encoder_2
bad 1 "'m': the UNet .* text_encoder_2/, is missing" \
    "SDXL: lpo-train without its second encoder" lpo-train -m m \
    -r random:tinyxl -p p.csv --iterations 1 -o "$out"
xl "'m': the UNet .* text_encoder_2/, is missing" "no second encoder"
rm -r m/tokenizer_2
xl "m/tokenizer_2/vocab.json" "no second tokenizer"
sed -i 's/"model_max_length": 77/"model_max_length": 60/' \
    m/tokenizer_2/tokenizer_config.json
xl "m: tokenizer makes 77 ids, tokenizer_2 60" "tokenizers of two lengths"
for t in m/tokenizer m/tokenizer_2; do
	sed -i 's/"model_max_length": 77/"model_max_length": 90/' \
	    $t/tokenizer_config.json
done
xl "m/text_encoder: the tokenizer makes 90 ids, .* is 77" "more than positions"
sed -i 's/^{/{"cat": 600,/' m/tokenizer/vocab.json
xl "m/text_encoder: the tokenizer has ids up to 600, 'vocab_size' is 514" \
    "ids beyond the table"
sed -i s/WithProjection// m/text_encoder_2/config.json
xl "m/text_encoder_2 has no 'text_projection.weight'" "it does not project"
sed -i 's/\("force_zeros_for_empty_prompt":\).*/\1 "yes",/' m/model_index.json
xl "m/model_index.json: 'force_zeros_for_empty_prompt' is not true or false" \
    "a word where yes or no should be"
sed -i 's/\("projection_class_embeddings_input_dim":\).*/\1 224,/' \
    m/unet/config.json
xl "config.json says \[64,224\]" "another pooled width"

# ---------------------------------------------------------------- outputs

fresh
bad 1 p.csv "output below a file" lpo-pairs -o p.csv/nowhere/at/all \
    enc.tar
dir=$dir2
done_testing
