"""The quickstart: a real model, trained, reloaded and compared, in one command."""
