"""`alphalora probe` tells an adapter from its base and from what goes wrong in silence."""

import importlib.util
import json
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from axolotl_alphalora.evaluation import load_adapted
from axolotl_alphalora.probe import asking, read_probe
from helpers.balancing import adapted
from helpers.llama_cpp import served, write_base
from helpers.models import save_tiny_model, tiny_llama
from helpers.openai_server import openai_server

EXAMPLE = Path(__file__).parents[2] / "example_configs" / "llama_cpp.py"


@pytest.fixture(scope="module")
def places(run, tmp_path_factory):
    """A base, a routed adapter with its probe, and an export with its own."""
    folder = tmp_path_factory.mktemp("probe")
    save_tiny_model(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    wider = tiny_llama(**sizes, initializer_range=0.3)
    letters = [len(tokenizer.decode([i]).encode()) == 1 for i in range(len(tokenizer))]
    with torch.no_grad():  # no parts of characters, which llama.cpp tells of together
        wider.lm_head.weight *= torch.tensor(letters).unsqueeze(1)
    wider.save_pretrained(folder / "base")
    model = adapted(LlamaForCausalLM.from_pretrained(folder / "base"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alphalora_B" in name:
                parameter *= 2
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    rows = [{"instruction": f"say {word}", "output": word * 3} for word in "abcdefghijkl"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("probe", folder / "adapter", "--write", "--data", folder / "rows.jsonl")
    assert done.exit_code == 0, done.output
    options = ["--data", folder / "rows.jsonl", "--gguf", folder / "export" / "lora.gguf"]
    exported = run("export", folder / "adapter", "--output", folder / "export", *options)
    assert exported.exit_code == 0, exported.output
    return SimpleNamespace(
        folder=folder,
        base=folder / "base",
        adapter=folder / "adapter",
        export=folder / "export",
        rows=folder / "rows.jsonl",
        tokenizer=tokenizer,
        said=SimpleNamespace(write=done.output, export=exported.output),
    )


def of_base(places):
    return AutoModelForCausalLM.from_pretrained(places.base).eval()


@pytest.mark.usefixtures("combinations")
@pytest.mark.works("Seeing and exporting", "`alphalora probe`: a directory's adapter is recognised")
@pytest.mark.parametrize("kind", ["adapter", "export"])
def test_a_directory_is_recognised(run, places, kind):
    done = run("probe", getattr(places, kind))
    assert done.exit_code == 0, done.output
    assert "The adapter is served" in done.output
    method = {"adapter": "alphalora", "export": "lora"}[kind]
    assert read_probe(getattr(places, kind) / "probe.json").method == method


def test_what_was_written_is_said(places):
    words = " ".join(places.said.write.split())
    assert "6 prompts. In their answers the base model is" in words
    assert "probe.json" in words
    assert "alphalora probe URL --probe" in " ".join(places.said.export.split())


def test_the_export_is_another_than_the_adapter(run, places):
    """An export is an approximation: its probe is its own."""
    done = run("probe", places.export, "--probe", places.adapter / "probe.json", "--json")
    distance = json.loads(done.stdout)["distances"]["adapter"]
    assert distance > 1e-4
    again = run("probe", places.export, "--json")
    assert json.loads(again.stdout)["distances"]["adapter"] < 1e-4


def test_a_merged_model_and_the_base_are_recognised(run, places, tmp_path):
    lora = PeftModel.from_pretrained(of_base(places), places.export)
    lora.merge_and_unload().save_pretrained(tmp_path / "merged")
    places.tokenizer.save_pretrained(tmp_path / "merged")
    probe = places.export / "probe.json"
    assert run("probe", tmp_path / "merged", "--probe", probe).exit_code == 0
    done = run("probe", places.base, "--probe", probe)
    assert done.exit_code == 3 and "the base model is served" in " ".join(done.output.split())


def wrong_prefix(folder):
    """As a server does whose modules have other names: vLLM with a multimodal base, for one."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k.replace("model.layers", "model.text.layers"): v for k, v in tensors.items()}, path)


def changed(folder, **settings):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | settings))


MISTAKES = {
    "names of another model": (wrong_prefix, 3),
    "alpha_pattern is not read": (lambda folder: changed(folder, alpha_pattern={}), 4),
    "twice the scale": (lambda folder: changed(folder, use_rslora=True), 4),
}


@pytest.mark.usefixtures("combinations")
@pytest.mark.works("Seeing and exporting", "`alphalora probe`: silent mistakes are noticed")
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_what_goes_wrong_in_silence_is_noticed(run, places, tmp_path, mistake):
    spoil, status = MISTAKES[mistake]
    shutil.copytree(places.export, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    done = run("probe", tmp_path / "spoilt")
    assert done.exit_code == status, done.output


SERVED = {"adapter": 0, "base": 3}


@pytest.mark.usefixtures("combinations")
@pytest.mark.works("Seeing and exporting", "`alphalora probe URL`: what a server serves")
@pytest.mark.parametrize("kind", SERVED)
def test_a_server_is_recognised(run, places, kind):
    """A server that has not placed the adapter answers with the base, under the adapter's name."""
    model = of_base(places)
    if kind == "adapter":
        model = load_adapted(model, places.adapter)
    with openai_server({"mine": model}, places.tokenizer) as (url, requests):
        done = run("probe", url, "--probe", places.adapter / "probe.json")
    assert done.exit_code == SERVED[kind], done.output
    path, asked, _ = requests[0]
    assert path == "/v1/completions" and asked["model"] == "mine" and asked["temperature"] == 0


@pytest.mark.works("Seeing and exporting", "`alphalora probe` and llama.cpp's server")
def test_llama_cpp_serves_the_file_as_the_probe_says(run, places, tmp_path):
    """By the example's server: texts are asked, so that its tokens must be ours."""
    base = tmp_path / "base.gguf"
    more = [("add_layer_norm_rms_eps", 1e-6), ("add_rope_freq_base", 10000.0)]
    write_base(
        base, of_base(places), "llama", interleaved=True, more=more, tokenizer=places.tokenizer
    )
    probe = ["--probe", places.export / "probe.json"]
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    server = example.start(places.export / "lora.gguf", base, port=0)
    done = run("probe", server.listening_address, *probe)
    del server
    assert done.exit_code == 0, done.output
    with served(base) as alone:
        assert run("probe", alone.url, *probe).exit_code == 3


def test_the_name_of_the_model_and_the_key_are_sent(run, places, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    base = of_base(places)
    models = {"base": base, "mine": load_adapted(of_base(places), places.adapter)}
    probe = ["--probe", places.adapter / "probe.json"]
    with openai_server(models, places.tokenizer) as (url, requests):
        done = run("probe", url, *probe)
        assert done.exit_code == 1 and "lists 2 models (base, mine)" in done.output
        assert run("probe", url + "/v1", *probe, "--model", "mine").exit_code == 0
        assert run("probe", url, *probe, "--model", "base").exit_code == 3
        done = run("probe", url, *probe, "--model", "gone")
        assert done.exit_code == 1 and "answers 404" in done.output
    assert requests[0][2] == "Bearer secret"


def test_a_server_without_log_probabilities_is_an_error(run, places):
    with openai_server({"m": of_base(places)}, places.tokenizer, False) as (url, _):
        done = run("probe", url, "--probe", places.adapter / "probe.json")
    assert done.exit_code == 1 and "no log-probabilities" in done.output


ANSWERS = {
    "no HTTP": (b"\x15\x03\x01\x00\x02\x02", "speaks HTTP"),
    "nothing": (b"", "speaks HTTP"),
    "a part": (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "without an answer"),
    "a list": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "answers with a list"),
    "no text": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe", "with JSON"),
    "no models": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "lists 0 models"),
    "no names": (
        b'HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{"data": [null, {"x": 1}]}',
        "lists 0 models",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_is_no_answer_is_said_with_its_place(run, places, case):
    sent, message = ANSWERS[case]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(sent)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = run("probe", url, "--probe", places.adapter / "probe.json")
        thread.join()
    said = " ".join(done.output.split())
    assert done.exit_code == 1 and message in said and url in said


def test_a_server_that_does_not_answer_is_left(monkeypatch):
    monkeypatch.setattr(asking, "_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match=f"{url}/v1/models has not answered within"):
            asking.ask_server(url, ["a"], 1)
    with pytest.raises(ValueError, match="http://here:80x/v1/models is no address"):
        asking.ask_server("http://here:80x", ["a"], 1)


def test_a_server_that_is_not_there_is_an_error(run, places):
    probe = ["--probe", places.adapter / "probe.json"]
    done = run("probe", "http://127.0.0.1:9", *probe)
    assert done.exit_code == 1 and "cannot be reached" in done.output


WRONG = {
    "a server to write": (
        ["http://x", "--write", "--data", __file__],
        "for a directory, not for a server",
    ),
    "a server without a probe": (["http://x"], "--probe DIR/probe.json"),
    "a directory's name of a model": (["here", "--model", "m"], "this is a directory"),
    "a server without http": (["localhost:8000", "--model", "m"], "begins with http://"),
    "write without rows": (["here", "--write"], "--write and --data belong together"),
    "rows without write, and their number": (
        ["here", "--data", __file__, "--samples", "9"],
        "--write and --data belong together",
    ),
    "rows without write": (
        ["here", "--samples", "9", "--seed", "1", "--sequence-len", "5"],
        "--samples, --seed, --sequence-len: for the rows of --write",
    ),
    "a verdict of writing": (
        ["here", "--write", "--data", __file__, "--json", "--tolerance", "0.1"],
        "--tolerance, --json: for a verdict, which --write does not give",
    ),
    "a base of a merged model": ([str(EXAMPLE.parent), "--base-model", "x"], "Leave it out"),
    "a probe that is not there": (["here", "--probe", "gone"], "there is no such file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_do_not_go_together(run, case):
    arguments, message = WRONG[case]
    done = run("probe", *arguments)
    assert done.exit_code == 2 and message in " ".join(done.output.split())


BROKEN = {
    "no file": (None, "write it with"),
    "no JSON": ("{", "cannot be used as a probe"),
    "another file": ("{}", "not a file that"),
    "a newer one": ('{"format": "axolotl-alphalora probe", "version": 9}', "newer release"),
    "a part of one": (
        '{"format": "axolotl-alphalora probe", "version": 1, "prompts": []}',
        "lacks answers",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_probe_that_cannot_be_read(run, tmp_path, case):
    text, message = BROKEN[case]
    if text is not None:
        (tmp_path / "probe.json").write_text(text)
    done = run("probe", tmp_path)
    assert done.exit_code == 1 and message in " ".join(done.output.split())
