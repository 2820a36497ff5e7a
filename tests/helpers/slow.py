"""Which tests are slow: those that take, at whatever remove, one of these fixtures."""

SLOW = {
    "host": "starts Axolotl",
    "quickstart": "starts a command that starts Axolotl",
    "host_tokenizer": "loads models with Axolotl's own loader",
    "fresh_process": "starts an interpreter, which imports for seconds",
    "trainer_folder": "trains with the trainers of transformers or TRL",
    "benchmark": "runs a benchmark, most of which start processes",
    "compiler": "compiles",
    "combinations": "goes through many combinations of options",
    "simulation": "draws at random again and again, to see how often something holds",
    "pictures": "draws many pictures",
    "deep_adapter": "opens models of 30 layers and more in every way",
    "in_llama_cpp": "runs a real model in llama.cpp and in PEFT",
    "smollm2": "goes through all matrices of a real model",
}
"""Fixture to why it takes long."""
