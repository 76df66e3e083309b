"""Tests of the tables behind `--help` and behind answers to wrong options: groups, foreign names, conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from zerokara.core.command_line import parse
from zerokara.core.config import UserError, class_mapping, field_types, flag
from zerokara.core.help_text import LABEL_COLUMNS
from zerokara.core.processes import __main__ as processes
from zerokara.core.seeds import __main__ as seeds
from zerokara.generative import interpolate, representation, sample
from zerokara.generative.gan import config as dcgan
from zerokara.generative.style import config as style_transfer
from zerokara.generative.style import fast_config as fast_style
from zerokara.vision import augmentation, depth, features, precision
from zerokara.vision.binarization import config as binary
from zerokara.vision.captioning import config as caption
from zerokara.vision.classification import config as classify
from zerokara.vision.detection import config as detect
from zerokara.vision.segmentation import config as segment

Presets = Mapping[str, Mapping[str, Any]]

PROGRAMS: Mapping[str, tuple[type[Any], Presets]] = {
    "dcgan": (dcgan.Config, dcgan.PRESETS),
    "style_transfer": (style_transfer.Config, style_transfer.PRESETS),
    "fast_style": (fast_style.Config, fast_style.PRESETS),
    "representation": (representation.Options, {}),
    "classify": (classify.Config, classify.PRESETS),
    "segment": (segment.Config, segment.PRESETS),
    "detect": (detect.Config, detect.PRESETS),
    "caption": (caption.Config, caption.PRESETS),
    "binary": (binary.Config, binary.PRESETS),
    "depth": (depth.Options, {}),
    "augmentation": (augmentation.Options, {}),
    "features": (features.Options, {}),
    "seeds": (seeds.Options, {}),
    "processes": (processes.Options, {}),
}
SMALL_PROGRAMS: Mapping[str, tuple[type[Any], Presets]] = {
    "sample": (sample.Options, {}),
    "interpolate": (interpolate.Options, {}),
    "precision": (precision.Options, {}),
}
"""Programs with few options, which have conditions but no groups."""
FOREIGN_NAMES = [
    (program, name)
    for program in ("segment", "detect")
    for name in class_mapping(PROGRAMS[program][0], "FOREIGN_NAMES")
]


def read(program: str, *words: str) -> Any:
    """Parse a command line of a program."""
    config_class, presets = {**PROGRAMS, **SMALL_PROGRAMS}[program]
    return parse(config_class, presets, words, "Title.")


def is_positional(config_class: type[Any], name: str) -> bool:
    return "Positional" in str(field_types(config_class)[name])


# ---- --help


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_field_is_in_exactly_one_group(program: str) -> None:
    config_class, _ = PROGRAMS[program]
    grouped = [name for names in class_mapping(config_class, "GROUPS").values() for name in names]
    assert sorted(grouped) == sorted(field_types(config_class))


@pytest.mark.parametrize("program", PROGRAMS)
def test_most_used_options_are_a_few_fields(program: str) -> None:
    config_class, _ = PROGRAMS[program]
    common = getattr(config_class, "COMMON", ())
    assert set(common) <= set(field_types(config_class))
    assert len(common) == len(set(common)) <= (11 if program in ("segment", "detect", "caption", "binary") else 10)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_preset_has_a_summary(program: str) -> None:
    config_class, presets = PROGRAMS[program]
    assert list(class_mapping(config_class, "PRESET_SUMMARIES")) == list(presets)


# The formats that --data of detect lists do not fit into one line.
@pytest.mark.parametrize("program", [program for program in PROGRAMS if program != "detect"])
def test_help_has_one_uncut_text_of_one_line_per_option(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        read(program, "--help")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert [line for line in lines if line.rstrip().endswith("...")] == []
    texts = [line[LABEL_COLUMNS:] for line in lines if "(default: " in line]
    config_class, _ = PROGRAMS[program]
    positional = sum(is_positional(config_class, name) for name in field_types(config_class))
    assert len(texts) + positional == len(field_types(config_class))
    for text in texts:
        assert "..." not in text, f"cut after 120 columns: {text}"
        assert text.count("(") == text.count(")"), f"cut in the middle of a sentence: {text}"


@pytest.mark.parametrize(
    "program", [name for name, (config_class, _) in PROGRAMS.items() if hasattr(config_class, "COMMON")]
)
def test_help_lists_the_most_used_options_first_then_the_groups_in_their_order(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        read(program, "--help")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    config_class, _ = PROGRAMS[program]
    titles = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    groups = class_mapping(config_class, "GROUPS").items()
    shown = [title for title, names in groups if not set(names) <= set(config_class.COMMON)]
    assert titles[: 1 + len(shown)] == ["most used", *shown]
    assert len(titles) <= len(shown) + 2, "besides these only the presets"
    options = [line.split()[0].replace("[no-]", "") for line in lines if line.startswith("  --")]
    expected = [flag(name) for name in field_types(config_class) if not is_positional(config_class, name)]
    common = [flag(name) for name in config_class.COMMON if not is_positional(config_class, name)]
    assert options[: len(common)] == common
    assert sorted(options) == sorted(expected)


# ---- names of other libraries


@pytest.mark.parametrize("program", PROGRAMS)
def test_foreign_names_lead_to_options_that_exist(program: str) -> None:
    config_class, _ = PROGRAMS[program]
    fields = set(field_types(config_class))
    foreign = class_mapping(config_class, "FOREIGN_NAMES")
    assert foreign
    assert not foreign.keys() & fields, "these are options here"
    assert not foreign.keys() & class_mapping(config_class, "RENAMED").keys(), "these are old names, which are accepted"
    for name, answer in foreign.items():
        assert name == name.lower().replace("-", "_")
        if answer not in fields:
            assert re.match(r"is .*\w[)>]?\.$", answer), answer
            flags = set(re.findall(r"--[a-z0-9-]+", answer)) - {"--logdir", "--help"}
            if program == "detect":
                flags -= {"--confidence"}  # an option of vision.detect_predict
            assert {name.replace("--no-", "--") for name in flags} <= set(map(flag, fields)), answer


@pytest.mark.parametrize(("program", "name"), FOREIGN_NAMES)
def test_a_foreign_name_is_answered(program: str, name: str) -> None:
    config_class, _ = PROGRAMS[program]
    answer = class_mapping(config_class, "FOREIGN_NAMES")[name]
    sentence = f"is {flag(answer)} here." if answer in field_types(config_class) else answer
    with pytest.raises(UserError) as error:
        read(program, flag(name), "1")
    assert str(error.value) == f"{flag(name)} {sentence}"


@pytest.mark.parametrize(
    ("program", "words", "answer"),
    [
        # PyTorch's DCGAN example and tutorial
        ("dcgan", "--dataset cifar10", "--dataset is --data here"),
        ("dcgan", "--dataroot photos", "--dataroot is --data here for a folder"),
        ("dcgan", "--imageSize 64", "--imageSize is --image-size here"),
        ("dcgan", "--batchSize 64", "--batchSize is --batch-size here"),
        ("dcgan", "--nz 100", "--nz is --latent-dim here"),
        ("dcgan", "--ngf 64", "--ngf is --generator-width here"),
        ("dcgan", "--ndf 64", "--ndf is --discriminator-width here"),
        ("dcgan", "--niter 25", "--niter is --updates here"),
        ("dcgan", "--lr 0.0002", "--lr is --generator-learning-rate and --discriminator-learning-rate here"),
        ("dcgan", "--ngpu 1", "--ngpu is not an option here: start the program with torchrun"),
        ("dcgan", "--cuda", "--cuda is not an option here: choose --device cpu, --device cuda"),
        ("dcgan", "--netG netG.pth", "--netG is not an option here: resume a run"),
        ("dcgan", "--outf out", "--outf is not an option here: a run is written to runs/<name>"),
        ("dcgan", "--manualSeed 1", "--manualSeed is --seed here"),
        # StudioGAN, StyleGAN
        ("dcgan", "--img_size 32", "--img-size is --image-size here"),
        ("dcgan", "--z_dim 80", "--z-dim is --latent-dim here"),
        ("dcgan", "--d_lr 1e-4", "--d-lr is --discriminator-learning-rate here"),
        ("dcgan", "--adv_loss hinge", "--adv-loss is --loss here"),
        ("dcgan", "--lambda_gp 10", "--lambda-gp is --gradient-penalty here"),
        ("dcgan", "--gamma 10", "--gamma is --r1 here"),
        ("dcgan", "--ema_decay 0.999", "--ema-decay is --ema-half-life-updates here"),
        # PyTorch's ImageNet and MNIST examples, torchvision's references, timm
        ("classify", "--arch resnet18", "--arch is --backbone here"),
        ("classify", "-a resnet18", "-a is --backbone here"),
        ("classify", "--model resnet18", "--model is --backbone here"),
        ("classify", "--lr 0.1", "--lr is --learning-rate here"),
        ("classify", "--wd 1e-4", "--wd is --weight-decay here"),
        ("classify", "-b 32", "-b is --batch-size here"),
        ("classify", "--bs 32", "--bs is --batch-size here"),
        ("classify", "--test-batch-size 1000", "--test-batch-size is --eval-batch-size here"),
        ("classify", "--num-epochs 10", "--num-epochs is --epochs here"),
        ("classify", "--workers 4", "--workers is not an option here: all images are read into memory"),
        ("classify", "--data-path images", "--data-path is --data here"),
        ("classify", "--opt sgd", "--opt is --optimizer here"),
        ("classify", "--sched cosine", "--sched is --schedule here"),
        ("classify", "--lr-step-size 30", "--lr-step-size is not an option here: choose --schedule"),
        ("classify", "--smoothing 0.1", "--smoothing is --label-smoothing here"),
        ("classify", "--clip-grad-norm 1", "--clip-grad-norm is --max-grad-norm here"),
        ("classify", "--mixup-alpha 0.2", "--mixup-alpha is --mixup here"),
        ("classify", "--no-amp", "--no-amp is not an option here: choose --precision"),
        ("classify", "--pretrained", "--pretrained is --weights here"),
        ("classify", "--model-ema", "--model-ema is --ema-half-life-updates here"),
        ("classify", "--evaluate", "--evaluate is not an option here: vision.predict"),
        # torchvision's references, segmentation_models_pytorch, MMSegmentation, Ultralytics
        ("segment", "--lr 0.01", "--lr is --learning-rate here."),
        ("segment", "--batch 4", "--batch is --batch-size here."),
        ("segment", "-b 4", "-b is --batch-size here."),
        ("segment", "--arch unet", "--arch is --network and --backbone here"),
        ("segment", "--img-size 256", "--img-size is --image-size here."),
        ("segment", "--dataset voc", "--dataset is --data here."),
        ("segment", "--data_path voc", "--data-path is --data here."),
        ("segment", "--wd 0.1", "--wd is --weight-decay here."),
        ("segment", "--no-val", "--no-val is not an option here"),
        ("detect", "--lr 1", "--lr is --learning-rate here"),
        ("detect", "--batch 1", "--batch is --images-per-update here"),
        ("detect", "--imgsz 1", "--imgsz is --image-side here"),
        ("detect", "--iou-thres 1", "--iou-thres is --nms-iou here"),
        ("detect", "--dataset 1", "--dataset is --data here"),
        ("detect", "--wd 1", "--wd is --weight-decay here"),
        ("detect", "--conf-thres 0.5", "--conf-thres is an option of vision.detect_predict: --confidence"),
        # neuraltalk2, Hugging Face
        ("caption", "--lr 3", "--lr is --learning-rate here."),
        ("caption", "--batch 3", "--batch is --batch-size here."),
        ("caption", "--max-len 3", "--max-len is --max-length here."),
        ("caption", "--num-beams 3", "--num-beams is --beam-size here."),
        ("caption", "--dataset 3", "--dataset is --data here."),
        ("caption", "--wd 3", "--wd is --weight-decay here."),
        ("caption", "--amp 3", "--amp is --precision bfloat16 here."),
        ("caption", "--freeze-encoder 3", "--freeze-encoder is --no-finetune-backbone here."),
        ("caption", "--optimizer 3", "--optimizer is not an option here: the optimizer is AdamW."),
        # Larq, Brevitas
        ("binary", "--lr 3", "--lr is --learning-rate here."),
        ("binary", "--batch 3", "--batch is --batch-size here."),
        ("binary", "--dataset 3", "--dataset is --data here."),
        ("binary", "--model 3", "--model is --network here."),
        ("binary", "--wd 3", "--wd is not an option here: latent weights are clipped to [-1, 1] instead."),
        ("binary", "--amp 3", "--amp is --precision bfloat16 here."),
        # PyTorch's fast_neural_style and neural-style
        ("fast_style", "--style-image wave.jpg", "--style-image is --style here"),
        ("fast_style", "--content-image a.jpg", "--content-image is not an option here: generative.stylise"),
        ("fast_style", "--dataset coco", "--dataset is --data here"),
        ("fast_style", "--lr 1e-3", "--lr is --learning-rate here"),
        ("fast_style", "--checkpoint-interval 10", "--checkpoint-interval is --checkpoint-every-updates here"),
        ("style_transfer", "--content-image a.jpg", "--content-image is not an option here: both images come first"),
        ("style_transfer", "-style_image a.jpg", "-style_image is not an option here: both images come first"),
        ("style_transfer", "--num-steps 300", "--num-steps is --iterations here"),
        ("style_transfer", "--init noise", "--init is --start here"),
        ("style_transfer", "--tv-weight 1", "--tv-weight is --variation-weight here"),
        ("style_transfer", "--original-colors", "--original-colors is --keep-color here"),
        ("representation", "--num-labels 100", "--num-labels is --labels here"),
        ("depth", "--seed 1", "--seed is --seeds here"),
        ("depth", "--lr 0.1", "--lr is not an option here: all runs have the settings of a recipe"),
        ("depth", "--wandb", "--wandb is not an option here: every run is logged for TensorBoard"),
        ("classify", "--wandb", "--wandb is not an option here: choose --track wandb"),
        ("augmentation", "--model vgg16", "--model is --backbone here"),
        ("features", "--stride 2", "--stride is --step here"),
    ],
)
def test_foreign_names_are_answered_with_ours(program: str, words: str, answer: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(answer)}"):
        read(program, *words.split(" "))


# ---- settings that have no effect without another one

CONDITIONS: Sequence[tuple[str, str, str, str]] = [
    # program, options without effect, missing settings, further options with which they have an effect
    ("dcgan", "--frames 500", "--data frames:<environment id>", "--data frames:ALE/Pong-v5"),
    ("dcgan", "--frame-stack 4", "--data frames:<environment id>", "--data frames:ALE/Pong-v5"),
    ("dcgan", "--upsample resize --preset r3", "--generator dcgan", "--generator dcgan"),
    ("dcgan", "--generator-norm none --preset r3", "--generator dcgan", "--generator dcgan"),
    ("dcgan", "--discriminator-norm none --backbone r3", "a --backbone with the option norm", "--backbone dcgan"),
    ("dcgan", "--label-smoothing 0.1 --loss hinge", "--loss bce", "--loss bce"),
    ("dcgan", "--diffaugment-version 0.1", "--diffaugment", "--diffaugment cutout"),
    ("dcgan", "--ada-target 0.5", "--ada", "--ada color"),
    ("dcgan", "--ada-probability 0.5", "--ada", "--ada color"),
    ("dcgan", "--ada-images 1000", "--ada", "--ada color"),
    ("dcgan", "--penalty-every-updates 4", "--r1, --r2 or --gradient-penalty above 0", "--r1 1"),
    ("dcgan", "--penalty-every-updates 4", "--r1, --r2 or --gradient-penalty above 0", "--r2 1"),
    ("dcgan", "--penalty-every-updates 4", "--r1, --r2 or --gradient-penalty above 0", "--gradient-penalty 1"),
    ("classify", "--momentum 0.5", "--optimizer sgd, muon or muon_sgd", "--optimizer sgd"),
    ("classify", "--momentum 0.5 --optimizer adam", "--optimizer sgd, muon or muon_sgd", "--optimizer muon"),
    ("classify", "--dropout 0.5 --backbone dcgan", "--head pooled", "--head pooled"),
    ("classify", "--output-learning-rate 1", "--optimizer muon_sgd", "--optimizer muon_sgd"),
    ("classify", "--bias-learning-rate 1", "--optimizer muon_sgd", "--optimizer muon_sgd"),
    ("classify", "--sgd-momentum 0.5 --optimizer sgd", "--optimizer muon_sgd", "--optimizer muon_sgd"),
    ("classify", "--crop-padding reflect", "--crop-pixels above 0", "--crop-pixels 2"),
    ("classify", "--whitening-bias-epochs 3", "--backbone airbench", "--backbone airbench"),
    ("classify", "--dropout 0.5 --backbone r3", "--head pooled", "--backbone resnet20"),
    ("style_transfer", "--backbone vgg19", "--weights, --loss-network random", "--weights vgg19.pth"),
    ("style_transfer", "--width-multiplier 0.5", "--weights, --loss-network random", "--loss-network random"),
    ("style_transfer", "--pooling max --weights r.pth --backbone resnet18", "a VGG as --backbone", "--backbone vgg11"),
    ("style_transfer", "--content-layers relu2_2 --content-weight 0", "--content-weight above 0", "--content-weight 1"),
    ("style_transfer", "--style-layers relu2_2 --style-weight 0", "--style-weight above 0", "--style-weight 1"),
    ("style_transfer", "--style-scale 2 --style-weight 0", "--style-weight above 0", "--style-weight 1"),
    ("fast_style", "--backbone vgg19", "--weights, --loss-network random", "--loss-network random"),
    ("fast_style", "--width-multiplier 0.5", "--weights, --loss-network random", "--weights vgg16.pth"),
    ("fast_style", "--pooling max --loss-network random --backbone nature", "a VGG as --backbone", "--backbone vgg16"),
    ("fast_style", "--content-layers relu2_2 --content-weight 0", "--content-weight above 0", "--content-weight 1"),
    ("fast_style", "--style-layers relu2_2 --style-weight 0", "--style-weight above 0", "--style-weight 1"),
    ("fast_style", "--style-size 300 --style-weight 0", "--style-weight above 0", "--style-weight 1"),
    ("representation", "--seeds 3 --labels 0", "--labels with a number other than 0", "--labels 100 0"),
    ("representation", "--updates 5 --supervised digits", 'an empty --supervised ""', "--supervised="),
    ("depth", "--depths 8 14 --part filters", "--part layers or both", "--part both"),
    ("sample", "--columns 3 --folder many", 'a plain image grid (--folder "", --per-class 0)', "--folder="),
    ("interpolate", "--number 3 --latents a.json", 'random latent vectors (--latents "")', "--latents="),
    ("interpolate", "--points 3 --latents a.json", 'random latent vectors (--latents "")', "--latents="),
    ("interpolate", "--label 3 --latents a.json", 'random latent vectors (--latents "")', "--latents="),
    ("sample", "--number 3 --per-class 3", "a plain set of images (--per-class 0)", "--per-class 0"),
    ("sample", "--label 3 --per-class 3", "a plain set of images (--per-class 0)", "--per-class 0"),
    ("sample", "--per-class 3 --folder many", 'an image grid (--folder "")', "--folder="),
    ("sample", "--out a.png --folder many", 'an image grid (--folder "")', "--folder="),
    (
        "caption",
        "--backbone-learning-rate 0.1 --no-finetune-backbone",
        "--finetune-backbone",
        "--finetune-backbone",
    ),
    ("binary", "--num-hidden-layers 2 --network cnn", "--network mlp", "--network mlp"),
    ("binary", "--width-multiplier 2", "--network cnn", "--network cnn"),
    ("precision", "--calibration 500 --no-int8", "--int8", "--int8"),
    ("segment", "--stem small --backbone vgg16", "a --backbone that has this option", "--backbone resnet50"),
    ("segment", "--width-multiplier 2 --backbone torch.nn:Flatten", "a --backbone that has", "--backbone vgg16"),
    *(
        (program, "--data-dir photos", "--data and the name of a data set in that folder", "--data mnist")
        for program in ("dcgan", "classify", "binary", "depth", "augmentation")
    ),
    ("seeds", "--ray-cpus 2", "--ray-address auto", "--ray-address auto"),
    ("seeds", "--ray-gpus 1", "--ray-address auto", "--ray-address auto"),
]


@pytest.mark.parametrize(("program", "options", "missing", "more"), CONDITIONS)
def test_options_without_effect_are_refused(program: str, options: str, missing: str, more: str) -> None:
    first = options.split(" ")[0]
    with pytest.raises(UserError, match=f"^{first} has no effect without {re.escape(missing)}.*leave {first} out"):
        read(program, *options.split(" "))
    read(program, *options.split(" "), *more.split(" "))


@pytest.mark.parametrize("program", [*PROGRAMS, *SMALL_PROGRAMS])
def test_every_condition_is_tested(program: str) -> None:
    config_class, _ = {**PROGRAMS, **SMALL_PROGRAMS}[program]
    tested = {options.split(" ")[0] for tested_program, options, *_ in CONDITIONS if tested_program == program}
    assert tested == {flag(name) for name in class_mapping(config_class, "REQUIRES")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_presets_fulfill_their_own_conditions(program: str) -> None:
    """Typing all values of a preset as options is accepted, except the backbone of weights that are not given."""
    for values in PROGRAMS[program][1].values():
        words: list[str] = []
        for name, value in values.items():
            if isinstance(value, bool):
                words.append(flag(name) if value else "--no-" + flag(name)[2:])
            else:
                words += [flag(name), *map(str, value if isinstance(value, tuple) else [value])]
        weights = ["--weights", "vgg.pth"] if program in ("style_transfer", "fast_style") else []
        config = read(program, *words, *weights)
        assert {name: getattr(config, name) for name in values} == dict(values)


def test_the_backbone_of_a_run_without_metadata_has_an_effect(tmp_path: Path) -> None:
    """A run of vision.classify names its own backbone in model.safetensors; other runs need --backbone."""
    agent, classifier = tmp_path / "agent", tmp_path / "classifier"
    agent.mkdir()
    classifier.mkdir()
    (classifier / "model.safetensors").touch()
    read("style_transfer", "--backbone", "der", "--pretrained-backbone", str(agent))
    read("style_transfer", "--backbone", "der", "--pretrained-backbone", str(tmp_path / "weights.pt"))
    for described in (str(classifier), str(classifier / "model.safetensors"), "photographs"):
        with pytest.raises(UserError, match="--backbone has no effect without"):
            read("style_transfer", "--backbone", "der", "--pretrained-backbone", described)
