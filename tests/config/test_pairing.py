import pytest

from trainer.config.catalogue import catalogue, own_folder
from trainer.config.pairing import faults

OWN = catalogue([own_folder()])


def found(loss: str, task: str) -> list[str]:
    return list(faults({"loss": {"_target_": loss}, "task": {"_target_": task}}, OWN))


def test_a_loss_that_fits_is_no_fault() -> None:
    assert found("trainer.loss.focal.Focal", "trainer.task.text_classification.TextClassification") == []


def test_a_loss_for_other_targets_names_those_that_fit() -> None:
    (fault,) = found("trainer.loss.mse.Mse", "trainer.task.text_classification.TextClassification")

    assert fault.startswith("loss: takes values targets, the task has class, got 'Mse'. These fit: ")
    fitting = fault.partition("These fit: ")[2].rstrip(".").split(", ")
    assert {"cross_entropy", "focal"} <= set(fitting)
    assert not {"mse", "info_nce"} & set(fitting)


def test_what_cannot_be_read_is_left_to_the_run() -> None:
    assert found("my.Loss", "trainer.task.text_classification.TextClassification") == []
    assert found("trainer.loss.mse.Mse", "my.Task") == []
    assert list(faults({"loss": None}, OWN)) == []


def of_model(model: str, task: str) -> list[str]:
    return list(faults({"model": {"_target_": model}, "task": {"_target_": task}}, OWN))


def test_a_model_of_other_inputs_names_those_that_fit() -> None:
    (fault,) = of_model("trainer.model.resnet.ResNet", "trainer.task.text_classification.TextClassification")

    assert fault.startswith("model: reads images, the task has tokens, got 'ResNet'. These fit: ")
    fitting = fault.partition("These fit: ")[2].rstrip(".").split(", ")
    assert {"text_encoder", "decoder", "linear"} <= set(fitting)
    assert not {"resnet", "mlp"} & set(fitting)


def test_a_language_model_must_not_look_ahead_and_a_masked_one_must() -> None:
    encoder, decoder = "trainer.model.text_encoder.TextEncoder", "trainer.model.decoder.Decoder"
    causal, masked = "trainer.task.causal_lm.CausalLm", "trainer.task.masked_lm.MaskedLm"

    assert of_model(decoder, causal) == of_model(encoder, masked) == []
    assert of_model(encoder, causal) == [
        "model: sees the tokens that it is to predict, got 'TextEncoder'. Use model=decoder."
    ]
    assert of_model(decoder, masked) == [
        "model: does not see what comes behind a masked token, got 'Decoder'. Use model=text_encoder."
    ]


def test_a_model_that_gives_one_output_a_sample_is_no_tagger() -> None:
    (fault,) = of_model("trainer.model.linear.Linear", "trainer.task.token_classification.TokenClassification")

    assert fault.startswith("model: gives an output for each sample, the task needs one for each token, got 'Linear'. ")
    assert {"text_encoder", "decoder"} <= set(fault.partition("These fit: ")[2].rstrip(".").split(", "))


def mixed(loss: str, **augment: float) -> list[str]:
    task = {"_target_": "trainer.task.image_classification.ImageClassification", "augment": augment}
    return list(faults({"loss": {"_target_": loss}, "task": task}, OWN))


def test_a_task_that_mixes_images_needs_a_loss_over_shares() -> None:
    dice, focal = "trainer.loss.dice.Dice", "trainer.loss.focal.Focal"

    assert mixed(dice) == mixed(dice, mixup=0.0, mix_prob=1.0) == mixed(focal, mixup=0.2, cutmix=1) == []
    assert mixed(dice, mixup=0.2, cutmix=1.0) == [
        "loss: takes class or multi_hot targets, the task has shares by task.augment.mixup and task.augment.cutmix, "
        "got 'Dice'. These fit: cross_entropy, focal, poly."
    ]
    # What fits in training must fit in evaluation, too.
    (fault,) = mixed("trainer.loss.mse.Mse", cutmix=1.0)[:1]
    assert fault.startswith("loss: takes values targets, the task has class, got 'Mse'. These fit: cross_entropy, ")


def of_formats(task: str, *formats: str) -> list[str]:
    export = {"_target_": "trainer.export.artifacts.publish", "formats": [*formats]}
    return list(faults({"task": {"_target_": task}, "export": export}, OWN))


def test_a_decoder_with_its_cache_is_of_causal_language_models() -> None:
    other = "trainer.task.text_classification.TextClassification"
    assert of_formats("trainer.task.causal_lm.CausalLm", "onnx_cache") == of_formats(other, "onnx") == []
    assert of_formats("my.Task", "onnx_cache") == []
    for task in (other, "trainer.task.masked_lm.MaskedLm"):
        (fault,) = of_formats(task, "onnx", "onnx_cache")
        assert fault == (
            f"export.formats: onnx_cache is of causal language models, and the task is {task.rpartition('.')[2]}, "
            "got ['onnx', 'onnx_cache']. These fit: onnx, onnx_fp16, onnx_int8, torchscript, pt2, safetensors, pth, "
            "pth_legacy."
        )


def of_monitor(task: str, monitor: object) -> list[str]:
    return list(faults({"checkpoint": {"monitor": monitor}, "task": {"_target_": task}}, OWN))


def test_a_metric_that_the_task_never_has_is_a_fault() -> None:
    task = "trainer.task.text_classification.TextClassification"

    assert of_monitor(task, "acc") == [
        "checkpoint.monitor: is not a metric of this task that has a direction, got 'acc'. Did you mean accuracy."
    ]
    assert [of_monitor(task, each) for each in ("accuracy", "macro_f1", "loss", None, 3)] == [[]] * 5
    assert of_monitor("my.Task", "acc") == []
    assert list(faults({"checkpoint": "best", "task": {"_target_": task}}, OWN)) == []


@pytest.mark.parametrize("task", OWN.options("task"))
def test_every_task_says_by_what_metrics(task: str) -> None:
    (fault,) = of_monitor(str(OWN.content("task", task)["_target_"]), "q")
    assert "Known: " in fault
