#!/bin/sh
# Every setting of docs/benchmarks.md: benchmarks/settings.sh DATA OUT, the folder of the data sets and one for results.
# Activations are computed once, then cached; the rest takes about a minute a setting on one core.
set -eu
data=$1
out=$2
mkdir -p "$out"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

run() {
  name=$1
  shift
  python "$(dirname "$0")/cascade.py" "$@" --json "$out/$name.json" --markdown "$out/$name.md" >/dev/null
}

source="--safety-data $data/openai_moderation.jsonl.gz $data/surge_toxicity.jsonl.gz"
mixture="--data $data/edos.jsonl.gz $data/diasafety.jsonl.gz $data/davidson.jsonl.gz --calibration-rows 999"
stakes="--data $data/high_stakes.jsonl.gz --train-rows 600 --calibration-rows 400 --test-rows 782 --seeds 20"
# The options are words without spaces, and must be split.
# shellcheck disable=SC2086
for expert in strong weak; do
  run "M_$expert" $mixture --expert-column expert_$expert $source
  run "R_$expert" $mixture --expert-column expert_$expert --violations $([ $expert = strong ] && echo 200 || echo 0)
  for name in edos diasafety davidson; do
    run "S_${name}_$expert" --data "$data/$name.jsonl.gz" --expert-column expert_$expert $source
    run "A_${name}_$expert" --data "$data/$name.jsonl.gz" --expert-column expert_$expert \
      --violations $([ $expert = strong ] && echo 200 || echo 0)
  done
  run "H_$expert" $stakes --expert-column expert_$expert --safety-group synthetic \
    --violations $([ $expert = strong ] && echo 200 || echo 0)
done
