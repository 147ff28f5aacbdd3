"""``fulgur fit train.py:Model --data train.py:Data``, in this process and as a command of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fulgur.cli.completion import completion_script
from fulgur.cli.main import main

PROGRAM = '''
import fulgur
from fulgur.testing import BoringDataModule, BoringModel

class Model(BoringModel):
    """A model of a test.

    Args:
        width: How wide it is.
        lr: Rate of learning.
    """

    def __init__(self, width: int, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        print("width", width)

class Data(BoringDataModule):
    """Rows.

    Args:
        rows: How many of them.
    """

    def __init__(self, rows: int = 3):
        super().__init__()
        print("rows", rows)

if __name__ == "__main__":
    raise SystemExit("run as a program")
'''
QUIET = (
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.limit_predict_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
)


@pytest.fixture(autouse=True)
def _program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file of its own for each test, and an interpreter that forgets it."""
    Path("cli_train.py").write_text(PROGRAM)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("cli_train", None)


def test_fit_trains_with_the_options_of_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "cli_train.py:Model", "--data", "cli_train.py:Data", "--data.rows=7", "--model.width=5", *QUIET]
    assert main(words) == 0
    assert capsys.readouterr().out.split("\n")[:2] == ["width 5", "rows 7"]
    assert Path("checkpoints").is_dir()


def test_data_may_come_from_the_module_and_the_module_by_its_path() -> None:
    assert main(["fit", "cli_train:Model", "--model.width=5", *QUIET]) == 0


def test_the_only_module_of_a_file_need_not_be_named() -> None:
    assert main(["validate", "cli_train.py", "--model.width=5", *QUIET]) == 0


@pytest.mark.parametrize("program", ["validate", "test", "predict"])
def test_the_others_run_too(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([program, "cli_train.py:Model", "--model.width=5", *QUIET]) == 0
    assert not Path("config.yaml").exists()


def test_fit_saves_its_configuration_and_takes_it() -> None:
    main(["fit", "cli_train.py:Model", "--model.width=5", *QUIET, "--trainer.enable_checkpointing=false"])
    assert yaml.safe_load(Path("config.yaml").read_text())["model"] == {"width": 5, "lr": 0.1}
    assert main(["fit", "cli_train.py:Model", "--config=config.yaml"]) == 0


def test_a_checkpoint_holds_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "cli_train.py:Model", "--model.width=5", *QUIET])
    [path] = Path("checkpoints").glob("*.ckpt")
    capsys.readouterr()
    assert main(["test", "cli_train.py:Model", f"--ckpt_path={path}", *QUIET]) == 0
    assert "width 5" in capsys.readouterr().out


def test_help_lists_arguments_with_their_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "cli_train.py:Model", "--data=cli_train.py:Data", "--help"])
    assert exit_.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: fulgur fit cli_train.py:Model [options]\n\nTrain. A model of a test.\n")
    assert "--model.width WIDTH   How wide it is. (required, type: int)" in told
    assert "How many of them. (type: int, default: 3)" in told
    assert told.index("--model.width") < told.index("--data.rows") < told.index("--trainer.max_epochs")


def test_help_without_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: fulgur fit FILE.py:Class [--data FILE.py:Class] [options]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Say what to run: fulgur fit train.py:Model."),
        (["cli_trian.py:Model"], "There is no file cli_trian.py. Did you mean 'cli_train.py'?"),
        (["cli_train.py:Modle"], "cli_train.py has no 'Modle'. Did you mean 'Model'?"),
        (["cli_train.py:Data"], "cli_train.py:Data is no LightningModule of fulgur. There is: BoringModel, Model."),
        (["cli_train.py:Model", "--data"], "--data needs a value: --data train.py:Data."),
        (["cli_train.py:Model", "--data=cli_train.py:Model"], "cli_train.py:Model is no LightningDataModule"),
        (["no_package.train:Model"], "There is no module 'no_package.train' to import."),
        (["json.py:Model"], "json.py cannot be imported: 'json' is the name of another module"),
    ],
)
def test_what_cannot_be_run_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("json.py").touch()
    assert main(["fit", *words]) == 2
    assert capsys.readouterr().err.startswith(f"fulgur fit: error: {said}")


def test_a_file_with_several_modules_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cli_train.py").write_text(PROGRAM.replace("class Data(", "class Other(Model): ...\n\nclass Data("))
    assert main(["fit", "cli_train.py"]) == 2
    assert "holds 2: Model, Other. Say cli_train.py:Class." in capsys.readouterr().err


def test_what_the_file_itself_fails_with_is_not_hidden() -> None:
    Path("cli_train.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        main(["fit", "cli_train.py:Model"])


def test_wrong_options_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "cli_train.py:Model", "--model.widht=3"])
    assert exit_.value.code == 2
    assert "There is no option --model.widht. Did you mean --model.width?" in capsys.readouterr().err


def fulgur(*words: str, code: int = 0) -> str:
    command = [sys.executable, "-W", "error", "-m", "fulgur.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_process_trains() -> None:
    assert "width 5" in fulgur("fit", "cli_train.py:Model", "--model.width=5", *QUIET)


@pytest.mark.world_size(2)
def test_two_processes_train() -> None:
    words = ("fit", "cli_train.py:Model", "--model.width=5", *QUIET)
    said = fulgur(*words, "--trainer.devices=2", "--trainer.strategy=ddp")
    assert said.count("width 5") == 2
    assert yaml.safe_load(Path("config.yaml").read_text())["trainer"]["devices"] == 2


def test_a_process_says_what_is_wrong_without_a_traceback() -> None:
    said = fulgur("fit", "cli_train.py:Model", "--model.width=wide", code=2)
    assert said == "fulgur fit cli_train.py:Model: error: --model.width=wide is not of the expected type int.\n"


WITHOUT = """
import sys
sys.modules["jsonargparse"] = None
import fulgur, fulgur.cli
from fulgur.cli import ReduceLROnPlateau, SaveConfigCallback, instantiate_class
from fulgur.cli.main import main
try:
    fulgur.cli.LightningCLI
except ModuleNotFoundError as error:
    print(error)
print(main(["fit", "cli_train.py:Model"]))
"""


def test_without_the_package_it_says_how_to_install_it() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=120)
    text = "needs the package 'jsonargparse[signatures]', which is not installed. Install it with "
    assert done.stdout.splitlines() == [
        f"LightningCLI {text}`pip install jsonargparse[signatures]` or `pip install 'fulgur[cli]'`.",
        "2",
    ]
    assert done.stderr.startswith(f"fulgur fit: error: fulgur fit {text}")


# ---------------------------------------------------------------------------------------------- completion

COMPLETING = """
fulgur() {{ {python} -m fulgur.cli "$@"; }}
{script}
COMP_LINE='{line}'
COMP_POINT=${{#COMP_LINE}}
read -ra COMP_WORDS <<<"${{COMP_LINE//:/ : }}"
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_fulgur
echo "${{COMPREPLY[*]}}"
"""


def completed(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What bash would offer for the end of a line."""
    assert main(["--completion", "bash"]) == 0
    text = COMPLETING.format(python=sys.executable, script=capsys.readouterr().out, line=line)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fulgur va", "validate"),
        ("fulgur fit cli_t", "cli_train.py"),
        ("fulgur fit cli_train.py:Model --trainer.max_e", "--trainer.max_epochs"),
        ("fulgur fit cli_train.py:Model --model.", "--model.width --model.lr"),
        ("fulgur fit cli_train.py:Model --data cli_train.py:Data --data.", "--data.rows"),
    ],
)
def test_bash_completes(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert completed(line, capsys) == words


def test_zsh_reads_the_same_script() -> None:
    first, _, rest = completion_script("zsh", ["fit"], ["fit"]).partition("\n")
    assert "bashcompinit" in first
    assert rest == completion_script("bash", ["fit"], ["fit"])


def test_no_other_shell_is_known() -> None:
    with pytest.raises(ValueError, match="'fish'"):
        completion_script("fish", [], [])
