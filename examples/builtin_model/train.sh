#!/bin/sh
# Train the built-in model and write it into the package: all of it but the autoencoder, which train_autoencoder.py
# trains and export_autoencoder.py writes. About 15 hours on two cores; interrupted, the same command goes on.
#
#     PATH=.venv/bin:$PATH examples/builtin_model/train.sh [FOLDER]
#
# What the stages were like: training.png, which curves.py draws from the logs beside it. From `together` on all parts
# train together: unlike AnimateDiff's, the motion module is for this U-Net alone.
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

mixed() { # NAME UNET TEXT: the one's U-Net with the other's text encoder, by their folders
    [ ! -e "$runs/$1" ] || return 0
    rm -rf "$runs/$1.part"
    cp -r "$runs/$2" "$runs/$1.part"
    cp "$runs/$3/text_encoder/"* "$runs/$1.part/text_encoder/"
    mv "$runs/$1.part" "$runs/$1"
}

after() { # NAME: the options that begin with a stage's result
    echo "--model $runs/$1/model --motion-module $runs/$1/motion_module.safetensors"
}

mkdir -p "$runs"
stage images images
stage images-longer images-longer --model "$runs/images/model"
stage images-last images-longer --model "$runs/images-longer/model" --steps 3300 --muon-rate 0.005 --learning-rate 3e-4
[ -e "$runs/words" ] || python "$here/words.py" "$runs/images-last/model" "$runs/words"
stage motion motion --model "$runs/words"
stage together together $(after motion)

mixed listening together/model words
listening="--model $runs/listening --motion-module $runs/together/motion_module.safetensors"
stage given directions $listening --steps 503 --levels diagonal,given,given --levels-share 0.9 --ema 0.99
stage words-four directions $listening --steps 981 --frames 4 --batch-size 32 --levels first --levels-share 1 \
    --logit-mean 3 --logit-std 0.7 --train-text-encoder --ema 0.99
mixed telling given/model words-four/model
stage four directions --model "$runs/telling" --motion-module "$runs/given/motion_module.safetensors" --steps 1276 \
    --frames 4 --batch-size 32 --levels-partitions 4 --levels-partitions 8 --levels-partitions 16 --logit-mean 2
stage sixteen directions $(after four) --steps 604
stage pieces directions $(after sixteen) --steps 3708 --levels-partitions 1 --levels-partitions 2 \
    --levels-partitions 4 --levels-partitions 8 --pieces 16 --pieces 4 --ema 0.995
stage settled directions $(after pieces) --steps 650 --pieces 16 --pieces 16 --pieces 4 --logit-mean 1.2 \
    --lr-schedule linear --warmup-steps 20 --ema 0.995
stage pans pans $(after settled) --steps 1350
stage sharp pans $(after pans) --steps 1200 --seed 22 --pieces 16 --pieces 16 --pieces 16 --pieces 16 --pieces 16 \
    --pieces 1
python "$here/export_model.py" "$runs/sharp/model" "$runs/sharp/motion_module.safetensors"
