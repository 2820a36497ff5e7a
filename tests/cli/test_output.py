"""With --json stdout holds the JSON and nothing else, however the command is started."""

import json
import os

import click
import pytest
from click.testing import CliRunner

from axolotl_alphalora.cli.options import only_output

BANNER = "the host's banner"


@pytest.fixture
def program(fresh_process):
    """Runs a program whose stdout is a pipe, as a script's would be."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}

    def run(body, *options):
        code = (
            "import os, sys, subprocess\n"
            "from axolotl_alphalora.cli.options import only_output\n"
            f"print({BANNER!r})\n{body}"
        )
        return fresh_process(*options, "-c", code, check=False, env=environment)

    return run


NOISE = {
    "a library": "print('noise')",
    "a process": "subprocess.run(['echo', 'noise'])",
    "the file descriptor": "os.write(1, b'noise\\n')",
}


@pytest.mark.parametrize("noise", NOISE)
def test_what_else_is_printed_goes_to_stderr(program, noise):
    done = program(
        f"with only_output() as emit:\n    emit('{{}}')\n    {NOISE[noise]}\nprint('end')"
    )
    assert done.stdout == "{}\nend\n", done.stderr
    assert BANNER in done.stderr and "noise" in done.stderr


def test_text_for_people_is_printed_as_it_comes(program):
    done = program("with only_output(False) as emit:\n    print('a'); emit('b')")
    assert done.stdout == f"{BANNER}\na\nb\n"


def test_nothing_is_output_for_a_failure(program):
    done = program("with only_output() as emit:\n    emit('{}')\n    raise SystemExit(3)")
    assert (done.stdout, done.returncode) == ("", 3)


def test_a_banner_that_is_out_already_is_told_of(program):
    art = "sys.modules['axolotl.cli.art'] = type('art', (), {'HAS_PRINTED_LOGO': True})\n"
    done = program(f"{art}with only_output() as emit:\n    emit('{{}}')", "-u")
    assert done.stdout == f"{BANNER}\n{{}}\n"
    assert "Start the command as `alphalora` instead" in done.stderr


def test_in_a_process_with_a_replaced_stdout():
    @click.command()
    def command():
        with only_output() as emit:
            print("noise")
            emit("{}")

    done = CliRunner().invoke(command)
    assert (done.stdout, done.stderr) == ("{}\n", "noise\n")


def test_a_plan_in_json_can_be_piped(fresh_process, model):
    code = "from axolotl_alphalora.cli import alphalora; alphalora()"
    done = fresh_process("-c", code, "plan", model, "--json")
    assert json.loads(done.stdout)["total_experts"] == 20, done.stdout + done.stderr
