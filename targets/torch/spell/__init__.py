"""How each op is called in torch, by family."""
