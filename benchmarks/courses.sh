#!/usr/bin/env bash
# The figures of docs/courses.md, each by the commands that a reader would give. Runs that have ended are not trained again.
#   bash benchmarks/courses.sh DATA OUT [digits baselines labels faces pets extras]
# DATA holds t10k-*-ubyte.gz (MNIST's 10,000 test digits), imagenette224_6000.tar and fer2013_11.5k.csv.xz; all that is made
# lies below OUT. ENGINES ("pytorch gluon") and SEEDS ("1 2 3") may be set; OMP_NUM_THREADS=1 leaves the others their cores.
data="$(realpath "$1")" out="$(realpath -m "$2")"
. "$(dirname "$0")/../scripts/environment.sh"
parts="${*:3}"
mkdir -p "$out" && cd "$out"

trained() { # RUN RECIPE [KEY=VALUE ...]: trains, and prints the scores of the test images
    test -e "output/runs/$1/report-test.json" || { imagenet-pipeline train "${@:2}" --run "output/runs/$1" &&
        imagenet-pipeline evaluate "output/runs/$1" --split test; }
}

both() { # NAME RECIPE [KEY=VALUE ...]: every seed on every engine
    for seed in ${SEEDS:-1 2 3}; do
        for engine in ${ENGINES:-pytorch gluon}; do trained "$1-$engine-$seed" "${@:2}" "engine=$engine" "seed=$seed"; done
    done
    mean "$1"
}

mean() { # NAME: the mean rank-1 over its seeds, of each engine
    python - "$1" <<'PYTHON'
import glob, json, statistics, sys
for engine in ("pytorch", "gluon"):
    paths = sorted(glob.glob(f"output/runs/{sys.argv[1]}-{engine}-*/report-test.json"))
    ranks = [json.load(open(path))["rank1"] for path in paths]
    if ranks:
        print(f"{sys.argv[1]}, {engine}: rank-1 {statistics.mean(ranks):.2f} %, mean of {ranks}")
PYTHON
}

photos() { test -e imagenette224 || tar -xf "$data/imagenette224_6000.tar"; }

digits() {
    mkdir -p t10k && cp "$data"/t10k-* t10k/
    imagenet-pipeline build mnist --root t10k --val-images 1000 --test-images 1000 --out output/mnist
    both mlp courses/mnist_mlp
    both cnn courses/mnist_cnn
}

baselines() {
    photos
    imagenet-pipeline build folder --root imagenette224 --resize 64 --out output/imagenette64
    imagenet-pipeline baseline output/imagenette64 --model knn --size 32
    imagenet-pipeline baseline output/imagenette64 --model knn --features hog --size 32
    imagenet-pipeline baseline output/imagenette64 --model perceptron --penalty none --epochs 10 --size 32
    for penalty in none l1 l2; do
        imagenet-pipeline baseline output/imagenette64 --model sgd --penalty "$penalty" --epochs 10 --size 32
    done
}

labels() {
    test -e output/digits || imagenet-pipeline export-records output/mnist --format folder --out output/digits
    python - <<'PYTHON'
import csv, pathlib
with open("tags.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["file", "digit", "even", "large", "prime"])
    for path in sorted(pathlib.Path("output/digits").glob("*/*/*.png")):
        digit = int(path.parent.name)
        table.writerow([path.relative_to("output/digits"), digit, int(digit % 2 == 0), int(digit >= 5), int(digit in (2, 3, 5, 7))])
PYTHON
    of_table=(build csv --csv tags.csv --image-column file --root output/digits --pass-through --val-fraction 0.1 --test-fraction 0.1)
    imagenet-pipeline "${of_table[@]}" --label-columns even,large,prime --out output/tags
    imagenet-pipeline "${of_table[@]}" --label-column digit --regression --out output/numbers
    trained tags courses/tags engine=pytorch seed=1
    trained numbers courses/tags records=output/numbers loss.kind=mse engine=pytorch seed=1
}

faces() {
    xz -dc "$data/fer2013_11.5k.csv.xz" >fer2013.csv
    { head -n 1 fer2013.csv && grep ',Training' fer2013.csv | head -n 2000 && grep ',PublicTest' fer2013.csv | head -n 1000; } >faces.csv
    imagenet-pipeline build fer2013 --csv faces.csv --classes 6 --out output/faces
    for turn in 10 30; do
        for network in lenet_strides_2_3 minivgg_one_block; do
            imagenet-pipeline train courses/faces records=output/faces "network=networks/$network.toml" epochs=4 \
                "augmentation.rotation_degrees=$turn" engine=pytorch seed=1 --run "output/runs/$network-$turn"
            imagenet-pipeline evaluate "output/runs/$network-$turn" --split val --checkpoint latest
        done
    done
}

pets() {
    photos
    mkdir -p pets/train pets/test # a tench plays the cat, a springer spaniel the dog
    for pair in cat=n01440764 dog=n02102040; do
        for split in train=train test=val; do
            number=0
            for photo in imagenette224/"${split#*=}/${pair#*=}"/*; do
                ln -sf "$(realpath "$photo")" "pets/${split%=*}/${pair%=*}.$((number++)).jpg"
            done
        done
    done
    imagenet-pipeline build folder --root pets --label-from '(?P<split>train|test)/(?P<label>cat|dog)\.' --val-fraction 0.1 \
        --resize 64 --out output/pets
    imagenet-pipeline networks vgg16 --input 50 --classes 2
    trained vgg16 courses/cats_and_dogs engine=pytorch seed=1
    imagenet-pipeline predict output/runs/vgg16 pets/test --sheet sheet.png --out predictions.csv
    for layer in block1.conv2 block2.conv2; do
        imagenet-pipeline picture activations output/runs/vgg16 pets/test/dog.0.jpg --layer "$layer" --out "$layer.png"
    done
    trained binary courses/tags records=output/pets network=minivggnet input.size=32 input.channels=3 augmentation.flip=0.5 \
        epochs=6 batch_size=32 engine=pytorch seed=1
}

extras() {
    photos
    python -m imagenet_pipeline.extras.scenes output/scenes
    python -m imagenet_pipeline.extras.detection output/scenes output/ssd --epochs 20
    python -m imagenet_pipeline.extras.gan output/mnist output/gan --epochs 14
    python -m imagenet_pipeline.extras.style output/runs/vgg16 \
        imagenette224/val/n03028079/ILSVRC2012_val_00004912.JPEG pets/test/cat.0.jpg --out styled.png --side 128 --steps 30
}

for part in ${parts:-digits baselines labels faces pets extras}; do "$part"; done
