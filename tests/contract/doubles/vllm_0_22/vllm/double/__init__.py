"""What the double is made of; none of these names is vLLM's."""
