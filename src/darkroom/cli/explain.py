"""`darkroom explain`: what the model will read of a prompt."""

from __future__ import annotations

import json
from typing import Annotated

from ..request import MAX_STEPS, whole
from . import complain, options
from .command import App, Argument, Option

app = App()


@app.command()
def explain(
    prompt: Annotated[str, Argument(metavar="PROMPT", help="The prompt.")],
    style: Annotated[
        str, Option("--style", "--prompt-style", metavar="STYLE", help="Its grammar: a1111, comfy or plain.")
    ] = "a1111",
    steps: Annotated[
        int | None,
        Option(metavar="N", parser=options.whole_number, help="The picture's steps. [default: the model's, or 30]"),
    ] = None,
    negative: Annotated[bool, Option("--negative", help="It is a negative prompt.")] = False,
    model: options.Model = None,
    embeddings: options.Embeddings = None,
    embedding_dir: options.EmbeddingDir = None,
    as_json: options.Json = False,
) -> None:
    """Print what a model will read of a prompt: parts, steps, chunks, tokens with their ids and weights.

    darkroom explain "a (large:1.2) [fox:owl:0.4], <lora:ink:0.8>"
    """
    if steps is not None:
        with options.named_as_options():
            whole("steps", steps, 1, MAX_STEPS)
    learned = options.learned_words(embeddings, embedding_dir, [prompt], style)
    from ..embedded import MODEL
    from ..formats.checkpoint import open_checkpoint
    from ..prompts.explain import explain as explain_prompt
    from ..prompts.grammar import Prompt
    from ..prompts.readable import unread
    from ..samplers import STEPS

    checkpoint = open_checkpoint(MODEL if model is None else model)  # its weights are not needed
    tokenizer = checkpoint.tokenizer()
    config, second = checkpoint.text_encoder_config, checkpoint.text_encoder_2_config
    told = explain_prompt(
        prompt,
        tokenizer,
        style,
        steps or int(checkpoint.defaults.get("steps", STEPS)),
        words=learned,
        negative=negative,
        length=min(tokenizer.max_length, config.max_position_embeddings),
        widths=(config.hidden_size, *([second.hidden_size] if second is not None else [])),
    )
    print(json.dumps(told.to_dict(), indent=2) if as_json else told)
    for sentence in unread(Prompt.parse(prompt, style, negative), tokenizer, learned, taught=bool(told.loras)):
        complain(sentence)
