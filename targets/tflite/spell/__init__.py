"""How each op is spelled in TFLite, by family; the rules register themselves."""
