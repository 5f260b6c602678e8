#!/bin/sh
# Every setting of docs/benchmarks.md: benchmarks/settings.sh DATA OUT, the folder of the data sets and one for results.
# The tables of all of them end up in OUT/tables.txt. Activations are computed once and cached; after that, a setting
# takes seconds, and 200 random splits take minutes.
# shellcheck disable=SC2086 # $sources, $mixture and $stakes are several options each
set -eu
here=$(dirname "$0")
data=$1
out=$2
mkdir -p "$out"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# run NAME OPTIONS...: one setting, with both experts; $splits random splits with the strong one.
run() {
  name=$1
  shift
  for expert in strong weak; do
    [ "$expert" = strong ] || splits=0
    python "$here/cascade.py" "$@" --expert-column "expert_$expert" --violations "$splits" \
      --json "$out/${name}_$expert.json" --markdown "$out/${name}_$expert.md" >"$out/${name}_$expert.log"
  done
}

sources="--safety-data $data/openai_moderation.jsonl.gz $data/surge_toxicity.jsonl.gz"
mixture="--data $data/edos.jsonl.gz $data/diasafety.jsonl.gz $data/davidson.jsonl.gz --calibration-rows 999"
stakes="--data $data/high_stakes.jsonl.gz --train-rows 600 --calibration-rows 400 --test-rows 775 --seeds 20"
splits=0
run M $mixture $sources
splits=200
run R $mixture
for set in edos diasafety davidson; do
  splits=0
  run "S_$set" --data "$data/$set.jsonl.gz" $sources
  splits=200
  run "A_$set" --data "$data/$set.jsonl.gz"
done
splits=200
run H $stakes --safety-group synthetic

for setting in M R S A H; do
  for file in "$out/$setting"_*.md; do
    printf '\n<details><summary>%s</summary>\n\n' "$(basename "$file" .md | tr _ ' ')"
    cat "$file"
    printf '\n</details>\n'
  done
done >"$out/details.txt"
{
  python "$here/summary.py" "$out"/M_*.json "$out"/R_*.json "$out"/S_*.json "$out"/A_*.json "$out"/H_*.json
  cat "$out/details.txt"
} >"$out/tables.txt"
