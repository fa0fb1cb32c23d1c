# A small world for the fault tests: preferences, shards, pairs, a reward
# model, prompts, a LoRA, and the stages that are disturbed.  Sourced after
# tests/cli/lib.sh; everything is below $dir.
# shellcheck shell=sh
# shellcheck disable=SC2154  # bin, model and dir are lib.sh's

# Stages work in the folder they are called in; what they need is in $in.
in=$dir/in
scorer=$bin/judge
clip=$PWD/tests/golden/clip

# tool COMMAND...: what every stage has in common.
tool() {
	t=$1
	shift
	"$bin/$t" -q -j "${JOBS:-1}" --precision f32 "$@"
}

# A table of pictures in each format, lossless WebP aside: libwebp 1.2.4 reads
# through NULL by itself where a table of its Huffman codes gets no memory.
formats() {
	i=tests/fuzz/corpus
	echo prompt,image_0,image_1,preferred
	for f in jpeg/progressive:webp/lossy jpeg/cmyk:webp/alpha \
	    jpeg/grey:webp/animation; do
		echo "${f%:*},$PWD/$i/${f%:*},$PWD/$i/${f#*:},0"
	done
}

make_world() {
	mkdir "$in"
	"$bin/demo-world" prefs -n 24 --seed 5 --split train -o "$in/world" \
	    >/dev/null &&
	"$bin/demo-world" prompts -n 6 --seed 3 --split train \
	    -o "$in/prompts.csv" &&
	formats > "$in/formats.csv" &&
	tool lpo-encode --db none -m "$model" -o "$in/enc-%06d.tar" \
	    --rows-per-shard 8 "$in/world/prefs.csv" &&
	tool lpo-encode --db none -m "$model" -o "$in/enc.tar" \
	    "$in/world/prefs.csv" &&
	tool lpo-pairs --db none --epochs 2 -o "$in/pairs.tar" \
	    "$in/enc-%06d.tar" &&
	tool lpo-lrm --db none -m "$model" --steps 3 --batch 8 --lr 1e-3 \
	    -o "$in/lrm" "$in/pairs.tar" &&
	tool lpo-train --db none -m "$model" -r "$in/lrm" \
	    -p "$in/prompts.csv" --iterations 1 --prompts-per-iteration 2 \
	    --batch 4 --steps 4 --lr 1e-3 --threshold quantile:0.5 \
	    -o "$in/lora.safetensors"
}

# Each stage: the same command again and again.  $every is --checkpoint.
stage_encode() {
	tool lpo-encode --db lpo.db -m "$model" --rows-per-shard 6 \
	    -o "enc-%06d.tar" "$in/world/prefs.csv"
}
stage_encode_one() {
	tool lpo-encode --db lpo.db -m "$model" --rows-per-shard 6 \
	    -o enc.tar "$in/world/prefs.csv"
}
stage_formats() {
	tool lpo-encode --db lpo.db -m "$model" -o enc.tar "$in/formats.csv"
}
stage_pairs() {
	tool lpo-pairs --db lpo.db --epochs "${EPOCHS:-2}" \
	    --pairs-per-shard 20 -o "pairs-%06d.tar" "$in/enc-%06d.tar"
}
stage_spool() {			# standard input is copied to $TMPDIR
	tool lpo-pairs --db lpo.db --epochs 2 -o pairs.tar < "$in/enc.tar"
}
stage_lrm() {
	tool lpo-lrm --db lpo.db --checkpoint "$every" -m "$model" \
	    --steps "${STEPS:-3}" --batch 8 --lr 1e-3 -o lrm "$in/pairs.tar"
}
stage_best() {			# what is kept is chosen by checks
	tool lpo-lrm --db lpo.db --checkpoint "$every" -m "$model" \
	    --steps "${STEPS:-3}" --batch 8 --lr 1e-3 --eval "$in/pairs.tar" \
	    --eval-every 1 --keep best -o lrm "$in/pairs.tar"
}
stage_pipe() {
	tool lpo-encode --db a.db -m "$model" "$in/world/prefs.csv" |
	    tool lpo-pairs --db b.db --epochs 2 |
	    tool lpo-lrm --db lpo.db --checkpoint "$every" -m "$model" \
		--batch 8 --lr 1e-3 -o lrm
}
stage_train() {
	tool lpo-train --db lpo.db --checkpoint "$every" -m "$model" \
	    -r "$in/lrm" -p "$in/prompts.csv" --iterations "${STEPS:-3}" \
	    --prompts-per-iteration 2 --batch 4 --steps 4 --lr 1e-3 \
	    --candidates "${CANDIDATES:-4}" --threshold quantile:0.5 \
	    --save-every 1 --check-count "${CHECKED:-6}" -o lora.safetensors
}
stage_full() {			# a whole model instead of a LoRA
	tool lpo-train --db lpo.db --checkpoint "$every" -m "$model" \
	    -r "$in/lrm" -p "$in/prompts.csv" --full --iterations 2 \
	    --prompts-per-iteration 1 --batch 4 --steps 4 --lr 1e-4 \
	    --candidates "${CANDIDATES:-4}" --threshold quantile:0.5 \
	    --check-every 1 --check-count 1 -o full
}
stage_tar() {
	tool lpo-sample --db lpo.db --checkpoint "$every" -m "$model" \
	    -p "$in/prompts.csv" --steps 2 --batch 2 -o pictures.tar
}
stage_systems() {
	tool lpo-eval --db lpo.db --checkpoint "$every" -m "$model" \
	    --system "base=$model" \
	    --system "half=$model+$in/lora.safetensors:0.5" \
	    --system "whole=$model+$in/lora.safetensors" \
	    -p "$in/prompts.csv" --steps 2 --batch 2 \
	    --scorer "judge=$scorer" --scorer "lrm:$in/lrm" -o scores.tsv
}
stage_sample() {
	tool lpo-sample --db lpo.db --checkpoint "$every" -m "$model" \
	    --lora "$in/lora.safetensors" -p "$in/prompts.csv" --steps 2 \
	    --batch 2 -o pictures/
}
stage_eval() {
	tool lpo-eval --db lpo.db --checkpoint "$every" -m "$model" \
	    --lora "$in/lora.safetensors" -p "$in/prompts.csv" --steps 2 \
	    --batch 2 --scorer "judge=$scorer" --html report.html -o scores.tsv
}
stage_images() {		# a tar of them for the program
	tool lpo-eval --db lpo.db --checkpoint "$every" \
	    --images "$in/world/prefs.csv" --scorer "judge=$scorer" \
	    --scorer "clip:$clip" -o scores.csv
}
stage_probe() {
	tool lpo-probe -c image --file "$in/world/img/000000_0.png" -s 16 \
	    -o image.safetensors
}

# sums FOLDER: the files a user sees, without databases and what lpo(7) says
# may stand beside an unfinished output.
sums() {
	(cd "$1" && find . -type f ! -name '*.db' ! -name '*.db-*' \
	    ! -path '*.state/*' ! -path '*.tmp.[0-9]*' ! -name out \
	    ! -name err -exec sha256sum {} + | LC_ALL=C sort)
}

# Nothing in $1 that looks finished differs from the file in $2.
nothing_wrong() {
	[ -e "$2.sums" ] || sums "$2" > "$2.sums"
	sums "$1" > "$dir/sums"
	LC_ALL=C comm -23 "$dir/sums" "$2.sums" > "$dir/others"
	test ! -s "$dir/others" ||
	    { sed 's/^[^ ]*  /wrong: /' "$dir/others"; return 1; }
}

# All of $2 is in $1, and no temporary files are.
finished() {
	nothing_wrong "$1" "$2" || return 1
	cmp -s "$dir/sums" "$2.sums" ||
	    { echo "files are missing"; return 1; }
	(cd "$1" && find . -path '*.tmp.[0-9]*' -o -name '*.state') > \
	    "$dir/left"
	test ! -s "$dir/left" ||
	    { echo "left: $(tr '\n' ' ' < "$dir/left")"; return 1; }
}

# The rows that no time and no attempt changes.
rows() {
	test -e "$1" || return 0
	sqlite3 -bail "$1" "PRAGMA integrity_check" \
	    "SELECT 'run', run, tool, status FROM run ORDER BY run" \
	    "SELECT run, name, step, value FROM metric JOIN run ON
		run.id = run_id ORDER BY run, name, step" \
	    "SELECT row, prompt, label_0, label_1, extra FROM preference
		ORDER BY run_id, row" \
	    "SELECT step, path, sha256 FROM checkpoint ORDER BY step, path" \
	    "SELECT name, key, prompt, number, seed, image.sha256, scorer,
		value FROM system JOIN image ON system_id = system.id JOIN
		score ON image_id = image.id ORDER BY name, key, scorer" \
	    "SELECT scorer, difference, win_rate FROM result
		ORDER BY scorer, system_id" \
	    "SELECT role, path, sha256 FROM input ORDER BY role, path" \
	    "SELECT parent FROM parent ORDER BY parent"
}
same_rows() {
	if rows "$1" > "$dir/rows1" && rows "$2" > "$dir/rows2" &&
	    cmp -s "$dir/rows1" "$dir/rows2"; then
		return 0
	fi
	echo "rows of ${1##*/} differ"
	return 1
}
