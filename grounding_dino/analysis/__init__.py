"""What a model costs: parameters, floating-point operations and activation memory, part by part."""
