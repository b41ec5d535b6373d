import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import TINY, working_in, write_roles
from trainer.builders.data import build_encoded, build_task
from trainer.config.command import check_command

ROOT = Path(__file__).resolve().parents[2]

HEAVY = ["datasets", "onnx", "onnxruntime", "pandas", "scipy", "sklearn", "sympy", "tensorboard", "torch._dynamo"]
HEAVY += ["torch._inductor", "torchmetrics", "transformers"]

# The tasks of one output per sample and per token, with every optimizer.
TEXTS = {
    "text_classification": "adamw",
    "multilabel_classification": "adam",
    "pair_classification": "sgd",
    "regression": "lion",
    "token_classification": "lamb",
    "masked_lm": "muon",
    "causal_lm": "adafactor",
    "sentence_embedding": "adamw",
}
# Their data is part of scikit-learn, which is read at each start; breast_cancer also names the metric to monitor.
EXPERIMENTS = ["digits", "breast_cancer", "diabetes"]

# Start each job as the command line does, and print the modules that its first step has loaded.
SCRIPT = """
import json, sys
from trainer import loop
from trainer.cli import main

class Updated(BaseException):
    pass

def update_once(*arguments):
    update_weights(*arguments)
    raise Updated

update_weights, loop.update_weights = loop.update_weights, update_once
for name, job in json.loads(sys.argv[1]).items():
    try:
        print(f"exit code {main(['train', *job])}")
    except Updated:
        print("first", json.dumps([name, sorted(set(sys.argv[2:]) & set(sys.modules))]))
loop.update_weights = update_weights
import torchmetrics
loaded = "torch._dynamo" in sys.modules  # by older versions of transformers, which torchmetrics imports
scored = json.loads(sys.argv[1])["text_classification"]
print(f"exit code {main(['train', *scored, 'run.dir=scored', 'train.duration=1', 'export.formats=[]'])}")
print(f"exit code {main(['predict', 'run=scored', 'input=some text'])}")
print("compiler", "torch._dynamo" in sys.modules and not loaded)
"""


@pytest.mark.parametrize(
    ("tasks", "experiments"),
    [
        (["text_classification", "causal_lm"], EXPERIMENTS[:1]),
        pytest.param([*TEXTS], EXPERIMENTS, marks=pytest.mark.slow),
    ],
)
def test_no_job_loads_heavy_modules_before_its_first_step_and_the_compiler_after_it(
    tasks: list[str], experiments: list[str], tmp_path: Path
) -> None:
    shown = ["logger.console=plain", "logger.tensorboard=true"]
    logs = ["logger.console=plain", "export.formats=[]", "device=cpu"]
    with working_in(tmp_path):
        data = write_roles(tmp_path)
        jobs = {task: [*TINY, *shown, f"task={task}", f"optimizer={TEXTS[task]}", *data] for task in tasks}
        jobs |= {name: [f"experiment={name}", *logs] for name in experiments}
        for overrides in jobs.values():
            job = check_command("train", overrides).single.job
            build_encoded(job, build_task(job), fitted=False)
        command = [sys.executable, "-c", SCRIPT, json.dumps(jobs)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started = subprocess.run([*command, *HEAVY], capture_output=True, text=True, env=environment, check=False)
    firsts = [
        json.loads(line.removeprefix("first ")) for line in started.stdout.splitlines() if line.startswith("first ")
    ]
    loaded = {name: [] for name in tasks} | {name: ["pandas", "scipy", "sklearn"] for name in experiments}
    assert firsts == [[*item] for item in loaded.items()], started.stdout + started.stderr
    # Rebuilding a model from its checkpoint, to score it or to predict, needs no compiler either.
    assert started.stdout.splitlines()[-1] == "compiler False", started.stdout + started.stderr
    assert started.stdout.count("exit code 0") == 2
