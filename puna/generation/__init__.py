"""From a prompt to text: the key-value cache, the sampler, the stop strings, the decode loop."""
