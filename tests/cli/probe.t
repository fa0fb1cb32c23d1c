#!/bin/sh
# lpo-probe: components in a chain, Philox's known answer, wrong inputs.
set -u
. tests/cli/lib.sh

world 2
probe() {
	"$bin/lpo-probe" -q -m "$model" --precision f32 "$@" 2>"$dir/err"
}

# st FILE HEADER BYTES: a safetensors file of zeros.
st() {
	len=${#2}
	# shellcheck disable=SC2059
	{
		printf "\\$(printf %03o $((len % 256)))\\$(printf %03o \
		    $((len / 256)))\\0\\0\\0\\0\\0\\0"
		printf '%s' "$2"
		head -c "$3" /dev/zero
	} > "$1"
}

# The header of a safetensors file; the shape of one of its tensors.
header() {
	tail -c +9 "$1" | head -c "$(od -An -tu8 -N8 "$1" | tr -d ' ')"
}
shape() {
	header "$1" | grep -o "\"$2\":{[^}]*}" |
	    sed 's/.*"shape":\(\[[0-9,]*\]\).*/\1/'
}

is "$("$bin/lpo-probe" | wc -l | tr -d ' ')" 14 "without -c: the components"

# ---- what there is to compute with
probe --devices > "$dir/out"
ok $? "--devices"
is "$(head -1 "$dir/out" | tr '\t' ' ')" "device name level units memory_bytes free_bytes precision library features" "its columns"
is "$(awk -F '\t' 'NF != 9' "$dir/out" | wc -l | tr -d ' ')" 0 "in every line"
is "$(sed -n 2p "$dir/out" | cut -f 1,7)" "cpu	f32" "the CPU, its precision"
is "$(probe --devices --isa portable | sed -n 2p | cut -f 3)" portable \
    "at the level asked for"
if has_amx; then
	is "$(probe --devices --precision bf16x3 | sed -n 2p | cut -f 7)" \
	    bf16x3 "f32 by products of bf16"
else
	skip "no AMX: --precision bf16x3"
fi
is "$(probe --devices -j 2 --json | head -1 | sed 's/,"memory.*//; s/"name":"[^"]*"/N/; s/"level":"[^"]*"/L/')" '{"device":"cpu",N,L,"units":2' "as JSON"
(
	LPO_CUDA_PLUGIN=/nonexistent/lpo-cuda.so
	export LPO_CUDA_PLUGIN
	"$bin/lpo-probe" --devices > "$dir/out" 2> "$dir/err"
)
is $? 0 "no plug-in is no failure"
is "$(wc -l < "$dir/out" | tr -d ' ')" 2 "the CPU alone then"
grep -q "^lpo-probe: no device 'cuda': no CUDA plug-in" "$dir/err"
ok $? "and why"
probe --devices -c unet > "$dir/out"
is $? 2 "--devices does nothing else"

# ---- tokenizer
echo 'a red circle' | probe -c tokenizer > "$dir/out"
ok $? "tokenizer"
is "$(wc -w < "$dir/out" | tr -d ' ')" 16 "as many ids as the model takes"
printf '%s\n' '"a red\ncircle"' | probe --json -c tokenizer |
    cmp -s - "$dir/out"
ok $? "a JSON string; white space is one blank"
printf 'a\nb\nc\n' | probe -c tokenizer | wc -l | tr -d ' ' > "$dir/out"
is "$(cat "$dir/out")" 3 "a line each"

probe -c tokenizer < "$dir" > "$dir/out"
is $? 1 "a folder on standard input"
grep -q "cannot read standard input" "$dir/err"
ok $? "which is said"
mkfifo "$dir/fifo"
"$bin/lpo-probe" -q -m "$model" -c tokenizer < "$dir/fifo" > "$dir/out" \
    2> "$dir/err" &
pid=$!
exec 9> "$dir/fifo"
# it has a handler for SIGTERM, bit 14 of the mask; then it soon reads
until grep -q '^SigCgt:.*[4-7c-f]...$' "/proc/$pid/status"; do
	sleep 0.05
done
sleep 0.5
kill -TERM $pid
wait $pid
is $? 4 "SIGTERM while it reads: exit 4"
exec 9>&-

# ---- picture -> moments
probe -c image --file "$dir/world/img/000000_0.png" -s 32 -o "$dir/i.st"
ok $? "image"
is "$(shape "$dir/i.st" image)" "[1,3,32,32]" "its shape"
probe -c image --exif --file "$dir/world/img/000000_0.png" -s 32 \
    -o "$dir/i2.st"
same "$dir/i.st" "$dir/i2.st" "--exif without a tag changes nothing"
probe -c vae-encode -i "$dir/i.st" -o "$dir/m.st"
ok $? "vae-encode"
is "$(shape "$dir/m.st" moments)" "[1,8,8,8]" "its shape"
probe -c vae-encode -i "$dir/i.st" -o "$dir/m2.st" -j 1 --isa avx2 ||
    cp "$dir/m.st" "$dir/m2.st"
is "$(shape "$dir/m2.st" moments)" "[1,8,8,8]" "another level, one thread"

# ---- variants of weights, and pickles
mkdir "$dir/m"
cp -r "$model"/* "$dir/m/"
mv "$dir/m/vae/diffusion_pytorch_model.safetensors" \
    "$dir/m/vae/diffusion_pytorch_model.fp16.safetensors"
vae() {
	status "$bin/lpo-probe" -m "$dir/m" --precision f32 -c vae-encode \
	    -i "$dir/i.st" -o "$dir/v.st" --force "$@"
}
is "$(vae)" 1 "no plain file"
is "$(vae --variant fp16)" 0 "--variant fp16"
same "$dir/v.st" "$dir/m.st" "the same weights, the same moments"
is "$(vae --variant fp8)" 1 "a variant that no part has"
grep -q "no part of .* 'fp8'" "$dir/err"
ok $? "says so"
is "$(vae --variant a/b)" 2 "a variant is no path"
cp "$model"/vae/*.safetensors "$dir/m/vae/"
echo 'a red circle' > "$dir/p.txt"
run_id() {
	"$bin/lpo-sample" -v -m "$dir/m" -p "$dir/p.txt" -o "$dir/s.tar" \
	    --db none --dry-run "$@" 2>&1 | sed -n 's/^lpo-sample: run //p'
}
plain=$(run_id)
test -n "$plain" -a "$plain" = "$(run_id)" -a \
    "$plain" != "$(run_id --variant fp16)"
ok $? "a variant is part of the run's id"

# ---- zeros through the rest
st "$dir/z.st" '{"latent":{"dtype":"F32","shape":[2,4,8,8],"data_offsets":[0,2048]}}' 2048
probe -c vae-decode -i "$dir/z.st" -o "$dir/o.st"
is "$(shape "$dir/o.st" image)" "[2,3,32,32]" "vae-decode"
st "$dir/z.st" '{"input_ids":{"dtype":"I64","shape":[1,16],"data_offsets":[0,128]}}' 128
probe -c text -i "$dir/z.st" -o "$dir/o.st"
ok $? "text"
is "$(shape "$dir/o.st" pooled)" "[1,64]" "pooled"
st "$dir/z.st" '{"sample":{"dtype":"F32","shape":[1,4,8,8],"data_offsets":[0,1024]},"timestep":{"dtype":"I64","shape":[1],"data_offsets":[1024,1032]},"encoder_hidden_states":{"dtype":"F32","shape":[1,16,64],"data_offsets":[1032,5128]},"d_out":{"dtype":"F32","shape":[1,4,8,8],"data_offsets":[5128,6152]}}' 6152
probe -c unet -i "$dir/z.st" -o "$dir/o.st"
is "$(shape "$dir/o.st" out)" "[1,4,8,8]" "unet"
probe -c unet --grad --full -i "$dir/z.st" -o "$dir/o.st"
is "$(shape "$dir/o.st" d_sample) $(shape "$dir/o.st" \
    grad.conv_in.weight)" "[1,4,8,8] [48,4,3,3]" "unet with gradients"
probe -c unet -i "$dir/z.st" -o "$dir/o.st" --repeat 3 > "$dir/out"
is "$(awk -F '\t' '{ print NF, $1, ($2 <= $3), ($4 > 1000000) }' \
    "$dir/out")" "4 unet 1 1" "--repeat: min, median, memory"
probe -c unet -i "$dir/z.st" --repeat 3 --json > "$dir/out"
is "$(tr -d '0-9.' < "$dir/out")" \
    '{"component":"unet","min_ms":,"median_ms":,"peak_rss_bytes":}' \
    "the same as JSON"
probe -c unet -i "$dir/z.st" -o "$dir/no.st" --dry-run > "$dir/out"
is "$(head -n 2 "$dir/out" | tr '\t\n' ': ')" \
    "component:unet d_out:F32 1x4x8x8 " "--dry-run: what goes in"
probe --save "$dir/no.st" --dry-run > "$dir/out"
test ! -e "$dir/no.st"
ok $? "and nothing is written"
probe -c unet -i "$dir/z.st" -o "$dir/o1.st"
same "$dir/o1.st" "$dir/o.st" "repeated: the same bytes"
st "$dir/z.st" '{"x_t":{"dtype":"F32","shape":[1,4,8,8],"data_offsets":[0,1024]},"eps":{"dtype":"F32","shape":[1,4,8,8],"data_offsets":[1024,2048]},"timestep":{"dtype":"I64","shape":[1],"data_offsets":[2048,2056]}}' 2056
probe -c ddim -i "$dir/z.st" -o "$dir/o.st"
is "$(shape "$dir/o.st" sigma)" "[1]" "ddim"
probe -c ddim -i "$dir/z.st" -o "$dir/o.st" --steps 50 \
    --threshold linear:0.2:0.4
is "$(shape "$dir/o.st" timesteps) $(shape "$dir/o.st" threshold)" \
    "[50] [50]" "its timesteps and thresholds"
probe -c ddim -i "$dir/z.st" -o "$dir/o.st" --threshold linear
is $? 1 "a threshold that is none"

# ---- the reward model: equal images have losses in closed form
one='\0\0\200\077'
pairs() {			# pairs HEADER_TAIL BYTES: two of zeros
	st "$dir/z.st" '{"sample_0":{"dtype":"F32","shape":[2,4,6,4],"data_offsets":[0,768]},"sample_1":{"dtype":"F32","shape":[2,4,6,4],"data_offsets":[768,1536]},"timestep":{"dtype":"I64","shape":[2],"data_offsets":[1536,1552]},"input_ids":{"dtype":"I64","shape":[2,6],"data_offsets":[1552,1648]},"label_1":{"dtype":"F32","shape":[2],"data_offsets":[1648,1656]},"label_0":{"dtype":"F32","shape":[2],"data_offsets":[1656,1664]},"num_example_per_prompt":{"dtype":"F32","shape":[2],"data_offsets":[1664,1672]}'"$1}" 1656
	# shellcheck disable=SC2059
	printf "$one$one$one$one$2" >> "$dir/z.st"
}
loss() {			# loss OPTIONS: of equal images, as a number
	probe -c lrm-loss -r tests/golden/lrm/sd -i "$dir/z.st" \
	    -o "$dir/o.st" "$@" && tail -c 4 "$dir/o.st" | od -An -tf4 |
	    awk '{ printf "%.4f\n", $1 }'
}
pairs '' ''
is "$(loss)" 0.6931 "lrm-loss: log 2"
is "$(loss --criterion batch)" 1.0397 "batch: (log 4 + log 2) / 2"
is "$(loss --criterion both --batch-coeff 2)" 2.7726 "both, with a weight"
probe -c lrm-loss -r tests/golden/lrm/sd -i "$dir/z.st" -o "$dir/o.st" --grad
is "$(header "$dir/o.st" | grep -c 'grad.text_encoder.')" 1 "gradients"
probe -c lrm-loss -r tests/golden/lrm/sd -i "$dir/z.st" -o "$dir/o.st" \
    --grad --freeze-text
is "$(header "$dir/o.st" | grep -c 'grad.text_encoder.') $(header \
    "$dir/o.st" | grep -c 'grad.unet.')" "0 1" "--freeze-text: none of text"
pairs ',"input_ids_2":{"dtype":"I64","shape":[2,6],"data_offsets":[1672,1768]}' \
    ''
head -c 96 /dev/zero >> "$dir/z.st"
probe -c lrm-loss -r tests/golden/lrm/xl -i "$dir/z.st" -o "$dir/o.st" \
    --grad --freeze-text
is "$? $(header "$dir/o.st" | grep -c 'grad.text_encoder') $(header \
    "$dir/o.st" | grep -c 'grad.unet.')" "0 0 1" \
    "--freeze-text with SDXL's encoders, which have the text's projection"
pairs ',"timestep_1":{"dtype":"I64","shape":[2],"data_offsets":[1672,1688]}' \
    '\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0'
is "$(loss --aux-coeff 0)" 0.0000 "two timesteps: their weight"
"$bin/lpo-probe" -c lrm-loss --criterion some -i "$dir/z.st" \
    -o "$dir/o.st" 2>/dev/null
is $? 2 "no such criterion"

# ---- Philox 4x32-10 of zeros: 6627e8d5 e169c58d bc57ac4c 9b00dbd8
st "$dir/z.st" '{"counter":{"dtype":"I64","shape":[1,4],"data_offsets":[0,32]},"key":{"dtype":"I64","shape":[1,2],"data_offsets":[32,48]}}' 48
probe -c philox -i "$dir/z.st" -o "$dir/o.st"
is "$(tail -c 32 "$dir/o.st" | od -An -tx8 -v | tr -s ' \n' ' ')" \
    " 000000006627e8d5 00000000e169c58d 00000000bc57ac4c 000000009b00dbd8 " \
    "philox: the known answer"

# ---- random models, and folders written
st "$dir/z.st" '{"sample":{"dtype":"F32","shape":[1,4,5,7],"data_offsets":[0,560]},"timestep":{"dtype":"I64","shape":[1],"data_offsets":[560,568]},"encoder_hidden_states":{"dtype":"F32","shape":[1,77,48],"data_offsets":[568,15352]}}' 15352
probe -m random:tiny -c unet -i "$dir/z.st" -o "$dir/o.st"
ok $? "-m random:tiny, 5 x 7"
is "$(shape "$dir/o.st" out)" "[1,4,5,7]" "its output"
probe -m random:tiny --save "$dir/tiny"
ok $? "--save"
is "$(cd "$dir/tiny" && echo * */config.json)" "model_index.json scheduler text_encoder tokenizer unet vae text_encoder/config.json unet/config.json vae/config.json" "a diffusers folder"
probe -m "$dir/tiny" -c unet -i "$dir/z.st" -o "$dir/o1.st"
same "$dir/o1.st" "$dir/o.st" "it is the model that was written"
is "$(echo 'a red circle' | probe -m "$dir/tiny" -c tokenizer | cut -c 1-12)" \
    "$(echo 'a red circle' | probe -m random:tiny -c tokenizer | cut -c 1-12)" \
    "its tokenizer too"
probe -m random:tiny --save "$dir/tiny"
is $? 1 "a folder that is there already"
probe -m random:tiny --save "$dir/tiny/" --force --dtype f16
ok $? "--force"
test "$(wc -c < "$dir/tiny/unet/diffusion_pytorch_model.safetensors")" -lt \
    4500000
ok $? "in f16"
probe -m "$model" --save "$dir/copy"
ok $? "a folder rewritten"
st "$dir/z.st" '{"latent":{"dtype":"F32","shape":[2,4,8,8],"data_offsets":[0,2048]}}' 2048
probe -m "$dir/copy" -c vae-decode -i "$dir/z.st" -o "$dir/o.st"
probe -c vae-decode -i "$dir/z.st" -o "$dir/o1.st"
same "$dir/o1.st" "$dir/o.st" "and it is the same model"
set -- "$dir"/*.tmp.*
test ! -e "$1"
ok $? "nothing is left beside them"
st "$dir/z.st" '{"sample":{"dtype":"F32","shape":[1,4,8,8],"data_offsets":[0,1024]},"timestep":{"dtype":"I64","shape":[1],"data_offsets":[1024,1032]},"input_ids":{"dtype":"I64","shape":[1,77],"data_offsets":[1032,1648]}}' 1648
probe -m random:tiny -r random:tiny -c lrm -i "$dir/z.st" -o "$dir/o.st"
ok $? "a random reward model"
probe -m random:large --save "$dir/large"
is $? 2 "no such random model"
grep -q 'tinyxl' "$dir/err"
ok $? "the kinds are named"
probe -m random:tiny/unet --save "$dir/large"
is $? 2 "half a random model"
probe -m random:tiny --save "$dir/large" -c unet
is $? 2 "--save does nothing else"
probe --dtype f16 -c unet -i "$dir/z.st" -o "$dir/o.st"
is $? 2 "--dtype without --save"

# ---- wrong inputs
st "$dir/z.st" '{"counter":{"dtype":"I64","shape":[1,4],"data_offsets":[0,32]},"key":{"dtype":"I64","shape":[1,2],"data_offsets":[32,48]}}' 48
probe -c unet -i "$dir/z.st" -o "$dir/o.st"
is $? 1 "inputs of another component"
grep -q "sample" "$dir/err"
ok $? "the missing one is named"
probe -c nothing -i "$dir/z.st" -o "$dir/o.st"
is $? 2 "no such component"
probe -c unet -o "$dir/o.st"
is $? 2 "no input"
probe -c philox -i "$dir/z.st"
is $? 2 "no output"
"$bin/lpo-probe" -c unet -i "$dir/z.st" -o "$dir/o.st" 2>/dev/null
is $? 2 "no model"
done_testing
