"""Hostile command lines, drawn from a random generator so that each can be repeated."""

from __future__ import annotations

from random import Random

from trainer.config import jobs, schema
from trainer.config.groups import Groups, own_folder
from trainer.documents import flatten

SECRET = "hunter2"
"""A password that no output may contain."""

NASTY_TEXTS = (
    "",
    " ",
    "~",
    "~nobody/x",
    "~0",
    "..",
    ".",
    "a" * 300,
    "a/" * 2000,
    "../" * 40,
    "\x00",
    "a\x00b",
    "\udcff",
    "a\udc80b",
    "\x1b[31mred\x1b[0m",
    "[bold]b[/]",
    "[/]",
    "[link=file:///]x",
    "\u202eevil\u202c",
    "line\nbreak",
    "\r",
    "\t",
    "\ufeff",
    "e\u0301",
    "\U0001d49c",
    "名前",
    "/dev/zero",
    "/dev/null",
    "/dev/full",
    "/proc/self/mem",
    "/proc/nonexistent",
    "%s%n{0}{x}",
    "${seed}",
    "${oc.env:NOWHERE}",
    "${oc.env:HOME}",
    "${hydra:job.num}",
    "${nowhere}",
    "${",
    "$",
    "\\",
    "'",
    '"',
    "#",
    "@",
    "=",
    ":",
    "null",
    "None",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "true",
    "yes",
    "1e400",
    "1e-400",
    "-0",
    "-0.0",
    "0x10",
    "1_000",
    "1" * 5000,
    "-" + "9" * 5000,
    "1." + "1" * 5000,
    "2147483648",
    "9223372036854775808",
    "18446744073709551616",
    "???",
    f"https://user:{SECRET}@host.example/x?token={SECRET}",
    "file:///etc/passwd",
    "s3://bucket/key",
)

NASTY_VALUES = (
    "[]",
    "{}",
    "[1,2]",
    "[[1],[2]]",
    "[null]",
    "{a:1}",
    "{a:{b:{c:1}}}",
    "{1:2}",
    "{null:1}",
    "{true:[1]}",
    "[" * 60 + "]" * 60,
    "[" * 200 + "1" + "]" * 200,
    "{a:" * 60 + "1" + "}" * 60,
    "[" * 50,
    "]",
    "{_target_:os.getcwd}",
    "{_target_: null}",
    "[{_target_: x.y}]",
    "1,2",
    "a,b,",
    "range(1,3)",
    "range(1,0)",
    "range(0,1000000000)",
    "interval(0,1)",
    "choice(1,2)",
    "choice()",
    "glob(*)",
    "glob([)",
    "sort(3,1)",
    "sort(a,1)",
    "shuffle(1,2)",
    "tag(a,choice(1))",
    "tag(x)",
    "int(x)",
    "int(" + "9" * 5000 + ")",
    "float(1e999)",
    "str([1])",
    "bool(2)",
    "json_str('{')",
    "json_str('[1]')",
    "json_str('" + "[" * 3000 + "')",
    "extend_list(1)",
    "'a'",
    '"a"',
    "'",
    "!!python/object/apply:os.getcwd []",
    "&a [*a]",
    "cuda:99",
    "3ep",
    "-1ep",
    "9" * 400,
    "9" * 30,
    "1e9ep",
    "101%",
    "step-" + "9" * 400,
    "best",
    "0",
    "-1",
    "1.5",
    "1e300",
    "true",
    "null",
)

HYDRA_KEYS = (
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.mode",
    "hydra.searchpath",
    "hydra.job.name",
    "hydra.job.chdir",
    "hydra.job.config_name",
    "hydra.job.env_set",
    "hydra.job.env_copy",
    "hydra.job.config.override_dirname",
    "hydra.job.config.override_dirname.exclude_keys",
    "hydra.job.config.override_dirname.item_sep",
    "hydra.output_subdir",
    "hydra.verbose",
    "hydra.callbacks",
    "hydra.launcher",
    "hydra.launcher._target_",
    "hydra.sweeper",
    "hydra.sweeper.max_batch_size",
    "hydra.sweeper.params",
    "hydra.job_logging",
    "hydra.job_logging.version",
    "hydra.hydra_logging",
    "hydra.overrides.task",
    "hydra.overrides",
    "hydra.runtime.choices",
    "hydra.runtime.cwd",
    "hydra.runtime.output_dir",
    "hydra.runtime",
    "hydra.help.template",
    "hydra.env",
    "hydra.job",
    "hydra",
    "hydra.nothing",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra/output",
    "hydra/job_logging",
    "hydra/hydra_logging",
    "hydra/help",
    "hydra/env",
    "hydra/nothing",
)

FLAGS = (
    *(["--cfg", each] for each in ("job", "hydra", "all", "x")),
    ["--cfg"],
    ["--resolve"],
    ["--resolve", "--cfg", "job"],
    *(["--cfg", "job", "--package", each] for each in ("model", "a.b", "_global_", "seed", "", "\x00")),
    *(["--info", each] for each in ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath", "x")),
    ["--info"],
    ["--hydra-help"],
    ["--version"],
    ["--shell-completion"],
    *(["--shell-completion", each] for each in ("install=bash", "uninstall=bash", "query=bash", "query=x", "a=b=c")),
    *(["--shell-completion", each] for each in ("install=fish,install=zsh", "install=nothing")),
    ["--config-dir"],
    ["--config-path"],
    ["--config-name"],
    ["--experimental-rerun"],
    ["--run"],
    ["--multirun"],
    ["-m"],
    ["--help"],
    ["-x"],
    ["--"],
    ["-"],
    ["---"],
)

SPECIAL_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_", "_group_", "_global_", "__class__")
VERBS = tuple(jobs.JOBS)


def command_line(random: Random) -> list[str]:
    """Return a hostile command line. It starts no training: `train` gets an unknown key, or only shows its config."""
    verb = random.choice(("train", "plan", "plan", "plan", *VERBS))
    words = [word for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5))) for word in _words(random, verb)]
    if random.random() < 0.02:
        words += random.choice(([f"seed={'1' * 200_000}"], ["a" * 500_000], ["seed=1"] * 2000, ["-x"] * 500))
    if verb == "train" and "--cfg" not in words:
        words += random.choice((["no_such_key=1"], ["--cfg", "job"], ["--cfg", "all"], ["resume=nowhere"]))
    if verb == "plan":
        words.append("trial=false")
    words.insert(
        0, random.choice((*[verb] * 60, *NASTY_TEXTS, "-" + verb, verb[:3])) if random.random() < 0.1 else verb
    )
    return words


def _words(random: Random, verb: str) -> list[str]:
    if random.random() < 0.12:
        flag = list(random.choice(FLAGS))
        if flag[-1].startswith("--config-") or flag[-1] == "--experimental-rerun":
            flag += [random.choice(NASTY_TEXTS)] if random.random() < 0.9 else []
        return flag
    if random.random() < 0.06:
        return [random.choice((*NASTY_TEXTS, *NASTY_VALUES))]
    return [f"{_key(random, verb)}={_value(random)}" if random.random() < 0.97 else _key(random, verb)]


def _key(random: Random, verb: str) -> str:
    draw = random.random()
    if draw < 0.25:
        groups = Groups((own_folder(),))
        group = random.choice(groups.names())
        key = random.choice(
            (group, f"{group}.{random.choice(SPECIAL_KEYS)}", f"{group}@x", f"{group}@model", f"{group}/x")
        )
        option = groups.content(group, random.choice(groups.options(group)))
        key = f"{group}.{random.choice(list(option))}" if option and random.random() < 0.5 else key
    elif draw < 0.35:
        key = random.choice(HYDRA_KEYS)
    elif draw < 0.45:
        key = random.choice(
            (*NASTY_TEXTS, ".".join("abc" * 80), "a.b.c", ".", "..", "seed.", ".seed", "model.config.x.y")
        )
    else:
        keys = dict(flatten(schema.defaults(jobs.JOBS[verb])))
        key = random.choice([*keys, *jobs.STORED_SECTIONS, "experiment", "debug"])
    if random.random() < 0.08:
        key += random.choice((".x", ".0", ".-1", ".y.z", "." + "k" * 300, *(f".{special}" for special in SPECIAL_KEYS)))
    return random.choice(("", "", "", "", "+", "++", "~", "+++", "~~", "@", "!")) + key


def _value(random: Random) -> str:
    draw = random.random()
    if draw < 0.35:
        return random.choice(NASTY_TEXTS)
    if draw < 0.7:
        return random.choice(NASTY_VALUES)
    if draw < 0.8:
        groups = Groups((own_folder(),))
        return random.choice(groups.options(random.choice(groups.names())))
    if draw < 0.9:
        inner = ",".join(random.choice((*NASTY_TEXTS, *NASTY_VALUES))[:50] for _ in range(random.choice((1, 2, 3))))
        return random.choice(("[{}]", "{{a:{}}}", "'{}'", '"{}"', "{}", "choice({})")).format(inner)
    return "".join(random.choice("abc019.,:=[]{}()'\"\\$ ~#@%é\x00\n") for _ in range(random.randrange(1, 20)))
