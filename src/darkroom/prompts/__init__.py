"""Words to conditions: the tokenizer, prompt grammars, chunks, and the text encoder's answer, cached."""
