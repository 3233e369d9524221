# Tokenizer and chat templates.
