#!/bin/sh
# Train the built-in model from nothing and write it into the package. Interrupted, the same command goes on.
#
#     examples/builtin_model/train.sh [FOLDER]
set -e
runs=${1:-runs/builtin}
here=$(dirname "$0")

stage() { # NAME CONFIG OPTIONS...
    name=$1
    config=$2
    shift 2
    if [ -e "$runs/$name/README.md" ]; then
        echo "$name: done"
    elif [ -e "$runs/$name/config.toml" ]; then
        vidlose finetune --resume "$runs/$name"
    else
        vidlose finetune --config "$here/$config.toml" --cache "$runs/cache" -o "$runs/$name" "$@"
    fi
}

mkdir -p "$runs"
stage images images
stage images-longer images-longer --model "$runs/images/model"
stage images-last images-longer --model "$runs/images-longer/model" --steps 3300 --muon-rate 0.005 --learning-rate 3e-4
[ -e "$runs/words" ] || python "$here/words.py" "$runs/images-last/model" "$runs/words"
stage motion motion --model "$runs/words"
stage together together --model "$runs/motion/model" --motion-module "$runs/motion/motion_module.safetensors"
python "$here/export_model.py" "$runs/together/model" "$runs/together/motion_module.safetensors"
